"""Token dropping: a vision transformer is shown fewer patches, so nothing has to be painted over them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from heatproof import seeds
from heatproof.errors import HeatproofError, MethodError
from heatproof.models.sites import Site, read_shape
from heatproof.models.tape import recording, run
from heatproof.proof.curves import area, check_fractions
from heatproof.proof.interventions import Result
from heatproof.proof.maps import ranks
from heatproof.proof.subject import Subject

_TRIED, _ROUNDING = 16, 1e-3


@dataclass(frozen=True)
class TokenDropping:
    """What remains when a share of the patch tokens is left out: most important first against least important first.

    `∫ ½ (p(without the last q N tokens) − p(without the first q N tokens)) dq`, trapezoids from q = 0, divided by the range

    Tokens leave where the position embedding has been added and no block has run; class token and registers stay.
    The place is found by trial: the first at which a token knows its own patch only, and the tokens are a *set*, that
    is, shuffling them leaves the scores as they are and the network runs with half of them. A token counts by the mean
    of the map over its patch.

    Args:
        fractions: shares q of the tokens that are dropped, rising, each above 0 and below 1.
        read: `"probability"`, `"score"` or `"top-1"`, which averaged over images is the accuracy of the papers.
        seed: of the tie-breaker.

    Returns:
        `values` in the unit of what is read, higher is better, 0 for a map that knows nothing; `curves` of half the
        difference from q = 0 on; `parts` with the curves `most` ("positive perturbation": low is good) and `least`.

    Raises:
        MethodError: the network's tokens are no set: a convolutional network, windows (Swin), or positions that are
            added inside the blocks (relative or rotary). `road` and `deletion` work on all of these.

    Misleads little by artefacts, as a shorter sequence is no strange image; but the network was not trained on gaps,
    and what one token's embedding had borrowed from overlapping patches stays.

    Paper: Chefer, Gur, Wolf 2021, "Transformer Interpretability Beyond Attention Visualization" (perturbation
    tests, there with masked pixels); dropping tokens: Naseer et al. 2021, "Intriguing Properties of Vision Transformers".
    """

    name: ClassVar[str] = "token-dropping"
    paper: ClassVar[str] = "Chefer et al. 2021; Naseer et al. 2021"
    higher_is_better: ClassVar[bool] = True
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    read: str = "probability"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fractions(self.fractions)

    def cost(self, subject: Subject, maps: int) -> int:
        """Forwards without the few that look for the place."""
        return 2 * len(self.fractions) * subject.targets.numel() * maps

    def __call__(self, subject: Subject, maps: Float[Tensor, "batch targets maps height width"]) -> Result:
        place = find_place(subject)
        grid = (place.site.height, place.site.width)
        order = ranks(adaptive_avg_pool2d(maps.flatten(0, 2), grid), self.seed).flatten(1)
        total, (_, targets, count) = order.shape[1], maps.shape[:3]
        drops = [min(total - 1, round(one * total)) for one in self.fractions]
        whole = subject.clean(self.read)[:, :, None, None].expand(*maps.shape[:3], 1)

        def curve(kept: list[Tensor]) -> Tensor:
            points = [self._read(subject, place, one.view(len(order), -1), targets, count) for one in kept]
            return torch.cat([whole, torch.stack(points, -1)], -1)

        most = curve([(order >= n).nonzero()[:, 1] for n in drops])
        least = curve([(order < total - n).nonzero()[:, 1] for n in drops])
        fractions = torch.tensor([0, *drops]) / total
        curves = (least - most) / 2
        return Result(area(curves, fractions), True, fractions, curves, {"most": most, "least": least})

    def _read(self, subject: Subject, place: "Place", kept: Tensor, targets: int, maps: int) -> Tensor:
        def make(part: slice) -> tuple[Tensor, Tensor]:
            place.kept = kept[part]
            rows = torch.arange(part.start, part.stop) // (targets * maps)
            return subject.x[rows], rows

        with place.pruned(subject.module):
            scores = subject.stream(len(kept), make, self.read)
        return scores.view(-1, targets, maps, targets).diagonal(dim1=1, dim2=3).movedim(-1, 1)


@dataclass
class Place:
    """A module whose input is all tokens, and which of the grid's tokens the next forward lets through."""

    name: str
    site: Site
    kept: Int[Tensor, "batch kept"] = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))

    @contextmanager
    def pruned(self, module: nn.Module) -> Iterator[None]:
        """Inside, the module at this place gets the prefix and the kept tokens only."""
        handle = module.get_submodule(self.name).register_forward_pre_hook(self._prune)
        try:
            yield
        finally:
            handle.remove()

    def _prune(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        axis = 1 if self.site.kind == "bnk" else 0
        tokens = inputs[0].movedim(axis, 1)
        if tokens.shape[1] != self.site.prefix + self.site.height * self.site.width:
            return inputs  # another run of a module that is used several times
        kept = self.kept.to(tokens.device)
        prefix = torch.arange(self.site.prefix, device=tokens.device).expand(len(kept), -1)
        index = torch.cat([prefix, kept + self.site.prefix], 1)
        return (tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2])).movedim(1, axis), *inputs[1:])


def find_place(subject: Subject) -> Place:
    """The first place at which the network takes its tokens as a set.

    Raises:
        MethodError: there is none.
    """
    x, whole = subject.x[:1], subject.all_scores[:1]
    tolerance = _ROUNDING * float(whole.abs().max().clamp_min(whole.std(correction=0)))
    for place in _candidates(subject)[:_TRIED]:
        total = place.site.height * place.site.width
        shuffled = torch.randperm(total, generator=seeds.generator(0))[None]
        try:
            with place.pruned(subject.module), recording(False):
                place.kept = shuffled
                same = run(subject.model.readout, subject.module, x.clone()).cpu()
                place.kept = torch.arange(total // 2)[None]
                half = run(subject.model.readout, subject.module, x.clone()).cpu()
        except HeatproofError:
            continue
        if same.shape == whole.shape == half.shape and float((same - whole).abs().max()) <= tolerance:
            return place
    raise MethodError(
        f"{subject.model.name} does not take its patches as a set of tokens (it is convolutional, works in windows, or adds "
        "positions inside its blocks), so none can be left out; use road or deletion, which replace pixels."
    )


def _candidates(subject: Subject) -> list[Place]:
    """Modules whose first argument is all tokens before any of them has seen another's patch, as they run.

    Two images that differ in their left half only are run side by side: there, the right column's tokens are the same.
    """
    found: dict[str, Place] = {}
    grids = list(dict.fromkeys((site.height, site.width) for site in subject.model.survey(subject.x).sites.values()))
    x = subject.x[:1]
    other = torch.cat([1 - x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]], -1)

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if name and name not in found and inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 3:
                site = read_shape(name, inputs[0].shape, 2, subject.size, grids)
                if site is not None and site.is_tokens:
                    one, two = site.to_map(inputs[0].float())[..., -1]
                    if float((one - two).abs().max()) <= _ROUNDING * float(one.abs().max()):
                        found[name] = Place(name, site)

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in subject.module.named_modules()]
    try:
        with recording(False):
            run(subject.model.readout, subject.module, torch.cat([x, other]))
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())
