"""Which layers and heads a user means."""

from collections.abc import Sequence
from typing import Any

from heatproof.errors import MethodError


def indices(name: str, wanted: Any, count: int) -> list[int]:
    """Indices of layers or heads, none twice.

    Raises:
        MethodError: not whole numbers, or none of these layers.
    """
    if wanted is None:
        return list(range(count))
    listed = plain(wanted)
    asked = [plain(one) for one in listed] if isinstance(listed, Sequence) and not isinstance(listed, str) else [listed]
    if not asked or not all(isinstance(one, int) and not isinstance(one, bool) and -count <= one < count for one in asked):
        raise MethodError(f"{name}={wanted!r}; expected indices from 0 to {count - 1}, or negative ones from the end.")
    return list(dict.fromkeys(one % count for one in asked))


def plain(value: Any) -> Any:
    """NumPy's and torch's numbers and arrays as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value
