"""Concept hallucination against planted truth: is the score about the object, or about what it usually stands on?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from heatproof.errors import InputError, MethodError
from heatproof.explain import explain
from heatproof.models.model import Model
from heatproof.models.planted import Scene, World
from heatproof.models.planted.words import PROMPT
from heatproof.proof.bootstrap import Mean, bootstrap_mean
from heatproof.proof.localisation import iou
from heatproof.proof.presence import threshold, twins_auroc
from heatproof.scale.segmentation import squeezed
from heatproof.tokens.chili import fit, split
from heatproof.tokens.chili_weights import ChiliWeights

KINDS = ("raw", "registers_removed", "object")
"""What is compared: the model's own score with the map of all that tokens add to it, that map behind the median filter
with its sum, and what of it comes through heads that look at objects."""

WEIGHTED = "heads_only"
"""For the table alone: the head weights without the median filter."""

COLUMNS = {"auroc": "AUROC", "hallucination": "hallucination", "iou": "IoU"}

_ALL = (*KINDS, WEIGHTED)
_BATCH = 16
_PROBING, _HELD_OUT = 0, 1  # streams of scenes that share none


@dataclass(frozen=True, eq=False)
class Planted:
    """What was measured on the held-out scenes, by kind.

    Args:
        objects: for each scene, which object it is about.
        scores: `(S, 2, 2)`: scene, without or with the object, on another context or on the object's own.
        thresholds: one per object.
        overlap: `(S,)` IoU of the map with the object, mean over both contexts.
    """

    objects: list[int]
    scores: dict[str, Float[ndarray, "scenes 2 2"]]
    thresholds: dict[str, Float[ndarray, " objects"]]
    overlap: dict[str, Float[ndarray, " scenes"]]


def aimed(model: Model) -> Model:
    """The model with one prompt per planted object, or as it is if its labels name them.

    Raises:
        MethodError: a classifier of other things.
    """
    world = World()
    if model.takes_prompts:
        return model.with_prompts([PROMPT.format(o=name) for name in world.objects])
    missing = [name for name in world.objects if name not in (model.labels or ())]
    if missing:
        raise MethodError(
            f"{model.name} has no class {missing[0]!r}; planted scenes need an image-text model such as planted-clip."
        )
    return model


def measure(
    model: Model, scenes: int = 160, probing: int = 160, seed: int = 0, step: Callable[[int], Any] = lambda _: None
) -> tuple[Planted, ChiliWeights]:
    """Fit head weights and thresholds on some scenes, and score others.

    Args:
        model: as `aimed` returns it.
        scenes: how many are scored, at least 16. Each comes with and without its object, on the object's own context and on
            another, all else equal: four images.
        probing: how many head weights and thresholds are drawn from, at least 64. Objects and contexts say nothing of each
            other there.
        seed: of all scenes.
        step: called with the number of images that are done.

    Returns:
        What was measured, and the head weights.

    Raises:
        InputError: too few scenes. MethodError: a model that textspan cannot decompose.
    """
    if scenes < 16 or probing < 64:
        raise InputError(f"{scenes} scenes and {probing} for probing came; expected at least 16 and 64.")
    world = World(correlation=0.0, size=max(model.preprocess(Image.new("RGB", (64, 64))).shape[-1], 32))
    targets = [model.labels.index(_label(model, name)) for name in world.objects] if model.labels else []
    probes = list(world.scenes(probing, _seed(seed, _PROBING)))
    weights = fit(model, ((_tensor(model, s), _mask(model, s), targets[world.objects.index(s.object or "")]) for s in probes))
    step(probing)
    known: dict[str, list[ndarray]] = {kind: [] for kind in _ALL}
    for part in _parts(probes):
        for kind, (score, _) in _scored(model, part, [targets] * len(part), weights).items():
            known[kind].append(score.numpy())
        step(len(part))
    names = np.array([world.objects.index(s.object or "") for s in probes])
    thresholds = {
        kind: np.array([threshold(np.concatenate(rows)[:, n], names == n) for n in range(len(targets))])
        for kind, rows in known.items()
    }

    held_out = _held_out(world, scenes, seed)
    about = [world.objects.index(name) for name, _ in held_out]
    scores = {kind: np.zeros((scenes, 2, 2)) for kind in _ALL}
    overlap = {kind: np.zeros(scenes) for kind in _ALL}
    for rows in np.array_split(np.arange(scenes), -(-scenes // (_BATCH // 4))):
        twins = [twin for row in rows for twin in held_out[row][1]]
        wanted = [[targets[about[row]]] for row in rows for _ in range(4)]
        masks = torch.stack([_mask(model, twin) for twin in twins])
        for kind, (score, maps) in _scored(model, twins, wanted, weights).items():
            scores[kind][rows] = score.numpy().reshape(-1, 2, 2)
            large = interpolate(maps, list(masks.shape[1:]), mode="bilinear", align_corners=False)[:, 0].clamp_min(0)
            shown = masks.flatten(1).any(1)
            overlap[kind][rows] = iou(large[shown], masks[shown], "mean").numpy().reshape(-1, 2).mean(1)
        step(len(twins))
    return Planted(about, scores, thresholds, overlap), weights


def images(scenes: int, probing: int) -> int:
    """How many images `measure` counts in steps."""
    return 2 * probing + 4 * scenes


def summary(found: Planted, seed: int = 0) -> dict[str, dict[str, Mean]]:
    """By kind `auroc`, `hallucination` and `iou`, each with a 95 % interval from a bootstrap over scenes.

    `auroc` is that of presence, with or without the object, mean over objects; `hallucination` the share of images without
    the object, on its own context, that score above the object's threshold; `iou` that of the map, clipped at 0 and cut at
    its mean, with the object. Further rows are differences, scene by scene, such as `object − raw`.
    """
    areas = {kind: twins_auroc(*_by_object(found, kind), seed=seed) for kind in _ALL}
    false = {kind: (found.scores[kind][:, 0, 1] > found.thresholds[kind][found.objects]).astype(float) for kind in _ALL}
    table = {
        kind: {
            "auroc": areas[kind][0],
            "hallucination": bootstrap_mean(false[kind], seed=seed),
            "iou": bootstrap_mean(found.overlap[kind], seed=seed),
        }
        for kind in _ALL
    }
    for kind in _ALL[1:]:
        low, high = np.quantile(areas[kind][1] - areas["raw"][1], [0.025, 0.975])
        gained = areas[kind][0].value - areas["raw"][0].value
        table[f"{kind} − raw"] = {
            "auroc": Mean(gained, float(low), float(high), len(found.objects)),
            "hallucination": bootstrap_mean(false[kind] - false["raw"], seed=seed),
            "iou": bootstrap_mean(found.overlap[kind] - found.overlap["raw"], seed=seed),
        }
    return table


def document(table: dict[str, dict[str, Mean]], count: int) -> dict[str, Any]:
    """What `--json` prints."""
    rows: dict[str, Any] = {
        kind: {
            "auroc": row["auroc"].value,
            "auroc_ci": [row["auroc"].low, row["auroc"].high],
            "hallucination": row["hallucination"].value,
            "iou": row["iou"].value,
        }
        for kind, row in table.items()
        if kind in KINDS
    }
    return rows | {"n": count}


def told(value: Mean) -> str:
    """A number as the table shows it, with its interval."""
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _held_out(world: World, count: int, seed: int) -> list[tuple[str, list[Scene]]]:
    """Scenes about each object in turn, as four twins: without it and with it, elsewhere and at home."""
    made = []
    rng = np.random.default_rng(_seed(seed, _HELD_OUT))
    for n in range(count):
        name = world.objects[n % len(world.objects)]
        others = [context for context in world.contexts if context != world.own[name]]
        scene = world.scene(rng, name, others[rng.integers(len(others))])
        home = scene.on(world.own[name])
        made.append((name, [scene.without_object(), home.without_object(), scene, home]))
    return made


def _seed(seed: int, stream: int) -> int:
    """Far from the seeds that anybody would train with."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"seed={seed!r}; expected a whole number from 0 to 2³² − 1.")
    return 2**48 + 2 * seed + stream


