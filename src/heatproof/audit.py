"""`audit()`: a method's card on planted truth, like the label on a tin: what it finds, what it misses, what it costs."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from heatproof.errors import HeatproofError, InputError, MethodError
from heatproof.explain import explain
from heatproof.explanation import Explanation
from heatproof.images import read_image
from heatproof.methods import Row, methods
from heatproof.models import load
from heatproof.models.model import Model
from heatproof.models.planted import World
from heatproof.models.planted.constructed import CONSTRUCTED
from heatproof.proof.bootstrap import Mean, bootstrap_mean
from heatproof.proof.card import Card, CaseResult
from heatproof.proof.judges import JUDGES, SAID
from heatproof.proof.localisation import energy_pointing, iou, pointing_game
from heatproof.prove import prove
from heatproof.sanity import sanity

_SIZE = (32, 48)
_REPEATS = 5


def audit(method: str, scenes: int = 24, seed: int = 0, progress: Callable[[str], None] | None = None, **options: Any) -> Card:
    """Try a method where the truth is known: constructed networks, planted scenes, interventions and sanity checks.

    Args:
        method: a name of `methods()`.
        scenes: planted scenes, at least 4. More make every interval narrower.
        seed: of scenes and layouts.
        progress: called with a few words on what comes next.
        options: of the method.

    Returns:
        A `Card`; print it for the sentences.

    Raises:
        MethodError: no such method or option. InputError: fewer than 4 scenes.
    """
    if isinstance(scenes, bool) or not isinstance(scenes, int) or scenes < 4:
        raise InputError(f"scenes={scenes!r}; expected a whole number of at least 4.")
    if not isinstance(method, str):
        raise MethodError(f"method={method!r}; expected one name. hp.methods() lists them all.")
    say = progress or (lambda _: None)
    row = methods()[method]
    unknown = [name for name in options if name not in row.options]
    if unknown:
        raise MethodError(f"{method} has no option {unknown[0]!r}; it has {', '.join(row.options) or 'none'}.")
    scene = _scenes(scenes, seed)
    model = _model(row)
    notes: list[str] = []
    say("constructed networks")
    cases = _cases(row, options, seed)
    say("planted scenes")
    maps, found = _planted(row, model, scene, options)
    masks = torch.from_numpy(np.stack([one.object_mask for one in scene.scenes]))
    say("interventions")
    targets = [[target] for target in _targets(scene)]
    verdict = prove(model, scene.x, maps[:, None], tests=[], budget=150, seed=seed, target=targets)
    say("sanity checks")
    kept, depends = _sane(row, model, scene, options, seed, notes)
    residual, unbalanced = _balance(found)
    say("cost")
    return Card(
        method=method,
        family=row.family,
        model=model.name,
        scenes=scenes,
        cases=cases,
        localisation=_localised(maps, masks),
        honest=_honest(model, scene, maps, masks),
        supported=float(verdict.supported.double().mean()),
        kept=kept,
        depends_on_model=depends,
        residual=residual,
        unbalanced=unbalanced,
        cost=_cost(row, model, scene, options),
        deterministic=torch.equal(_planted(row, model, scene, options)[0], maps),
        notes=tuple(notes),
    )


def needs_tokens(row: Row) -> bool:
    """Whether a method fits vision transformers alone."""
    return row.family == "tokens"


@dataclass(frozen=True)
class _Scenes:
    """Planted scenes, each with the twin without its object and the twin on another context."""

    scenes: tuple[Any, ...]
    names: tuple[str, ...]
    x: Tensor
    empty: Tensor
    elsewhere: Tensor


@cache
def _scenes(count: int, seed: int) -> _Scenes:
    world = World(correlation=0.5)
    scenes = tuple(world.scenes(count, seed + 10_000))
    others = [world.contexts[(world.contexts.index(one.context) + 1 + n % 7) % 8] for n, one in enumerate(scenes)]
    preprocess = load("planted-cnn").preprocess

    def tensors(images: Sequence[Any]) -> Tensor:
        return torch.stack([preprocess(read_image(one.image)) for one in images])

    elsewhere = [one.on(context) for one, context in zip(scenes, others, strict=True)]
    return _Scenes(
        scenes,
        tuple(str(one.object) for one in scenes),
        tensors(scenes),
        tensors([one.without_object() for one in scenes]),
        tensors(elsewhere),
    )


def _model(row: Row) -> Model:
    if not needs_tokens(row):
        return load("planted-cnn")
    return load("planted-clip").with_prompts([f"a photo of a {name}" for name in World().objects])


def _planted(row: Row, model: Model, scene: _Scenes, options: dict[str, Any]) -> tuple[Tensor, Explanation]:
    """Maps `(B, H, W)` of the scenes' own objects, and their explanation."""
    if "model" not in row.needs:
        found = _one(explain(None, model.preprocess.pixels(scene.x), row.name, **options))
    else:
        found = _one(explain(model, scene.x, row.name, [[target] for target in _targets(scene)], **options))
    return found.maps[:, 0], found


