"""Does a map depend on what the model learned? Layers forget, one after the other, and the map should not survive it.

What explains is a callable from a model and its images to maps; nothing here knows a method.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from heatproof import seeds as random
from heatproof.errors import InputError
from heatproof.models.model import Model
from heatproof.proof.reinitialise import Forgetful
from heatproof.proof.similarity import MEASURES, Reference

Explainer = Callable[[Model, Tensor], Tensor]
"""From a model and `(B, 3, H, W)` to maps `(B, T, H, W)` of the same targets every time."""

ORDERS = ("top-down", "bottom-up", "independent")

BINS = 100


@dataclass(frozen=True, eq=False)
class Cascade:
    """How alike the maps of the learned model and of ever more randomised ones are.

    Args:
        order: `"top-down"` from the scores to the image, `"bottom-up"` the other way round, both cumulative;
            `"independent"` one stage at a time, the others as learned.
        stages: names of the layers that are randomised at each stage, in this order.
        similarity: by measure `(S, K, B, T)`: seeds, stages, images, targets; 1 is no change.
        original: `(B, T, H, W)` maps of the learned model.
        randomised: `(S, B, T, H, W)` maps of the model after the last stage: with all layers randomised, but for
            `"independent"`.
        seeds: of the draws.
    """

    order: str
    stages: tuple[tuple[str, ...], ...]
    similarity: dict[str, Float[Tensor, "seeds stages batch targets"]]
    original: Float[Tensor, "batch targets height width"]
    randomised: Float[Tensor, "seeds batch targets height width"]
    seeds: tuple[int, ...]

    def curve(self, measure: str = "spearman_abs") -> tuple[Float[Tensor, " stages"], Float[Tensor, " stages"]]:
        """Mean of a similarity over images and targets after each stage, and its standard deviation over the seeds.

        Args:
            measure: one of `heatproof.proof.similarity.MEASURES`.

        Returns:
            Two `(K,)`; the deviation is 0 for a single seed. Constant maps of the learned model are left out.

        Raises:
            InputError: no such measure.
        """
        if measure not in self.similarity:
            raise InputError(f"measure={measure!r}; expected one of {', '.join(self.similarity)}.")
        each = self.similarity[measure].flatten(2).nanmean(2)
        return each.mean(0), each.std(0, correction=0)


def cascade(
    model: Model,
    x: Tensor,
    explain: Explainer,
    *,
    order: str = "top-down",
    seeds: Sequence[int] = (0, 1, 2),
    stages: int | None = None,
    progress: Callable[[], None] | None = None,
    forgetful: Forgetful | None = None,
) -> Cascade:
    """Randomise a copy of the model layer by layer, explain it at every stage, and compare with the learned model's maps.

    Layers are re-initialised as `Forgetful.fresh` says, normalisations included. The user's model is never touched.

    Args:
        model: what `load()` or `wrap()` returned.
        x: `(B, 3, H, W)` as it takes them.
        explain: from a model and `x` to maps `(B, T, H, W)`. The targets should be fixed: after the first stage the top
            class is another.
        order: `"top-down"`, `"bottom-up"` or `"independent"`.
        seeds: one whole cascade for each.
        stages: at most this many, of neighbouring layers each; None takes every layer as a stage of its own.
        progress: called after each explanation.
        forgetful: of this model and `x`, where several cascades share one.

    Returns:
        A `Cascade`, made from `1 + len(seeds) · stages` explanations.

    Raises:
        InputError: an order, seeds or stages that do not exist, a model without parameters, or maps that are not finite.

    Misleads where the similarity's floor is high: top-down leaves the low layers' edges in place until the end, and noisy
    maps lose their likeness faster than smooth ones. Read the curve beside what an edge map explains.

    Paper: Adebayo et al. 2018, "Sanity Checks for Saliency Maps", section 3; order and noise: Hedström et al. 2024, "A
    Fresh Look at Sanity Checks for Saliency Maps".
    """
    seeds = _checked(order, seeds, stages)
    copy = forgetful or Forgetful(model, x)
    count = len(copy.layers)
    if not count:
        raise InputError(f"{model.name} has no parameters that its scores depend on; there is nothing it could have learned.")
    tick = progress or (lambda: None)
    with copy.installed([], []) as learned:
        original = explain(learned, x).detach().float().cpu()
    tick()
    reference = Reference(original.flatten(0, 1))
    groups = _groups(count, stages, order)
    found: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
    last = []
    for seed in seeds:
        fresh = copy.fresh(seed)
        rows: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
        with ExitStack() as forgotten:
            for group in groups:
                if order == "independent":
                    forgotten.close()  # what the stages before forgot is learned again
                changed = forgotten.enter_context(copy.installed(fresh, group))
                maps = explain(changed, x).detach().float().cpu()
                tick()
                for name, value in reference.compare(maps.flatten(0, 1)).items():
                    rows[name].append(value.view(original.shape[:2]))
        for name, row in rows.items():
            found[name].append(torch.stack(row))
        last.append(maps)
    return Cascade(
        order,
        tuple(tuple(copy.layers[n].name for n in group) for group in groups),
        {name: torch.stack(rows) for name, rows in found.items()},
        original,
        torch.stack(last),
        seeds,
    )


def explanations(layers: int, seeds: int, stages: int | None = None) -> int:
    """How many explanations a cascade takes, the learned model's included."""
    return 1 + seeds * min(layers, stages or layers)


