"""Score methods as segmentations and by where they point, over a folder of images and masks."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from heatproof.errors import HeatproofError, InputError, MethodError, ModelError
from heatproof.explain import explain
from heatproof.images import read_image, to_tensor
from heatproof.masks import LEFT_OUT, OBJECT, Masked, read_mask
from heatproof.methods import methods as registry
from heatproof.models.batching import batch_limit
from heatproof.models.model import Model
from heatproof.models.preprocess import RAW
from heatproof.models.tape import placement
from heatproof.models.targets import find_label
from heatproof.proof import localisation
from heatproof.proof.bootstrap import Mean, bootstrap_mean
from heatproof.proof.segmentation import Segmentation
from heatproof.storage import written_whole

POOLED = {"pixel_accuracy": "pixel acc.", "miou": "mIoU", "map": "mAP"}
"""What is told of each method over the whole data set."""

SINGLE = {"pointing": "pointing", "energy": "energy", "rank": "rank acc.", "iou_best": "best IoU"}
"""What is told of each image with an object in it, and averaged."""


@dataclass(frozen=True)
class Scored:
    """What came of one image, by method, or a sentence that says why nothing came."""

    name: str
    target: str | None = None
    segmentations: dict[str, Segmentation] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    error: str | None = None


def aimed(model: Model, data: Sequence[Masked]) -> Model:
    """The model with every text of the data set among its prompts; a classifier as it is.

    All images are compared with all prompts, so that "the predicted class" means something.

    Raises:
        ModelError: an image–text model, and no prompt at all.
    """
    model = model.knowing(one.target for one in data if isinstance(one.target, str))
    if model.takes_prompts and not model.labels:
        raise ModelError(f"{model.name} compares images with texts and there is none; pass --prompt, or write targets.json.")
    return model


def score_images(
    data: Sequence[Masked],
    model: Model | None,
    methods: Sequence[str],
    *,
    layer: Any = None,
    options: Mapping[str, Any] | None = None,
    void: int | None = None,
) -> Iterator[Scored]:
    """Score every image's maps against its mask, in groups of one size within the batch limit.

    The whole image is brought to the model's input size, squeezed if need be, and so is the mask, by nearest pixels: a
    crop could cut the object away.

    Args:
        data: images, masks and targets.
        model: what is explained, as `aimed` returns it; None for methods that need none.
        methods: their names.
        layer: as `explain()` takes it.
        options: of the methods.
        void: a value of mask pixels that count neither as object nor as background.

    Yields:
        One `Scored` per image, in order.

    Raises:
        MethodError: no such method or option. ModelError: no such layer, or preprocessing that is not known.
    """
    group: list[_Read] = []
    for one in data:
        try:
            read = _read(one, model, void)
        except HeatproofError as error:
            if isinstance(error, ModelError):
                raise
            yield from _score_group(group, model, methods, layer, options or {})
            group = []
            yield Scored(one.name, error=f"{one.name!r}: {error}")
            continue
        if group and (group[0].x.shape != read.x.shape or len(group) >= batch_limit(*read.x.shape[-2:])):
            yield from _score_group(group, model, methods, layer, options or {})
            group = []
        group.append(read)
    yield from _score_group(group, model, methods, layer, options or {})


@dataclass(frozen=True)
class _Read:
    masked: Masked
    x: Tensor
    classes: np.ndarray


def _read(one: Masked, model: Model | None, void: int | None) -> _Read:
    image = read_image(one.path)
    x = squeezed(image, model)
    if model is not None and isinstance(one.target, str):
        find_label(one.target, model.labels)  # a wrong target costs this image, not its group
    return _Read(one, x, read_mask(one.mask, (x.shape[-2], x.shape[-1]), void))


def squeezed(image: Image.Image, model: Model | None) -> Float[Tensor, "3 height width"]:
    """The whole image at the model's input size, normalised; without a model as it is.

    Raises:
        ModelError: the normalisation inside the model's preprocessing is not known.
    """
    preprocess = RAW if model is None else model.preprocess
    if preprocess.mean is None or preprocess.std is None:
        raise ModelError("the normalisation inside this model's preprocess= is not known; pass one with mean and std.")
    height, width = preprocess(image).shape[-2:]
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return (to_tensor(image) - mean) / std


def _score_group(
    group: Sequence[_Read], model: Model | None, names: Sequence[str], layer: Any, options: Mapping[str, Any]
) -> Iterator[Scored]:
    if not group:
        return
    x = torch.stack([one.x for one in group])
    target = None if model is None else [one.masked.target for one in group]
    if model is not None and layer is not None and any("layer" in registry()[name].needs for name in names):
        model.sites(layer, x.to(*placement(model.module)))  # outside the try: a wrong layer is no fault of an image
    try:
        made = explain(model, x, list(names), target, layer, **options)
    except MethodError:
        raise
    except HeatproofError as error:
        if len(group) == 1:
            yield Scored(group[0].masked.name, error=f"{group[0].masked.name!r}: {error}")
        else:  # one image can spoil its group
            for one in group:
                yield from _score_group([one], model, names, layer, options)
        return
    assert isinstance(made, dict)  # a list of methods went in
    for i, one in enumerate(group):
        yield _score_one(one, {name: ex.maps[i, :1] for name, ex in made.items()}, next(iter(made.values())).target_names, i)


def _score_one(one: _Read, maps: Mapping[str, Tensor], targets: Sequence[Sequence[str]] | None, i: int) -> Scored:
    classes = torch.from_numpy(one.classes)[None]
    mask, void = classes == OBJECT, classes == LEFT_OUT
    scored = Scored(one.masked.name, None if targets is None else targets[i][0])
    try:
        for name, heat in maps.items():
            scored.segmentations[name] = Segmentation()
            scored.segmentations[name].update(heat, mask, void)
            if mask.any():
                scored.scores[name] = {
                    "pointing": localisation.pointing_game(heat, mask, void=void).item(),
                    "energy": localisation.energy_pointing(heat, mask, void).item(),
                    "rank": localisation.relevance_rank(heat, mask, void).item(),
                    "iou_best": localisation.iou(heat, mask, "best", void).item(),
                }
    except InputError as error:
        return Scored(one.masked.name, error=f"{one.masked.name!r}: {error}")
    return scored


def summary(rows: Sequence[Scored], seed: int = 0) -> dict[str, dict[str, Any]]:
    """By method, the best mIoU first: pooled scores as numbers, the others as means with a 95 % interval over images.

    Raises:
        InputError: no image was scored.
    """
    done = [row for row in rows if row.error is None]
    if not done:
        raise InputError("no image could be scored; the lines above say why.")
    table: dict[str, dict[str, Any]] = {}
    for name in done[0].segmentations:
        total = Segmentation()
        for row in done:
            total = total.merge(row.segmentations[name])
        singles = {
            score: bootstrap_mean(np.array([row.scores[name][score] for row in done if name in row.scores]), seed=seed)
            for score in SINGLE
        }
        table[name] = {**total.compute(), **singles}
    return dict(sorted(table.items(), key=lambda item: -item[1]["miou"]))


def told(value: float | Mean) -> str:
    """A number as the table shows it, a mean with half the width of its interval."""
    return f"{value.value:.3f} ±{(value.high - value.low) / 2:.3f}" if isinstance(value, Mean) else f"{value:.3f}"


def document(
    table: Mapping[str, Mapping[str, Any]], rows: Sequence[Scored], failed: Mapping[str, str], model: str | None
) -> dict[str, Any]:
    """Everything in plain values, for JSON: the summary, each image's scores, and why images failed."""
    return {
        "model": model,
        "summary": [{"method": name} | {key: _plain(value) for key, value in row.items()} for name, row in table.items()],
        "images": {row.name: {"target": row.target, "scores": row.scores} for row in rows if row.error is None},
        "failed": dict(failed),
        "conventions": {
            "size": "the whole image squeezed to the model's input, masks by nearest pixels",
            "segmentation": "map clipped at 0, stretched, foreground above its mean; counts pooled over the images",
            "map": "mean over images; soft map and one minus it together",
            "pointing": "no tolerance",
            "interval": "95 %, bootstrap over images",
        },
    }


def _plain(value: float | Mean) -> Any:
    if isinstance(value, Mean):
        return {key: number if np.isfinite(number) else None for key, number in asdict(value).items()}
    return value


def write(document: Mapping[str, Any], folder: Path) -> Path:
    """Write `segmentation.json`.

    Raises:
        InputError: the folder cannot be written to.
    """
    file = folder / "segmentation.json"
    with written_whole(file, "the table", "choose another folder with -o") as temporary:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False), "utf-8")
    return file
