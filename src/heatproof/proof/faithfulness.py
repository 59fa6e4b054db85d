"""Does a map say how much each region is worth? Random regions are removed, and what is lost is compared with what the map says.

Which regions are removed does not depend on the map: every map, null copy and target shares the same forwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof import seeds
from heatproof.errors import InputError
from heatproof.proof.curves import check_counts, check_fractions
from heatproof.proof.infill import Infill, infill
from heatproof.proof.interventions import Result
from heatproof.proof.maps import cell_sums, spread
from heatproof.proof.subject import Subject


def losses(
    subject: Subject, count: int, masks: Callable[[Tensor], Tensor], choice: str | Infill, read: str
) -> Float[Tensor, "batch targets count"]:
    """What each target loses when each of `count` masks is removed from each image.

    `Δ_bk = f(x_b) − f(x_b without mask k)`

    Args:
        subject: the images.
        count: number of masks, the same for all images.
        masks: from their numbers `(n,)` to True where a pixel goes `(n, H, W)`; never asked for more than a batch.
        choice: the infill.
        read: `"score"`, `"probability"` or `"top-1"`.
    """
    fill, batch = infill(choice).on(subject.x, subject.model.preprocess), len(subject.x)

    def make(part: slice) -> tuple[Tensor, Tensor]:
        index = torch.arange(part.start, part.stop, device=subject.x.device)
        rows = index // count
        return fill(rows, masks(index % count)), rows

    left = subject.stream(batch * count, make, read).view(batch, count, -1).transpose(1, 2)
    return subject.clean(read)[:, :, None] - left


@dataclass(frozen=True)
class Infidelity:
    """How far what the map says of a square is from what the score loses without it.

    `mean_k (β Σ_{i∈K} map_i − (s(x) − s(x without square k)))²`, `β ≥ 0` the scale that fits best

    Args:
        samples: number of squares, anywhere inside the image.
        side: of the squares in pixels; None for a quarter of the image's shorter side.
        scale: whether to fit β; False takes the map as contributions in the score's own unit (β = 1). A map that is
            right but for its sign gets β = 0: the paper's unbounded fit would praise it.
        infill: what replaces a pixel: a name of `INFILLS` or an `Infill`.
        read: `"score"`, `"probability"` or `"top-1"`.
        seed: of the squares.

    Returns:
        `values` ≥ 0 in the squared unit of what is read, lower is better. `mean_k Δ_k²` is what a map of zeros gets.

    Misleads across images and models: the unit is the model's. Where no square matters, every map is faithful.

    Paper: Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations", definition 2.1, with the
    perturbation `I = x − x without the square` and the map as `φ ⊙ I`: contributions, not derivatives.
    """

    name: ClassVar[str] = "infidelity"
    paper: ClassVar[str] = "Yeh et al. 2019"
    higher_is_better: ClassVar[bool] = False
    samples: int = 64
    side: int | None = None
    scale: bool = True
    infill: str | Infill = "zero"
    read: str = "score"
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(samples=self.samples, **({} if self.side is None else {"side": self.side}))
        infill(self.infill)

    def cost(self, subject: Subject, maps: int) -> int:
        return len(subject.x) * self.samples

    def corners(self, size: tuple[int, int]) -> tuple[int, Tensor]:
        """Side of the squares, and their upper left corners `(samples, 2)`."""
        side = self.side or max(1, min(size) // 4)
        if side > min(size):
            raise InputError(f"side={side} is more than the image's shorter side of {min(size)} pixels; pass a smaller one.")
        generator = seeds.generator(self.seed)
        return side, torch.stack([torch.randint(n - side + 1, (self.samples,), generator=generator) for n in size], 1)

    def __call__(self, subject: Subject, maps: Float[Tensor, "batch targets maps height width"]) -> Result:
        side, corners = self.corners(subject.size)
        device = subject.x.device
        rows, columns = (torch.arange(n, device=device) for n in subject.size)

        def squares(index: Tensor) -> Tensor:
            top, left = corners.to(device)[index].unbind(1)
            down, across = rows - top[:, None], columns - left[:, None]
            return ((down >= 0) & (down < side))[:, :, None] & ((across >= 0) & (across < side))[:, None, :]

        lost = losses(subject, self.samples, squares, self.infill, self.read).cpu().double()
        values = torch.stack([self._values(one, effect) for one, effect in zip(maps, lost, strict=True)])
        return Result(values.float(), False)

    def _values(self, maps: Tensor, lost: Tensor) -> Tensor:
        side, corners = self.corners((maps.shape[-2], maps.shape[-1]))
        sums = torch.nn.functional.pad(maps.double().cumsum(-1).cumsum(-2), (1, 0, 1, 0))
        top, left = corners.unbind(1)
        low, right = top + side, left + side
        said = sums[..., low, right] - sums[..., top, right] - sums[..., low, left] + sums[..., top, left]
        lost = lost[:, None]
        fitted = ((said * lost).sum(-1) / (said**2).sum(-1).clamp_min(1e-300)).clamp_min(0)
        return ((said * (fitted[..., None] if self.scale else 1.0) - lost) ** 2).mean(-1)


@dataclass(frozen=True)
class SensitivityN:
    """Whether sets of regions that the map calls worth more cost more when they go.

    `mean_n corr_k(Σ_{i∈S_nk} map_i, s(x) − s(x without S_nk))`, `S_nk` random sets of n regions

    Args:
        fractions: n as shares of all regions, each above 0 and below 1.
        samples: number of sets per n, at least 3.
        side: of the square regions in pixels; 1 for single pixels as in the paper.
        infill: what replaces a pixel: a name of `INFILLS` or an `Infill`. The paper: 0.
        read: `"score"`, `"probability"` or `"top-1"`.
        seed: of the sets.

    Returns:
        `values` from −1 to 1, higher is better, 0 for a map that says nothing; `curves` with one correlation per n.

    Misleads for large n, where every set leaves a ruin of the image, and with few samples: a correlation of 48 pairs
    has a standard error of 0.15.

    Paper: Ancona et al. 2018, "Towards better understanding of gradient-based attribution methods".
    """

    name: ClassVar[str] = "sensitivity-n"
    paper: ClassVar[str] = "Ancona et al. 2018"
    higher_is_better: ClassVar[bool] = True
    fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.6)
    samples: int = 48
    side: int = 16
    infill: str | Infill = "zero"
    read: str = "score"
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(samples=self.samples, side=self.side)
        check_fractions(self.fractions)
        infill(self.infill)
        if self.samples < 3:
            raise InputError(f"samples={self.samples}; a correlation wants at least 3 pairs, expected some dozens.")

    def cost(self, subject: Subject, maps: int) -> int:
        return len(subject.x) * self.samples * len(self.fractions)

    def sets(self, size: tuple[int, int]) -> Tensor:
        """Which regions go: `(n, samples, rows, columns)` True or False."""
        grid = (-(-size[0] // self.side), -(-size[1] // self.side))
        total = grid[0] * grid[1]
        if total < 2:
            raise InputError(f"an image of {size[0]}×{size[1]} is one region of side={self.side}; pass a smaller side.")
        counts = torch.tensor([min(total - 1, max(1, round(total * one))) for one in self.fractions])
        lots = torch.rand(len(counts), self.samples, total, generator=seeds.generator(self.seed)).argsort(-1).argsort(-1)
        return (lots < counts[:, None, None]).view(len(counts), self.samples, *grid)

    def __call__(self, subject: Subject, maps: Float[Tensor, "batch targets maps height width"]) -> Result:
        sets = self.sets(subject.size)
        flat = sets.flatten(0, 1)

        def masks(index: Tensor) -> Tensor:
            return spread(flat[index.cpu()], self.side, subject.size).to(subject.x.device)

        lost = losses(subject, len(flat), masks, self.infill, self.read).cpu().double()
        said = cell_sums(maps.double(), self.side) @ flat.flatten(1).double().T
        shape = (len(self.fractions), self.samples)
        curves = _correlation(said.unflatten(-1, shape), lost[:, :, None].unflatten(-1, shape)).float()
        return Result(curves.mean(-1), True, torch.tensor(self.fractions), curves)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, along the last axis; 0 where one side does not vary but for rounding."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    scale = ((a**2).sum(-1) * (b**2).sum(-1)).sqrt()
    return torch.where(scale > 1e-12, (a * b).sum(-1) / scale.clamp_min(1e-300), 0.0)
