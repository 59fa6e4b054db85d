"""heatproof: heat maps that stand up to cross-examination.

import heatproof as hp

model = hp.load("efficientnet-lite0")
ex = hp.explain(model, "cat.jpg", method="gradcam")
ex.overlay().save("cat-gradcam.png")
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heatproof import lrp as lrp
    from heatproof.audit import audit
    from heatproof.errors import HeatproofError, InputError, MethodError, ModelError
    from heatproof.explain import explain
    from heatproof.explanation import Explanation
    from heatproof.methods import methods
    from heatproof.models import Model, load, wrap
    from heatproof.proof.verdict import Verdict
    from heatproof.prove import prove
    from heatproof.sanity import sanity
    from heatproof.shape import shape
    from heatproof.tokens import chili as chili
    from heatproof.tokens import textspan as textspan

_FACE = {
    "ChiliWeights": "heatproof.tokens.chili_weights",
    "Explanation": "heatproof.explanation",
    "HeatproofError": "heatproof.errors",
    "InputError": "heatproof.errors",
    "MethodError": "heatproof.errors",
    "Model": "heatproof.models",
    "ModelError": "heatproof.errors",
    "Verdict": "heatproof.proof.verdict",
    "audit": "heatproof.audit",
    "explain": "heatproof.explain",
    "load": "heatproof.models",
    "methods": "heatproof.methods",
    "prove": "heatproof.prove",
    "sanity": "heatproof.sanity",
    "shape": "heatproof.shape",
    "wrap": "heatproof.models",
}

_ROOMS = {"chili": "heatproof.tokens.chili", "lrp": "heatproof.lrp", "textspan": "heatproof.tokens.textspan"}

__all__ = ["ChiliWeights", "Explanation", "HeatproofError", "InputError", "MethodError", "Model", "ModelError", "Verdict",
           "audit", "explain", "load", "methods", "prove", "sanity", "shape", "wrap"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(_ROOMS[name])
    # imported when first used, so that `heatproof --help` does not wait for torch
    if name not in _FACE:
        raise AttributeError(f"module 'heatproof' has no attribute {name!r}")
    value = getattr(importlib.import_module(_FACE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FACE, *_ROOMS})


class _Face(ModuleType):
    """Keeps `hp.explain` and `hp.methods` the functions: importing the files of the same name would rebind them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _FACE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
