"""The headline intervention: what the region that a map marks is worth to the score, and what its copies are worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from heatproof.proof.curves import emptied
from heatproof.proof.infill import Blur, Fill, Infill
from heatproof.proof.maps import ranks
from heatproof.proof.placements import placements
from heatproof.proof.regions import PARTS, marked
from heatproof.proof.spectrum import matched_spectrum
from heatproof.proof.subject import Subject

FORWARDS = 2 * len(PARTS)
"""Images that go through the model per map: each region removed, and each region alone."""

_AT_ONCE = 16
"""Random maps that are drawn together: a large budget takes no more memory than a small one."""


@dataclass
class Trial:
    """What was measured for a batch, in the unit of the score. NaN where nothing was (no map, or not reached).

    Args:
        lost: `(B, T, 1 + K)` score lost when the marked region is removed; the map itself first, then its K copies.
        kept: `(B, T, 1 + K)` score regained when the marked region is all that is left.
        spectrum: `(B, T, J)` the mean of both for maps of the same texture.
        rivals: `(B, T)` the mean of both for each map that ignores the model.
        shares: `(B, T, P)` of the image that the map marks.
        whole: `(B, T)` score of the image minus its score with everything removed.
        complete: whether nothing interrupted it.
    """

    lost: Tensor
    kept: Tensor
    spectrum: Tensor
    rivals: dict[str, Tensor]
    shares: Tensor
    whole: Tensor
    complete: bool = True

    @property
    def effects(self) -> Float[Tensor, "batch targets maps"]:
        """What the marked region is worth: the mean of what is lost without it and what is kept by it alone."""
        return (self.lost + self.kept) / 2


def veil(size: tuple[int, int]) -> Infill:
    """What is seen of a removed pixel: the image's colours behind a Gaussian of a quarter of its shorter side.

    Nothing that could be recognised survives it, it has no edges of its own, and unlike one flat colour it keeps the
    light of the place.
    """
    quarter = max(1.0, min(size) / 4)
    return Blur(size=2 * round(2 * quarter) + 1, sigma=quarter)


@dataclass(frozen=True)
class _Task:
    """One map of one image and target: its regions are to be made, measured, and written to a place in a table."""

    table: str
    image: int
    target: int
    column: int
    regions: Callable[[], Bool[Tensor, "parts height width"]]


@dataclass
class _Bench:
    """A subject with its veil in place."""

    subject: Subject
    fill: Fill = field(init=False)
    veiled: Float[Tensor, "batch targets"] = field(init=False)

    def __post_init__(self) -> None:
        self.fill = veil(self.subject.size).on(self.subject.x, self.subject.model.preprocess)
        self.veiled = emptied(self.subject, self.fill, "score")

    def run(self, tasks: Sequence[_Task], found: Mapping[str, Tensor]) -> None:
        """Do the tasks, a batch of images at a time, and write what each found to its place in its table."""
        group = max(1, self.subject.limit // FORWARDS)
        for start in range(0, len(tasks), group):
            some = tasks[start : start + group]
            for task, pair in zip(some, self._measure(some), strict=True):
                found[task.table][task.image, task.target, task.column] = pair

    def _measure(self, tasks: Sequence[_Task]) -> Float[Tensor, "tasks 2"]:
        """Score lost without, and score kept by, the regions of each task, averaged over its regions."""
        parts, device = len(PARTS), self.subject.x.device
        rows = torch.tensor([task.image for task in tasks], device=device)
        columns = torch.tensor([task.target for task in tasks], device=device)
        regions = torch.stack([task.regions() for task in tasks]).to(device)
        gone = torch.stack([regions, ~regions], 2).flatten(0, 2)

        def make(part: slice) -> tuple[Tensor, Tensor]:
            chosen = rows.repeat_interleave(2 * parts)[part]
            return self.fill(chosen, gone[part]), chosen

        scores = self.subject.stream(len(gone), make).double().view(len(tasks), parts, 2, -1).mean(1)
        own = scores.gather(2, columns[:, None, None].expand(-1, 2, 1))[..., 0]
        lost = self.subject.scores[rows, columns].double() - own[:, 0]
        kept = own[:, 1] - self.veiled[rows, columns].double()
        return torch.stack([lost, kept], 1).cpu()


def run_trial(
    subject: Subject,
    maps: Float[Tensor, "batch targets height width"],
    valid: Bool[Tensor, "batch targets"],
    copies: int,
    textures: int,
    rivals: Mapping[str, Float[Tensor, "batch targets height width"]],
    seed: int = 0,
) -> Trial:
    """Measure maps, their copies elsewhere, random maps of their texture, and maps that ignore the model.

    `φ(R) = ½ [s(x) − s(x without R)] + ½ [s(R alone) − s(nothing)]`, averaged over the regions R that hold the parts
    `PARTS` of the map's mass

    This is the Shapley value of R in the game of two players, R and the rest of the image: what R and the rest are
    worth adds up to what the whole image is worth, `s(x) − s(nothing)`. Without its second half, evidence that exists
    twice would cost nothing when it is removed; without its first half, a region far larger than the evidence would be
    as good as the evidence itself.

    Args:
        subject: the images and the scores in question.
        maps: as the explanation has them.
        valid: which of them mark anything.
        copies: K, placements of the map elsewhere.
        textures: J, maps with the same spectrum.
        rivals: maps by name; of each the top pixels are taken, as many as the map marks.
        seed: of the copies; each map's are the same whichever others are in the batch.

    Returns:
        A `Trial`. If it is interrupted (Ctrl-C) after the maps themselves, what was measured until then.
    """
    bench = _Bench(subject)
    batch, targets = valid.shape
    found = {
        "own": torch.full((batch, targets, 1 + copies, 2), torch.nan, dtype=torch.float64),
        "rivals": torch.full((batch, targets, len(rivals), 2), torch.nan, dtype=torch.float64),
        "textures": torch.full((batch, targets, textures, 2), torch.nan, dtype=torch.float64),
    }
    shares = torch.full((batch, targets, len(PARTS)), torch.nan, dtype=torch.float64)
    jobs = {
        (b, t): torch.stack([marked(maps[b, t], part) for part in PARTS])
        for b, t in ((int(b), int(t)) for b, t in valid.nonzero())
    }
    for (b, t), regions in jobs.items():
        shares[b, t] = regions.double().mean((1, 2))
    complete = True
    tasks = [_Task("own", b, t, 0, partial(_same, regions)) for (b, t), regions in jobs.items()]
    bench.run(tasks, found)
    try:
        bench.run(_comparisons(jobs, maps, rivals, copies, textures, seed), found)
    except KeyboardInterrupt:
        complete = False
    lost, kept = found["own"].unbind(-1)
    compared = found["rivals"].mean(-1).unbind(-1)
    return Trial(
        lost,
        kept,
        found["textures"].mean(-1),
        dict(zip(rivals, compared, strict=True)),
        shares,
        (subject.scores - bench.veiled).double().cpu(),
        complete,
    )


def _same(regions: Tensor) -> Tensor:
    return regions


def _comparisons(
    jobs: Mapping[tuple[int, int], Tensor], maps: Tensor, rivals: Mapping[str, Tensor], copies: int, textures: int, seed: int
) -> list[_Task]:
    """Everything that the maps are compared with, cheap to list: regions are made when it is their turn."""

    def rival(b: int, t: int, name: str) -> Tensor:
        return ranks(rivals[name][b, t], seed) < jobs[b, t].flatten(1).sum(1)[:, None, None]

    @lru_cache(maxsize=1)
    def textured(b: int, t: int, group: int) -> Tensor:
        drawn = matched_spectrum(maps[b, t], min(_AT_ONCE, textures - group * _AT_ONCE), seed + group)
        return torch.stack([marked(drawn, part) for part in PARTS], 1)

    def texture(b: int, t: int, j: int) -> Tensor:
        return textured(b, t, j // _AT_ONCE)[j % _AT_ONCE]

    places = {job: placements(regions[-1], copies, seed) for job, regions in jobs.items()}
    tasks = [_Task("rivals", b, t, n, partial(rival, b, t, name)) for b, t in jobs for n, name in enumerate(rivals)]
    tasks += [_Task("own", b, t, 1 + k, partial(places[b, t][k], jobs[b, t])) for k in range(copies) for b, t in jobs]
    tasks += [_Task("textures", b, t, j, partial(texture, b, t, j)) for b, t in jobs for j in range(textures)]
    return tasks
