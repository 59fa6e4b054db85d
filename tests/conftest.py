"""Shapes and types in signatures are checked while tests run; nothing of it is in the package at use."""

from jaxtyping import install_import_hook

install_import_hook("heatproof", "checked.checked").__enter__()
