"""One automatic batch limit for everything that runs a model many times."""

from collections.abc import Callable

import torch
from torch import Tensor

from heatproof.errors import InputError

_PIXELS = 16 * 224 * 224


def batch_limit(height: int, width: int, batch_size: int | None = None) -> int:
    """Images per forward: the user's `batch_size`, else 16 at 224×224 and in proportion to the area otherwise."""
    if batch_size is None:
        return max(1, _PIXELS // max(1, height * width))
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size={batch_size!r}; expected a positive whole number, or None for an automatic limit.")
    return batch_size


def in_batches(count: int, limit: int, compute: Callable[[slice], Tensor]) -> Tensor:
    """Concatenate `compute(slice)` over `count` rows, `limit` at a time, halving where an accelerator's memory ends."""
    parts, start = [], 0
    while start < count:
        try:
            parts.append(compute(slice(start, min(start + limit, count))))
            start += limit
        except torch.cuda.OutOfMemoryError:
            if limit == 1:
                raise
            limit = max(1, limit // 2)
            torch.cuda.empty_cache()
    return torch.cat(parts)
