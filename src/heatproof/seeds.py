"""Random numbers that come from a seed, never from the global generator."""

from typing import Any

import torch

from heatproof.errors import InputError


def generator(seed: Any) -> torch.Generator:
    """A generator of its own on the CPU, so that every device gets the same numbers.

    Raises:
        InputError: the seed is no whole number.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed={seed!r}; expected a whole number, 0 or more.")
    return torch.Generator().manual_seed(seed)
