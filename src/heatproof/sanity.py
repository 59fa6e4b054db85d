"""`sanity()`: does a method's map of these images depend on what this model learned?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from heatproof.errors import InputError, MethodError
from heatproof.explain import explain
from heatproof.images import Sources
from heatproof.models.loading import as_model
from heatproof.models.model import Model, stack
from heatproof.models.targets import strings_in
from heatproof.proof.bootstrap import Mean, bootstrap_mean
from heatproof.proof.randomisation import Cascade, cascade, emprt, explanations, smoothed
from heatproof.proof.reinitialise import Forgetful
from heatproof.proof.similarity import MEASURES, explained_by

KEPT = 0.5
"""A map of whose rank order at least this much is left, when nothing that was learned is, does not depend on it."""


@dataclass(frozen=True, eq=False)
class Sanity:
    """What is left of a method's maps when the model forgets what it learned.

    Args:
        method: its name.
        model_name: of the model.
        cascades: by order, `"top-down"`, `"bottom-up"`, `"independent"` and `"smoothed"` (bottom-up, means over noise).
        emprt: `(S, B, T)` relative rise of the map's entropy when everything is randomised.
        edges: by measure `(B, T)`: how much of each map the image's Sobel edges explain, `r2` and `spearman`.
    """

    method: str
    model_name: str
    cascades: dict[str, Cascade]
    emprt: Float[Tensor, "seeds batch targets"]
    edges: dict[str, Float[Tensor, "batch targets"]]

    @property
    def kept(self) -> Mean:
        """How much of where the map is strong is left when everything is randomised: Spearman of the absolute maps.

        With a 95 % interval, a bootstrap over images, targets and seeds. Of fewer than ten values it is too narrow, and of a
        single one it has no width.
        """
        return self._left("spearman_abs")

    @property
    def kept_signs(self) -> Mean:
        """The same of the values with their signs; equal to `kept` where there are no negative ones."""
        return self._left("spearman")

    def _left(self, measure: str) -> Mean:
        return bootstrap_mean(self._full[1].similarity[measure][:, -1].flatten().double().numpy())

    @property
    def _full(self) -> tuple[str, Cascade]:
        """The first cascade that ends with everything randomised."""
        return next((order, one) for order, one in self.cascades.items() if order not in ("independent", "smoothed"))

    @property
    def says_nothing(self) -> bool:
        """Whether every map of the learned model is constant."""
        return self.kept.count == 0

    @property
    def depends_on_model(self) -> bool:
        """Whether less than half of the map's rank order is left, to the interval's upper end, when all layers are random."""
        return not self.says_nothing and self.kept.high < KEPT

    @property
    def sentence(self) -> str:
        """The finding in plain words."""
        order, full = self._full
        layers = sum(len(group) for group in full.stages)
        if self.says_nothing:
            return f"{self.method}: every map is constant; there is nothing that could depend on {self.model_name}."
        kept, signs, edges = self.kept, self.kept_signs, self.edges["r2"].nanmean().item()
        finding = (
            "the map depends on what the model learned"
            if self.depends_on_model
            else "most of the picture does not come from what the model learned"
            if kept.low >= KEPT
            else "it is open whether the map depends on what the model learned; more images would tell"
        )
        if not self.depends_on_model and signs.high < KEPT:
            finding += f" (its signs do: with them, {signs.value:.2f} is left)"
        sample = f"{_counted(full.original.shape[0], 'image')}, {_counted(len(full.seeds), 'draw')}"
        sure = f"95 % {kept.low:.2f} to {kept.high:.2f}" if kept.count > 1 else "no interval"
        return (
            f"{self.method}: with all {layers} layers of {self.model_name} randomised, {kept.value:.2f} of the map's rank order "
            f"is left ({sure}; {sample}): {finding}.{self._half(order, full)} An edge map of the image explains {edges:.0%} of "
            "it."
        )

    def _half(self, order: str, full: Cascade) -> str:
        mean, _ = full.curve()
        below = (mean < KEPT).nonzero().flatten().tolist()
        if not below or len(full.stages) < 2:
            return ""
        where = full.stages[below[0]][-1]
        return f" Half of it is lost by stage {below[0] + 1} of {len(full.stages)} {order} ({where})."

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per order and stage: the layers, and each measure's mean and deviation over the seeds."""
        rows = []
        for order, one in self.cascades.items():
            curves = {measure: one.curve(measure) for measure in MEASURES}
            for k, layers in enumerate(one.stages):
                numbers = {name: (mean[k].item(), spread[k].item()) for name, (mean, spread) in curves.items()}
                rows.append({"order": order, "stage": k + 1, "layers": list(layers), **numbers})
        return rows

    def __repr__(self) -> str:
        return self.sentence