def _label(model: Model, name: str) -> str:
    return PROMPT.format(o=name) if model.takes_prompts else name


def _tensor(model: Model, scene: Scene) -> Tensor:
    return squeezed(Image.fromarray(scene.image), model)


def _mask(model: Model, scene: Scene) -> Tensor:
    """The object's mask, at the size of the model's input."""
    size = model.preprocess(Image.new("RGB", (64, 64))).shape[-2:]
    mask = torch.from_numpy(scene.object_mask)
    return mask if mask.shape == size else interpolate(mask[None, None].float(), list(size))[0, 0] > 0.5


def _parts(scenes: Sequence[Scene]) -> Iterator[Sequence[Scene]]:
    return (scenes[at : at + _BATCH] for at in range(0, len(scenes), _BATCH))


def _scored(model: Model, scenes: Sequence[Scene], targets: list, weights: ChiliWeights) -> dict[str, tuple[Tensor, Tensor]]:
    """By kind the scores `(B, T)` and the maps `(B, T, h, w)`."""
    x = torch.stack([_tensor(model, scene) for scene in scenes])
    found = explain(model, x, "textspan", target=targets)
    assert not isinstance(found, dict)  # one method went in
    assert found.contributions is not None and found.scores is not None
    parts = split(found, weights)
    clean = parts.object + parts.context
    patches = found.contributions[..., -clean[0, 0].numel() :].unflatten(-1, clean.shape[2:])
    weighted = torch.einsum("btlhij,lh->btij", patches, weights.values.to(patches))
    maps = {"registers_removed": clean, "object": parts.object, WEIGHTED: weighted}
    return {"raw": (found.scores, clean + parts.register)} | {kind: (one.sum((2, 3)), one) for kind, one in maps.items()}


def _by_object(found: Planted, kind: str) -> tuple[list[ndarray], list[ndarray]]:
    about = np.array(found.objects)
    rows = [np.flatnonzero(about == n) for n in np.unique(about)]
    return [found.scores[kind][row, 1] for row in rows], [found.scores[kind][row, 0] for row in rows]