def _one(found: Any) -> Explanation:
    assert isinstance(found, Explanation)  # one method went in
    return found


def _targets(scene: _Scenes) -> list[int]:
    objects = World().objects
    return [objects.index(name) for name in scene.names]


def _localised(maps: Tensor, masks: Tensor) -> dict[str, Mean]:
    height, width = maps.shape[-2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    centre = torch.exp(-2 * (x.square() + y.square())).expand_as(maps)
    found = {}
    for prefix, heat in (("", maps), ("center ", centre)):
        found[f"{prefix}pointing"] = bootstrap_mean(pointing_game(heat, masks).double().numpy())
        found[f"{prefix}energy"] = bootstrap_mean(energy_pointing(heat, masks).double().numpy())
        found[f"{prefix}iou"] = bootstrap_mean(iou(heat, masks, "best").double().numpy())
    return found


def _honest(model: Model, scene: _Scenes, maps: Tensor, masks: Tensor) -> float | None:
    """Rank correlation of said and done; None where one of them never changes."""
    picked = torch.tensor(_targets(scene))[:, None]
    whole, empty, elsewhere = (
        model.scores(x).float().cpu().gather(1, picked)[:, 0] for x in (scene.x, scene.empty, scene.elsewhere)
    )
    lost, moved = (whole - empty).clamp_min(0), (whole - elsewhere).clamp_min(0)
    done = (lost / (lost + moved).clamp_min(1e-6)).numpy()
    said = energy_pointing(maps, masks).numpy()
    usable = np.isfinite(said)
    if usable.sum() < 4 or np.ptp(said[usable]) == 0 or np.ptp(done[usable]) == 0:
        return None
    return float(spearmanr(said[usable], done[usable]).statistic)


def _sane(
    row: Row, model: Model, scene: _Scenes, options: dict[str, Any], seed: int, notes: list[str]
) -> tuple[Mean | None, bool | None]:
    if "model" not in row.needs:
        return None, None
    count = min(8, len(scene.x))
    targets = [[target] for target in _targets(scene)[:count]]
    try:
        checked = sanity(model, scene.x[:count], row.name, targets, orders=("top-down",), seeds=2, stages=1, **options)
    except HeatproofError as error:
        notes.append(f"no sanity check: {error}")
        return None, None
    return checked.kept, checked.depends_on_model


def _balance(found: Explanation) -> tuple[float | None, float | None]:
    if found.residual is None or found.scores is None:
        return None, None
    parts = found.raw if found.contributions is None else found.contributions
    size = found.scores.abs().clamp_min(1e-12)
    off = (parts.flatten(2).sum(2) + found.residual - found.scores).abs() / size
    return float((found.residual.abs() / size).median()), float(off.max())


def _cost(row: Row, model: Model, scene: _Scenes, options: dict[str, Any]) -> float:
    """Median over repeats of a map's time in forwards of the same image, the two taking turns."""
    x = scene.x[:4]
    ratios = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        model.scores(x)
        middle = time.perf_counter()
        if "model" in row.needs:
            explain(model, x, row.name, **options)
        else:
            explain(None, x, row.name, **options)
        ratios.append((time.perf_counter() - middle) / (middle - start))
    return statistics.median(ratios)


def _cases(row: Row, options: dict[str, Any], seed: int) -> dict[str, CaseResult]:
    if needs_tokens(row):
        return {}  # the constructed networks are convolutional
    return {name: _case(row, options, name, seed) for name in CONSTRUCTED}


def _case(row: Row, options: dict[str, Any], name: str, seed: int) -> CaseResult:
    values = []
    for n in range(3):
        case = CONSTRUCTED[name](size=_SIZE, seed=seed + n)
        try:
            if "model" in row.needs:
                heat = _one(explain(case.model, case.x, row.name, case.target, **options)).maps[0, 0]
            else:
                heat = _one(explain(None, case.model.preprocess.pixels(case.x), row.name, **options)).maps[0, 0]
        except HeatproofError as error:
            return CaseResult(None, math.nan, f"{name}: does not apply ({error})")
        values.append(JUDGES[name](heat, case))
    value = statistics.fmean(values)
    sentence, least = SAID[name]
    return CaseResult(value >= least, value, f"{name}: {sentence.format(value)}")
