"""What is explained: `Model`, and the two ways to one, `load()` by name and `wrap()` for a module at hand."""

from heatproof.models.loading import load, wrap
from heatproof.models.model import Model

__all__ = ["Model", "load", "wrap"]
