"""Every error that heatproof raises on purpose.

HeatproofError
├── InputError    an image, tensor, file, target or label that cannot be used
├── ModelError    a model, layer or weights file that cannot be used
└── MethodError   a method or option that does not exist, or does not fit this model

Each message is a sentence: what came, what was expected, what to do.
"""

import difflib
from collections.abc import Iterable


class HeatproofError(Exception):
    """Base of all errors that heatproof raises on purpose."""


class InputError(HeatproofError):
    """An image, tensor, file, target or label that cannot be used."""


class ModelError(HeatproofError):
    """A model, layer or weights file that cannot be used."""


class MethodError(HeatproofError):
    """A method or option that does not exist, or does not fit this model."""


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """Return ' Did you mean …?' for near misses of `word` among `known`, else an empty string."""
    by_lower = {name.lower(): name for name in known}
    hits = [by_lower[hit] for hit in difflib.get_close_matches(word.lower(), by_lower, count, 0.6)]
    if len(hits) < count and len(word) > 2:
        hits += [name for low, name in by_lower.items() if word.lower() in low and name not in hits]
    return f" Did you mean {' or '.join(repr(hit) for hit in hits[:count])}?" if hits else ""
