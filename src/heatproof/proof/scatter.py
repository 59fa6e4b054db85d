"""Observation against intervention: for each region, how sensitive the score is said to be, and what its removal costs."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from heatproof.errors import InputError
from heatproof.models.batching import in_batches
from heatproof.models.tape import Tape
from heatproof.proof.curves import check_counts
from heatproof.proof.infill import Infill, infill
from heatproof.proof.subject import Subject


@dataclass(frozen=True, eq=False)
class Scatter:
    """One point per region.

    Args:
        sensitivity: `(B, T, R)` ≥ 0, what the map (or the gradient) says of a region; NaN where an image has fewer.
        effect: `(B, T, R)` what the target loses when the region is removed; negative where it gains.
        regions: `(B, H, W)` number of each pixel's region.
        correlation: `(B, T)` Spearman's rank correlation of sensitivity and |effect|; 0 where one of them is constant.
    """

    sensitivity: Float[Tensor, "batch targets regions"]
    effect: Float[Tensor, "batch targets regions"]
    regions: Int[Tensor, "batch height width"]
    correlation: Float[Tensor, "batch targets"]


def scatter(
    subject: Subject,
    maps: Float[Tensor, "batch targets height width"] | None = None,
    regions: int | str | Any = 16,
    choice: str | Infill = "blur",
    read: str = "score",
) -> Scatter:
    """Set what a map says of each region against what happens when the region is replaced.

    `sensitivity_R = Σ_{i∈R} |map_i|`, `effect_R = s(x) − s(x without R)`

    Args:
        subject: the images.
        maps: `(B, T, H, W)`; None takes the gradient, `Σ_c |∂s/∂x_ci|` per pixel.
        regions: side of square cells in pixels, `"superpixels"`, or labels of your own `(H, W)` or `(B, H, W)`.
        choice: what replaces a region: a name of `INFILLS` or an `Infill`.
        read: `"score"`, `"probability"` or `"top-1"`.

    Returns:
        A `Scatter`. Points at the lower right are sensitivity without effect (spurious), at the upper left effect
        without sensitivity (saturated). One forward per region.

    Raises:
        InputError: regions that do not fit the images.

    Misleads where evidence is redundant: each region alone costs nothing though together they are everything.
    """
    labels, count = _labelled(subject, regions)
    fill = infill(choice).on(subject.x, subject.model.preprocess)
    own = [int(one.max()) + 1 for one in labels]
    pairs = torch.tensor([(b, r) for b, n in enumerate(own) for r in range(n)])

    def make(part: slice) -> tuple[Tensor, Tensor]:
        rows, numbers = pairs[part].unbind(1)
        return fill(rows, (labels[rows] == numbers[:, None, None]).to(subject.x.device)), rows

    whole, left = subject.clean(read), subject.stream(len(pairs), make, read)
    effect = torch.full((*whole.shape, count), torch.nan)
    effect[pairs[:, 0], :, pairs[:, 1]] = whole[pairs[:, 0]] - left
    mass = _gradient_mass(subject) if maps is None else maps.detach().cpu().abs()
    flat = labels.flatten(1)[:, None].expand(-1, mass.shape[1], -1)
    sensitivity = torch.zeros_like(effect).double().scatter_add(2, flat, mass.flatten(2).double()).float()
    sensitivity[effect.isnan()] = torch.nan
    correlation = torch.stack(
        [
            torch.stack([rank_correlation(a[:n], b[:n].abs()) for a, b in zip(*both, strict=True)])
            for n, *both in zip(own, sensitivity, effect, strict=True)
        ]
    )
    return Scatter(sensitivity, effect, labels, correlation)


def rank_correlation(a: Float[Tensor, " many"], b: Float[Tensor, " many"]) -> Float[Tensor, ""]:
    """Spearman's: Pearson's correlation of the ranks, ties sharing theirs; 0 where one side is constant."""
    ranks = torch.stack([torch.from_numpy(rankdata(side.numpy())) for side in (a, b)])
    ranks = ranks - ranks.mean(1, keepdim=True)
    scale = ranks.norm(dim=1).prod()
    return (ranks.prod(0).sum() / scale if scale > 0 else scale).float()


def superpixels(pixels: Float[Tensor, "batch 3 height width"], count: int = 150) -> Int[Tensor, "batch height width"]:
    """About `count` regions of one colour each, which follow the image's edges.

    Paper: Achanta et al. 2012, "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods".
    """
    from skimage.segmentation import slic  # slow to import, and only needed here

    found = [slic(one.permute(1, 2, 0).cpu().numpy(), count, compactness=10, start_label=0) for one in pixels]
    return torch.stack([torch.from_numpy(one).long() for one in found])


def _labelled(subject: Subject, regions: Any) -> tuple[Tensor, int]:
    """Labels `(B, H, W)` that count from 0 without gaps, and the largest number of regions."""
    height, width = subject.size
    batch = len(subject.x)
    if isinstance(regions, str):
        if regions != "superpixels":
            raise InputError(f"regions={regions!r}; expected a side in pixels, 'superpixels', or labels (H, W) or (B, H, W).")
        labels = superpixels(subject.pixels)
    elif isinstance(regions, int):
        check_counts(regions=regions)
        rows, columns = torch.arange(height) // regions, torch.arange(width) // regions
        labels = (rows[:, None] * (int(columns[-1]) + 1) + columns).expand(batch, -1, -1)
    else:
        labels = torch.as_tensor(regions).cpu()
        if labels.shape not in ((height, width), (batch, height, width)) or labels.is_floating_point():
            raise InputError(
                f"regions of shape {tuple(labels.shape)} and type {labels.dtype} came; expected whole numbers "
                f"({height}, {width}) or ({batch}, {height}, {width})."
            )
        labels = labels.expand(batch, height, width)
    labels = torch.stack([one.unique(return_inverse=True)[1] for one in labels])
    return labels, int(labels.max()) + 1


def _gradient_mass(subject: Subject) -> Float[Tensor, "batch targets height width"]:
    """`Σ_c |∂s/∂x_c|` of each target's score."""
    model = subject.model

    def compute(part: slice) -> Tensor:
        tape = Tape(model.module, model.readout, model.preprocess, subject.x[part], input_gradient=True)
        tape.aim(subject.targets[part])
        return tape.input_gradient.abs().sum(2).cpu()

    return in_batches(len(subject.x), subject.limit, compute)
