"""Curves: what the model says while pixels leave or enter in a map's order."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from heatproof.errors import InputError
from heatproof.proof.infill import Fill, Infill, Noise, infill
from heatproof.proof.interventions import Result
from heatproof.proof.maps import cells, ranks, spread
from heatproof.proof.subject import Subject


def along(
    subject: Subject,
    order: Int[Tensor, "batch targets maps height width"],
    spans: Int[Tensor, "steps 2"],
    fill: Fill,
    read: str = "probability",
) -> Float[Tensor, "batch targets maps steps"]:
    """What each target reads when the pixels whose place in its map's order lies in `[low, high)` are removed.

    Args:
        subject: the images.
        order: place of each pixel, 0 first; equal places are removed together.
        spans: `low` and `high` for each step.
        fill: how pixels are removed.
        read: `"probability"`, `"score"` or `"top-1"`.

    Returns:
        One value per step. At most one batch of edited images exists at any time.
    """
    batch, targets, maps = order.shape[:3]
    flat, spans = order.flatten(0, 2), spans.to(order)
    steps = len(spans)

    def make(part: slice) -> tuple[Tensor, Tensor]:
        index = torch.arange(part.start, part.stop, device=order.device)
        which, low_high = index // steps, spans[index % steps]
        place = flat[which]
        gone = (place >= low_high[:, 0, None, None]) & (place < low_high[:, 1, None, None])
        rows = which // (targets * maps)
        return fill(rows, gone), rows

    scores = subject.stream(len(flat) * steps, make, read).view(batch, targets, maps, steps, targets)
    return scores.diagonal(dim1=1, dim2=4).movedim(-1, 1)


def area(curves: Float[Tensor, "*maps steps"], fractions: Float[Tensor, " steps"]) -> Float[Tensor, "*maps"]:
    """Area under curves (trapezoids) over the range of fractions, divided by its length."""
    return torch.trapezoid(curves, fractions.to(curves)) / (fractions[-1] - fractions[0]).item()


def _counts(total: int, steps: int) -> Int[Tensor, " points"]:
    """0, …, total in equal steps, in whole pixels; fewer steps where there are not so many pixels."""
    return torch.linspace(0, total, min(steps, total) + 1, dtype=torch.float64).round().long()


@dataclass(frozen=True)
class _Sweep:
    """From all pixels to none or back, in equal steps; the ends are the same for every map and run once per image."""

    steps: int = 224
    infill: str | Infill = "zero"
    read: str = "probability"
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(steps=self.steps)
        infill(self.infill)

    def cost(self, subject: Subject, maps: int) -> int:
        height, width = subject.size
        batch, targets = subject.targets.shape
        return batch * (1 + targets * maps * (min(self.steps, height * width) - 1))

    def _curves(self, subject: Subject, maps: Tensor, removed_first: bool) -> tuple[Tensor, Tensor]:
        total = maps.shape[-2] * maps.shape[-1]
        counts = _counts(total, self.steps)
        inner = counts[1:-1]
        spans = torch.stack([torch.zeros_like(inner), inner] if removed_first else [inner, torch.full_like(inner, total)], 1)
        fill = infill(self.infill).on(subject.x, subject.model.preprocess)
        between = along(subject, ranks(maps, self.seed).to(subject.x.device), spans, fill, self.read)
        whole, empty = (
            end[:, :, None, None].expand(*between.shape[:3], 1)
            for end in (subject.clean(self.read), emptied(subject, fill, self.read))
        )
        ends = (whole, empty) if removed_first else (empty, whole)
        return torch.cat([ends[0], between, ends[1]], -1), counts / total


def emptied(subject: Subject, fill: Fill, read: str) -> Float[Tensor, "batch targets"]:
    """What is read when every pixel is removed."""
    everything = torch.ones(subject.limit, *subject.size, dtype=torch.bool, device=subject.x.device)

    def make(part: slice) -> tuple[Tensor, Tensor]:
        rows = torch.arange(part.start, part.stop, device=subject.x.device)
        return fill(rows, everything[: len(rows)]), rows

    return subject.stream(len(subject.x), make, read)


@dataclass(frozen=True)
class Deletion(_Sweep):
    """How fast the target's probability falls when the most important pixels are removed first.

    `∫ p(x without the first q HW pixels) dq` over q from 0 to 1, trapezoids

    Args:
        steps: number of equal steps. 224 is RISE's choice at 224×224: 224 pixels each.
        infill: what replaces a pixel: a name of `INFILLS` or an `Infill`. RISE: 0 in normalised space.
        read: `"probability"`, `"score"` or `"top-1"` (1 while the target is the top class).
        seed: of the tie-breaker.

    Returns:
        `values` in the unit of what is read, lower is better; `curves` from the whole image to the empty one.

    Misleads by what the model makes of half-removed images, which it never saw: a map of scattered pixels destroys
    the image soonest and scores well whatever it shows. Compare with `road`, and with null maps of the same texture.

    Paper: Petsiuk, Das, Saenko 2018, "RISE: Randomized Input Sampling for Explanation".
    """

    name: ClassVar[str] = "deletion"
    paper: ClassVar[str] = "Petsiuk et al. 2018"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, subject: Subject, maps: Float[Tensor, "batch targets maps height width"]) -> Result:
        curves, fractions = self._curves(subject, maps, True)
        return Result(area(curves, fractions), False, fractions, curves)


@dataclass(frozen=True)
class Insertion(_Sweep):
    """How fast the target's probability rises when the most important pixels appear first.

    `∫ p(blurred x with the first q HW pixels) dq` over q from 0 to 1, trapezoids

    Args:
        steps: number of equal steps. 224 is RISE's choice at 224×224: 224 pixels each.
        infill: where the image starts from: a name of `INFILLS` or an `Infill`. RISE: blurred, 11 pixels, σ = 5.
        read: `"probability"`, `"score"` or `"top-1"`.
        seed: of the tie-breaker.

    Returns:
        `values` in the unit of what is read, higher is better; `curves` from the empty image to the whole one.

    Misleads where the blurred image is recognised already: then every map scores well. Smooth maps are favoured, as
    connected pixels show more than scattered ones.

    Paper: Petsiuk, Das, Saenko 2018, "RISE: Randomized Input Sampling for Explanation".
    """

    name: ClassVar[str] = "insertion"
    paper: ClassVar[str] = "Petsiuk et al. 2018"
    higher_is_better: ClassVar[bool] = True
    infill: str | Infill = "blur"

    def __call__(self, subject: Subject, maps: Float[Tensor, "batch targets maps height width"]) -> Result:
        curves, fractions = self._curves(subject, maps, False)
        return Result(area(curves, fractions), True, fractions, curves)


@dataclass(frozen=True)
class Road:
    """What remains when a share of the pixels is imputed from the rest: most important first against least important first.

    `mean_q ½ (p(x without the last q HW pixels) − p(x without the first q HW pixels))`

    Args:
        fractions: shares q of the image that are removed, above 0 and below 1.
        infill: ROAD's is noisy linear imputation, which hides the shape of the hole.
        read: `"probability"`, `"score"` or `"top-1"`, which averaged over images is the paper's accuracy.
        seed: of the tie-breaker.

    Returns:
        `values` in the unit of what is read, higher is better, 0 for a map that knows nothing; `curves` of the half
        difference; `parts` with the curves `most` (MoRF) and `least` (LeRF).

    Misleads where an object is filled in from its own rim: what is left of it still counts.

    Paper: Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods"; both orders in one
    number as in pytorch-grad-cam.
    """

    name: ClassVar[str] = "road"
    paper: ClassVar[str] = "Rong et al. 2022"
    higher_is_better: ClassVar[bool] = True
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    infill: str | Infill = "linear"
    read: str = "probability"
    seed: int = 0

    def __post_init__(self) -> None:
        infill(self.infill)
        check_fractions(self.fractions)

    def cost(self, subject: Subject, maps: int) -> int:
        return 2 * len(self.fractions) * subject.targets.numel() * maps

    def __call__(self, subject: Subject, maps: Float[Tensor, "batch targets maps height width"]) -> Result:
        total = maps.shape[-2] * maps.shape[-1]
        fractions = torch.tensor(self.fractions)
        counts = (fractions.double() * total).round().long()
        nothing, everything = torch.zeros_like(counts), torch.full_like(counts, total)
        spans = torch.cat([torch.stack([nothing, counts], 1), torch.stack([everything - counts, everything], 1)])
        fill = infill(self.infill).on(subject.x, subject.model.preprocess)
        both = along(subject, ranks(maps, self.seed).to(subject.x.device), spans, fill, self.read)
        most, least = both.chunk(2, -1)
        curves = (least - most) / 2
        return Result(curves.mean(-1), True, fractions, curves, {"most": most, "least": least})


@dataclass(frozen=True)
class PixelFlipping:
    """How much of the score is lost on average while regions are overwritten, most important first (AOPC).

    `1 / (L + 1) Σ_{k=0..L} (s(x) − s(x without the first k regions))`, averaged over repeats

    Args:
        side: of the square regions in pixels; a region counts by the mean of the map in it.
        regions: L, how many are overwritten at most; all of them where the image has fewer.
        repeats: how often, each time with other noise; one pass for an `infill` other than noise.
        infill: None for uniform random pixels, else a name of `INFILLS` or an `Infill`.
        read: `"score"`, `"probability"` or `"top-1"`.
        seed: of the noise and of the tie-breaker.

    Returns:
        `values` in the unit of what is read, higher is better; `curves` of what is left, from the whole image on.

    Misleads like deletion: overwritten regions are evidence of their own. With L regions of few pixels only the very
    top of the map is judged.

    Paper: Samek et al. 2017, "Evaluating the Visualization of What a Deep Neural Network Has Learned"
    (9×9 pixels, L = 100, uniform random values, 10 repeats).
    """

    name: ClassVar[str] = "pixel-flipping"
    paper: ClassVar[str] = "Bach et al. 2015; Samek et al. 2017"
    higher_is_better: ClassVar[bool] = True
    side: int = 9
    regions: int = 100
    repeats: int = 10
    infill: str | Infill | None = None
    read: str = "score"
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(side=self.side, regions=self.regions, repeats=self.repeats)
        if self.infill is not None:
            infill(self.infill)

    def _infills(self) -> list[Infill]:
        if self.infill is None:
            return [Noise(self.seed + n) for n in range(self.repeats)]
        return [infill(self.infill)]

    def length(self, size: tuple[int, int]) -> int:
        """L of an image of this size."""
        return min(self.regions, -(-size[0] // self.side) * -(-size[1] // self.side))

    def cost(self, subject: Subject, maps: int) -> int:
        return len(self._infills()) * self.length(subject.size) * subject.targets.numel() * maps

    def __call__(self, subject: Subject, maps: Float[Tensor, "batch targets maps height width"]) -> Result:
        length = self.length(subject.size)
        order = spread(ranks(cells(maps, self.side), self.seed), self.side, subject.size).to(subject.x.device)
        upto = torch.arange(1, length + 1)
        spans = torch.stack([torch.zeros_like(upto), upto], 1)
        runs = [along(subject, order, spans, one.on(subject.x, subject.model.preprocess), self.read) for one in self._infills()]
        whole = subject.clean(self.read)[:, :, None, None]
        left = torch.cat([whole.expand(*order.shape[:3], 1), torch.stack(runs).mean(0)], -1)
        rows, columns = (-(-n // self.side) for n in subject.size)
        return Result((whole - left).mean(-1), True, torch.arange(length + 1) / (rows * columns), left)


def check_fractions(fractions: tuple[float, ...]) -> None:
    """Say so if these are no shares of an image."""
    if not fractions or not all(0 < one < 1 for one in fractions):
        raise InputError(f"fractions={fractions!r}; expected shares of the image, each above 0 and below 1.")


def check_counts(**options: int) -> None:
    """Say so if one of these is no positive whole number."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r}; expected a whole number of 1 or more.")
