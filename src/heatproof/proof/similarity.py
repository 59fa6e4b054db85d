"""How alike two maps are, in the measures of the sanity checks."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from skimage.feature import hog
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn.functional import interpolate

from heatproof.errors import InputError

MEASURES = {"spearman": "Spearman", "spearman_abs": "Spearman of |map|", "ssim": "SSIM of |map|", "hog": "HOG of |map|"}
"""What is measured, and what it is called."""

SIDE = 112
"""Pixels of the longer side at which maps are compared; larger ones are averaged down. It makes a comparison cheap beside
a forward, and pixel noise below that scale is not what the checks ask about."""

_WINDOW = 7


class Reference:
    """Maps that others are compared with; their own share of the work is done once.

    Args:
        maps: `(N, H, W)`, any range, finite.

    Raises:
        InputError: another shape, values that are not finite, or fewer than 3 pixels a side.
    """

    def __init__(self, maps: Float[Tensor, "count height width"]) -> None:
        self._shape = tuple(maps.shape)
        self._own = [_Features(*both) for both in _pairs(maps)]

    def compare(self, maps: Float[Tensor, "count height width"]) -> dict[str, Float[Tensor, " count"]]:
        """How alike each map is to the reference at its place.

        `spearman`: rank correlation of the values. Of their absolute values, stretched to [0, 1]: `spearman_abs`, their rank
        correlation; `ssim`, structural similarity in windows of 7 pixels; `hog`, Pearson's correlation of histograms of
        oriented gradients in 8 × 8 cells.

        Args:
            maps: `(N, H, W)` like the reference.

        Returns:
            By measure `(N,)` from −1 to 1, 1 for equal maps. A constant map has nothing in common with one that is not:
            its correlations are 0. NaN where the reference is constant: it says nothing that could be kept.

        Raises:
            InputError: another shape, or values that are not finite.
        """
        if tuple(maps.shape) != self._shape:
            raise InputError(f"maps of shape {tuple(maps.shape)} came to be compared with {self._shape}; expected the same.")
        rows = [one.compare(_Features(*both)) for one, both in zip(self._own, _pairs(maps), strict=True)]
        return {name: torch.tensor([row[name] for row in rows]) for name in MEASURES}


def similarity(first: Float[Tensor, "count h w"], second: Float[Tensor, "count h w"]) -> dict[str, Float[Tensor, " count"]]:
    """`Reference(first).compare(second)`."""
    return Reference(first).compare(second)


def explained_by(maps: Float[Tensor, "count h w"], edges: Float[Tensor, "count h w"]) -> dict[str, Float[Tensor, " count"]]:
    """How much of each map another map of the same image explains, such as its edges.

    `r2 = corr(|map|, edges)²`, the share of variance that the best straight line through the other map accounts for, and
    `spearman`, their rank correlation; at most `SIDE` pixels a side

    Args:
        maps: `(N, H, W)`, any range; absolute values count.
        edges: `(N, H, W)` ≥ 0.

    Returns:
        `r2` `(N,)` from 0 to 1 and `spearman` `(N,)` from −1 to 1; 0 for constant maps.

    Raises:
        InputError: shapes that differ, or values that are not finite.
    """
    if maps.shape != edges.shape:
        raise InputError(f"maps of shapes {tuple(maps.shape)} and {tuple(edges.shape)} came; expected the same.")
    both = [(a, b) for (_, a), (_, b) in zip(_pairs(maps), _pairs(edges), strict=True)]
    return {
        "r2": torch.tensor([_pearson(_centred(a), _centred(b)) ** 2 for a, b in both]),
        "spearman": torch.tensor([_pearson(_ranks(a), _ranks(b)) for a, b in both]),
    }


class _Features:
    """What the measures need of one map."""

    def __init__(self, signed: np.ndarray, strength: np.ndarray) -> None:
        low, high = strength.min(), strength.max()
        self.constant = bool(low == high and signed.min() == signed.max())
        self.soft = (strength - low) / ((high - low) or 1)
        self.strength_ranks = _ranks(strength)
        # of a map without negative values both are the same
        self.ranks = self.strength_ranks if signed is strength else _ranks(signed)
        cell = tuple(max(2, side // 8) for side in self.soft.shape)
        blocks = tuple(min(3, side // c) for side, c in zip(self.soft.shape, cell, strict=True))
        self.gradients = _centred(hog(self.soft, pixels_per_cell=cell, cells_per_block=blocks)) if min(blocks) else np.zeros(1)

    def compare(self, other: "_Features") -> dict[str, float]:
        if self.constant:
            return dict.fromkeys(MEASURES, float("nan"))
        window = min(_WINDOW, (min(self.soft.shape) - 1) // 2 * 2 + 1)
        return {
            "spearman": _pearson(self.ranks, other.ranks),
            "spearman_abs": _pearson(self.strength_ranks, other.strength_ranks),
            "ssim": float(structural_similarity(self.soft, other.soft, win_size=window, data_range=1.0)),
            "hog": _pearson(self.gradients, other.gradients),
        }


def _pairs(maps: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each map and its absolute values at the size of comparison, the same array where there is no negative value."""
    if maps.ndim != 3 or min(maps.shape[-2:]) < 3:
        raise InputError(f"maps of shape {tuple(maps.shape)} came; expected (N, H, W) with at least 3 pixels a side.")
    if not torch.isfinite(maps).all():
        raise InputError("a map with NaN or infinite values cannot be compared; leave that image out.")
    values = maps.detach().double().cpu()
    strength = _reduced(values.abs()).numpy()
    signed = strength if (values >= 0).all() else _reduced(values).numpy()
    return [(s if signed is not strength else a, a) for s, a in zip(signed, strength, strict=True)]


def _reduced(maps: Tensor) -> Tensor:
    height, width = maps.shape[-2:]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return maps
    size = [max(3, round(side * scale)) for side in (height, width)]
    return interpolate(maps[:, None], size, mode="area")[:, 0]


def _ranks(values: np.ndarray) -> np.ndarray:
    return _centred(rankdata(values, axis=None))


def _centred(values: np.ndarray) -> np.ndarray:
    """Flat, less its mean, of length one; zeros where it is constant."""
    flat = values.ravel() - values.mean()
    if values.max() == values.min():
        return np.zeros_like(flat)
    return flat / np.sqrt((flat * flat).sum())


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    return float((first * second).sum())  # `@` wakes the threads of BLAS: milliseconds on a busy machine