def emprt(original: Float[Tensor, "batch targets h w"], randomised: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Efficient model parameter randomisation test: does the map get more complex when the model forgets everything?

    `(ξ(ê) − ξ(e)) / ξ(e)`, `ξ` the entropy of the histogram of a map's values, in 100 bins over its range; `ê` the map of
    the fully randomised model

    Args:
        original: `(B, T, H, W)`.
        randomised: `(S, B, T, H, W)`, or without S.

    Returns:
        `(S, B, T)`, higher is better; signed and without an upper limit. NaN where the original is constant.

    Paper: Hedström et al. 2024, "A Fresh Look at Sanity Checks for Saliency Maps", equation 7.
    """
    before, after = histogram_entropy(original), histogram_entropy(randomised)
    return torch.where(before > 0, (after - before) / before, torch.nan)


def histogram_entropy(maps: Float[Tensor, "*batch height width"], bins: int = BINS) -> Float[Tensor, "*batch"]:
    """Entropy in nats of the histogram of each map's values, in equal bins over its own range; 0 for a constant map."""
    values = maps.detach().double().cpu().flatten(-2).flatten(0, -2).numpy()
    entropies = []
    for row in values:
        share = np.histogram(row, bins)[0] / row.size
        share = share[share > 0]
        entropies.append(-float((share * np.log(share)).sum()))
    return torch.tensor(entropies, dtype=torch.float32).abs().view(maps.shape[:-2])


def smoothed(explain: Explainer, samples: int = 50, spread: float = 0.1, seed: int = 0) -> Explainer:
    """An explainer whose maps are means over noisy inputs, for the smoothed test: `cascade(…, order="bottom-up")` of it.

    `mean_k explain(model, x + N(0, σ²))`, `σ = spread · (max x − min x)` per image; every model gets the same noise

    Args:
        explain: what is averaged.
        samples: explanations that each one becomes.
        spread: share of the image's range.
        seed: of the noise.

    Raises:
        InputError: fewer than one sample, or a negative spread.

    Paper: Hedström et al. 2024, section 4.1.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1 or not 0 <= spread < float("inf"):
        raise InputError(f"samples={samples!r}, spread={spread!r}; expected at least one sample and a spread of 0 or more.")

    def mean(model: Model, x: Tensor) -> Tensor:
        chance = random.generator(seed)
        sigma = spread * (x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True))
        total: Tensor | float = 0.0
        for _ in range(samples):
            total = total + explain(model, x + sigma * torch.randn(x.shape, generator=chance).to(x)).float()
        assert isinstance(total, Tensor)
        return total / samples

    return mean


def compare_models(explain: Explainer, learned: Model, other: Model, x: Tensor) -> dict[str, Float[Tensor, "batch targets"]]:
    """How alike two models' maps of the same images are: the data randomisation test.

    One was trained on the true labels, the other on permuted ones until it knew them by heart. What they see alike has
    nothing to do with the labels.

    Args:
        explain: from a model and `x` to maps `(B, T, H, W)`, with the same targets for both.
        learned: trained on the true labels.
        other: trained on permuted labels.
        x: `(B, 3, H, W)` as both take them.

    Returns:
        By measure `(B, T)` from −1 to 1, as `Reference.compare` gives it.

    Raises:
        InputError: maps that differ in shape or are not finite.

    Paper: Adebayo et al. 2018, section 4.
    """
    first, second = (explain(model, x).detach().float().cpu() for model in (learned, other))
    found = Reference(first.flatten(0, 1)).compare(second.flatten(0, 1))
    return {name: value.view(first.shape[:2]) for name, value in found.items()}


def _groups(count: int, stages: int | None, order: str) -> list[list[int]]:
    """Numbers of the layers at each stage, in the order in which they are randomised."""
    numbers = list(range(count)) if order == "bottom-up" else list(range(count))[::-1]
    parts = np.array_split(numbers, min(count, stages or count))
    return [part.tolist() for part in parts]


def _checked(order: str, seeds: Sequence[int], stages: int | None) -> tuple[int, ...]:
    if order not in ORDERS:
        raise InputError(f"order={order!r}; expected one of {', '.join(ORDERS)}.")
    if not len(seeds):
        raise InputError("seeds=() asks for no draw; pass at least one whole number.")
    for seed in seeds:
        random.generator(seed)  # says if it is none
    if stages is not None and (isinstance(stages, bool) or not isinstance(stages, int) or stages < 1):
        raise InputError(f"stages={stages!r}; expected a whole number of at least 1, or None for every layer.")
    return tuple(seeds)
