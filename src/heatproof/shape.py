"""`shape()`: from a classifier's map to an object's outline."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from heatproof.errors import InputError, ModelError
from heatproof.explain import explain
from heatproof.explanation import Explanation
from heatproof.images import Sources
from heatproof.models.loading import as_model
from heatproof.models.model import Model, stack
from heatproof.models.sites import Site
from heatproof.models.tape import Tape, placement, recording
from heatproof.models.targets import strings_in
from heatproof.shaping.cut import cut
from heatproof.shaping.mask import Mask
from heatproof.shaping.refine import refine, stages

SCALES = (1.0, 1.5, 2.0)


def shape(model: Model | nn.Module | None, image: Any, target: Any = None, method: str = "gradcam", **options: Any) -> Mask:
    """Cut out what a classifier recognised, without having been trained on any outline.

    Maps of the target are made at several sizes of the image and averaged, refined from coarse to fine by guided filtering
    along the principal components of shallower features, and cut out along the image's own colours.

    Args:
        model: what `load()` or `wrap()` returned, or a module; convolutional, or a transformer.
        image: one image, as `explain()` takes it.
        target: None for the top score, a class index, a label or a prompt.
        method: what makes the map, a name of `methods()`; its negative values count nothing.
        options: of the method, and `layer=`.

    Returns:
        A `Mask` at the size of the model's input.

    Raises:
        InputError: several images or targets came, or the image cannot be read.
        ModelError: the model cannot take the image, or is None. MethodError: no such method or option.

    Misleads where a class is known by a part of the object, or by what it stands on: the outline is that of what the map
    marks, drawn sharply. A sharp outline is not a proof; `prove()` the map.

    Paper: Ha, Franchi, Moeller, Kolb, Blanz 2018, "Segmentation and Shape Extraction from Convolutional Neural Networks".
    """
    model = as_model(model)
    x = _one(image, model)
    model = model.knowing(strings_in(target))
    size = (x.shape[-2], x.shape[-1])
    first = _explained(model, x, target, method, options)
    if first.maps.shape[1] != 1 or first.targets is None or first.target_names is None:
        raise InputError(f"{first.maps.shape[1]} targets came; shape() cuts out one. Call it once for each.")
    index = int(first.targets[0, 0])
    found = model.survey(x)
    start = found.sites.get(first.layer[0]) if first.layer else found.default
    maps, scales = [_unit(first.maps[:, 0])], [1.0]
    for scale in SCALES[1:]:
        try:
            again = _explained(model, _larger(x, scale, start), index, method, options)
        except ModelError:  # a network for one size of images
            break
        maps.append(_unit(interpolate(again.maps, list(size), mode="bilinear", align_corners=False)[:, 0]))
        scales.append(scale)
    coarse = _unit(torch.stack(maps).sum(0))
    pixels = model.preprocess.pixels(x).cpu()
    soft = _unit(refine(coarse, [] if start is None else _guides(model, x, found.sites, start), pixels))
    return Mask(
        mask=cut(soft[0].numpy().astype("float64"), pixels[0].permute(1, 2, 0).numpy().astype("float64")),
        soft=soft[0].numpy(),
        coarse=coarse[0].numpy(),
        image=first.images[0].numpy(),
        target=index,
        target_name=first.target_names[0][0],
        method=method,
        model_name=model.name,
        scales=tuple(scales),
    )


def _one(image: Any, model: Model) -> Float[Tensor, "1 3 height width"]:
    sources = Sources.of(image)
    if len(sources) != 1:
        raise InputError(f"{len(sources)} images came; shape() takes one. Call it once for each.")
    tensors, _, errors = sources.read(0, 1, model.preprocess)
    if errors:
        raise InputError(errors[0])
    return stack(tensors)


def _explained(model: Model, x: Tensor, target: Any, method: str, options: dict[str, Any]) -> Explanation:
    made = explain(model, x, method, target, **options)
    assert isinstance(made, Explanation)  # one method went in
    return made


def _larger(x: Tensor, scale: float, start: Site | None) -> Tensor:
    """The image at a larger size, whole cells of the network's grid."""
    grid = (x.shape[-2], x.shape[-1]) if start is None else (start.height, start.width)
    size = [round(cells * scale) * round(side / cells) for side, cells in zip(x.shape[-2:], grid, strict=True)]
    return interpolate(x, size, mode="bilinear", align_corners=False)


def _unit(maps: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch height width"]:
    """The positive part, stretched to [0, 1]; nothing where there is none."""
    positive = maps.float().clamp_min(0)
    low, high = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
    return torch.where(high > low, (positive - low) / (high - low).clamp_min(1e-30), 0.0)


def _guides(model: Model, x: Tensor, sites: dict[str, Site], start: Site) -> list[tuple[tuple[int, int], Tensor | None]]:
    """What each stage's layer sees, from one forward."""
    plan = stages(sites, start, (x.shape[-2], x.shape[-1]))
    wanted = [site for _, site in plan if site is not None]
    with recording(False):
        tape = Tape(model.module, model.readout, model.preprocess, x.to(*placement(model.module)), wanted)
        features = {site.name: one.cpu() for site, one in zip(wanted, tape.activations, strict=True)}
    return [(grid, None if site is None else features[site.name]) for grid, site in plan]
