"""Shapes and types in signatures are checked while tests run; nothing of it is in the package at use."""

from collections.abc import Iterator

import jaxtyping
import pytest
from jaxtyping import install_import_hook

install_import_hook("heatproof", "checked.checked").__enter__()


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As in use: the suite's type checks would catch a wrong type before heatproof's own sentence does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