def sanity(
    model: Model | nn.Module | None,
    images: Any,
    method: str = "gradcam",
    target: Any = None,
    layer: Any = None,
    *,
    orders: Sequence[str] = ("top-down", "bottom-up", "independent"),
    seeds: int = 3,
    stages: int | None = 12,
    smooth: int = 0,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Sanity:
    """Randomise the model's layers, and see what is left of a method's maps.

    Args:
        model: what `load()` or `wrap()` returned, or a module. It is never touched: a copy is randomised.
        images: as `explain()` takes them; several make the finding surer. They are explained as one batch.
        method: a name of `methods()`.
        target: as `explain()` takes it; the learned model's top scores are kept for all randomised ones.
        layer: as `explain()` takes it.
        orders: `"top-down"`, `"bottom-up"`, `"independent"`; the first of the cumulative ones gives the finding.
        seeds: how many times everything is drawn.
        stages: at most this many steps per cascade, of neighbouring layers; None takes every layer by itself.
        smooth: samples of the smoothed test (a bottom-up cascade of means over noisy inputs; the paper takes 50), 0 for
            none. It costs that many explanations for one.
        progress: called with the number of explanations in all after each of them.
        options: of the method.

    Returns:
        A `Sanity`; print it for the sentence.

    Raises:
        InputError: no image can be read, a target, order or count that does not exist.
        ModelError: the model cannot take the images. MethodError: no such method or option.

    Misleads where the task is so simple that an edge map is the right answer: then a map may keep its look for good
    reasons (Yona & Greenfeld 2021). A map that passes is not thereby right; it only passes for the right reason.

    Paper: Adebayo et al. 2018, "Sanity Checks for Saliency Maps"; Hedström et al. 2024, "A Fresh Look at Sanity Checks".
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"seeds={seeds!r}; expected how many draws, at least 1.")
    if not isinstance(method, str):
        raise MethodError(f"method={method!r}; expected one name. hp.methods() lists them all.")
    model = as_model(model).knowing(strings_in(target))
    x = _read(images, model)
    first = explain(model, x, method, target, layer, **options)
    targets = None if first.targets is None else first.targets.tolist()
    layers = list(first.layer) if layer is not None else None  # by name: a module of the user's is not in the copy

    def maps(one: Model, batch: Tensor) -> Tensor:
        return explain(one, batch, method, targets, layers, **options).maps

    forgetful = Forgetful(model, x)
    draws = tuple(range(seeds))
    total = (len(orders) + bool(smooth)) * explanations(len(forgetful.layers), seeds, stages)

    def tick() -> None:
        if progress:
            progress(total)

    def one(order: str, explainer: Any) -> Cascade:
        return cascade(model, x, explainer, order=order, seeds=draws, stages=stages, progress=tick, forgetful=forgetful)

    cascades = {order: one(order, maps) for order in orders}
    if smooth:
        cascades["smoothed"] = one("bottom-up", smoothed(maps, smooth))
    full = next((cascades[order] for order in cascades if order != "independent"), None)
    if full is None:
        full = cascades["all at once"] = cascade(model, x, maps, seeds=draws, stages=1, forgetful=forgetful)
    pixels = model.preprocess.pixels(x)
    edges = explain(None, pixels.cpu(), "edges").maps
    shape = full.original.shape
    found = explained_by(full.original.flatten(0, 1), edges.expand(shape).flatten(0, 1))
    shares = {name: value.view(shape[:2]) for name, value in found.items()}
    return Sanity(method, model.name, cascades, emprt(full.original, full.randomised), shares)


def _read(images: Any, model: Model) -> Tensor:
    sources = Sources.of(images)
    tensors, _, errors = sources.read(0, len(sources), model.preprocess)
    if errors:
        raise InputError(next(iter(errors.values())))
    return stack(tensors)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
