"""`explain()`: the one way from (model, images, methods) to Explanations. It plans the work that methods share."""

import importlib.metadata
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from heatproof.cam.saliency import resize
from heatproof.errors import InputError, MethodError, ModelError
from heatproof.explanation import Explanation, pixels_to_tensor
from heatproof.images import Sources, to_uint8
from heatproof.methods import Maps, Method, build, methods
from heatproof.models.batching import batch_limit
from heatproof.models.loading import as_model
from heatproof.models.model import Model, stack
from heatproof.models.preprocess import RAW, Preprocess
from heatproof.models.tape import Tape, placement, recording
from heatproof.models.targets import check_targets, resolve_targets, strings_in


@overload
def explain(
    model: Model | nn.Module | None, images: Any, method: str = ..., target: Any = None, layer: Any = None, **options: Any
) -> Explanation: ...


@overload
def explain(
    model: Model | nn.Module | None, images: Any, method: Sequence[str], target: Any = None, layer: Any = None, **options: Any
) -> dict[str, Explanation]: ...


def explain(
    model: Model | nn.Module | None,
    images: Any,
    method: str | Sequence[str] = "gradcam",
    target: Any = None,
    layer: Any = None,
    **options: Any,
) -> Explanation | dict[str, Explanation]:
    """Show where a model looked, by one method or several that share the work.

    Args:
        model: what `load()` or `wrap()` returned, a plain module, or None for methods that need none.
        images: a path, PIL image, `H×W×3` uint8 array, or a list of them; or a preprocessed float tensor
            `(3, H, W)` or `(B, 3, H, W)`, used as it is.
        method: a name of `methods()`, or a list of them.
        target: None for the top score, a class index, a label or prompt, a list with one per image, or a list of
            lists with T per image.
        layer: for methods that read a layer: a name from `named_modules()`, a module, or a list of them.
        options: of the methods; each takes those that it knows.

    Returns:
        An `Explanation`, or a dictionary of them by method name if `method` is a list.

    Raises:
        InputError: no image could be read, or a target that does not exist.
        ModelError: the model cannot take these images, or has no such layer.
        MethodError: no such method or option, or one that does not fit this model.
    """
    with recording(False):  # whatever mode the caller is in; tapes record where a method needs it
        try:
            explanations = _explain(model, images, method, target, layer, options)
        except CheckpointError as error:
            raise ModelError(
                "the model calls torch.utils.checkpoint, which runs parts of it again in a backward, where they cannot be "
                "followed; switch that off, or call it only while self.training."
            ) from error
    return explanations[method] if isinstance(method, str) else explanations


def _explain(
    model: Model | nn.Module | None, images: Any, method: str | Sequence[str], target: Any, layer: Any, options: dict[str, Any]
) -> dict[str, Explanation]:
    if not isinstance(method, str) and not (isinstance(method, list | tuple) and all(isinstance(one, str) for one in method)):
        raise MethodError(f"method={method!r}; expected a name, or a list of names. hp.methods() lists them all.")
    names = [method] if isinstance(method, str) else list(dict.fromkeys(method))
    if not names:
        raise MethodError("method=[] names no method; hp.methods() lists them all.")
    if layer is not None:
        options["layer"] = layer
    chosen = build(names, options)
    needs = {need for name in names for need in methods()[name].needs}
    model = None if model is None else as_model(model)
    if model is None and "model" in needs:
        needy = [name for name in names if "model" in methods()[name].needs]
        raise MethodError(f"method {needy[0]!r} needs a model and None came; pass hp.load(…) or hp.wrap(…).")
    sources = Sources.of(images)
    check_targets(target, len(sources))
    if model is not None:
        model = model.knowing(strings_in(target))
    collected = _collect(model, sources, chosen, needs, target, layer)
    return {name: _assemble(name, one, model, collected, sources) for name, one in chosen.items()}


@dataclass
class _Scene:
    """A batch without a model: what bottom-up methods and baselines are given."""

    pixels: Float[Tensor, "batch 3 height width"]
    targets: Int[Tensor, "batch 1"]

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[-2], self.pixels.shape[-1]


@dataclass
class _Collected:
    """Results so far, on the CPU, without any graph."""

    rows: list[int] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    maps: dict[str, list[Maps]] = field(default_factory=lambda: defaultdict(list))
    layers: tuple[str, ...] = ()
    errors: dict[int, str] = field(default_factory=dict)


def _collect(
    model: Model | None, sources: Sources, chosen: dict[str, Method], needs: set[str], target: Any, layer: Any
) -> _Collected:
    found = _Collected()
    preprocess = RAW if model is None else model.preprocess
    for tensors, rows, errors in chunks(sources, preprocess):
        found.errors |= errors
        if not rows:
            continue
        x = stack(tensors)
        if found.pixels and found.pixels[0].shape[1:3] != x.shape[-2:]:
            raise InputError(
                f"the images have different sizes, {tuple(found.pixels[0].shape[1:3])} and {tuple(x.shape[-2:])}; explain "
                "them in calls of one size each."
            )
        if model is None:
            _take(found, _Scene(x, torch.zeros(len(x), 1, dtype=torch.long)), chosen, rows)
        else:
            resolve = partial(_resolve, target, model.labels, rows)
            tape = _record(model, x, chosen, needs, layer, resolve)
            tape.aim(resolve(tape.scores, slice(None)))
            found.layers = tuple(site.name for site in tape.sites)
            found.scores.append(tape.target_scores.cpu())
            found.targets.append(tape.targets.cpu())
            _take(found, tape, chosen, rows)
        found.rows += rows
    if not found.rows:
        raise InputError(next(iter(found.errors.values())))
    for index, text in found.errors.items():
        warnings.warn(f"image {index}: {text} Its row is NaN.", stacklevel=5)
    return found


def chunks(sources: Sources, preprocess: Preprocess) -> Iterator[tuple[list[Tensor], list[int], dict[int, str]]]:
    """Images within the batch limit, which is known once the first one has been read."""
    start, limit = 0, None
    while start < len(sources):
        tensors, rows, errors = sources.read(start, start + (limit or 1), preprocess)
        start += limit or 1
        if limit is None and rows:
            limit = batch_limit(*tensors[0].shape[-2:])
            more = sources.read(start, start + limit - 1, preprocess)
            tensors, rows, errors = tensors + more[0], rows + more[1], errors | more[2]
            start += limit - 1
        yield tensors, rows, errors


def _resolve(target: Any, labels: Sequence[str] | None, rows: Sequence[int], scores: Tensor, which: slice) -> Tensor:
    return resolve_targets(target, scores, labels, rows[which])


def _record(
    model: Model, x: Tensor, chosen: dict[str, Method], needs: set[str], layer: Any, resolve: Callable[[Tensor, slice], Tensor]
) -> Tape:
    x = x.to(*placement(model.module))
    return Tape(
        model.module,
        model.readout,
        model.preprocess,
        x,
        model.sites(layer, x) if "layer" in needs or layer is not None else (),
        layer_gradients="layer gradient" in needs,
        input_gradient="input gradient" in needs,
        head="head" in needs,
        watch=_watch(chosen, needs),
        resolve=resolve,
        prompt=model.prompt_column if model.takes_prompts and model.tokenizer is not None else None,
    )


def _watch(chosen: dict[str, Method], needs: set[str]) -> Any:
    """The only reader of a forward may watch it, instead of running another; all methods that read attention are one."""
    readers = [name for name in chosen if "model" in methods()[name].needs]
    if len(readers) > 1 and needs - {"model", "attention", "attention gradient"}:
        return None
    # whoever asks for most watches for all
    return getattr(chosen[max(readers, key=lambda name: len(methods()[name].needs))], "watch", None) if readers else None


def _take(found: _Collected, tape: Tape | _Scene, chosen: dict[str, Method], rows: Sequence[int]) -> None:
    for name, one in chosen.items():
        # autocast is for the model; what needs none would only lose precision
        with nullcontext() if "model" in methods()[name].needs else torch.autocast(tape.pixels.device.type, enabled=False):
            result = one(tape)
        maps = result.raw if result.maps is None else result.maps
        maps = resize(maps.float(), tape.size)
        ledger = None if result.ledger is None else [row | {"image": rows[row["image"]]} for row in result.ledger]
        found.maps[name].append(
            replace(
                result,
                raw=_kept(result.raw),
                maps=_kept(maps),
                residual=_kept(result.residual),
                ledger=ledger,
                contributions=_kept(result.contributions),
                scanpath=_kept(result.scanpath),
            )
        )
    found.pixels.append(pixels_to_tensor(to_uint8(tape.pixels)))  # last: a method may be what takes most memory


def _kept(result: Tensor | None) -> Any:
    return None if result is None else result.detach().cpu()


def _assemble(name: str, one: Method, model: Model | None, found: _Collected, sources: Sources) -> Explanation:
    count = len(sources)

    def whole(parts: Sequence[Any], fill: float) -> Any:
        """All images in their order; the rows that failed are filled. None where the method gave nothing of the kind."""
        if not parts or parts[0] is None:
            return None
        rows = torch.cat(list(parts))
        if len(found.rows) == count:
            return rows
        full = rows.new_full((count, *rows.shape[1:]), fill)
        full[found.rows] = rows
        return full

    results = found.maps[name]
    targets = whole(found.targets, -1)
    options = {option: getattr(one, option) for option in methods()[name].options if option != "layer"}
    options |= results[0].resolved
    reads_layer = "layer" in methods()[name].needs or getattr(one, "layer", None) is not None
    return Explanation(
        maps=whole([r.maps for r in results], torch.nan),
        raw=whole([r.raw for r in results], torch.nan),
        images=whole(found.pixels, 0),
        signed=one.signed,
        method=name,
        options={key: _said(value) for key, value in options.items()},
        scores=whole(found.scores, torch.nan),
        targets=targets,
        target_names=None if targets is None else [[target_name(int(t), model) for t in row] for row in targets],
        residual=whole([r.residual for r in results], torch.nan),
        ledger=[row for r in results for row in r.ledger or ()] or None,
        contributions=whole([r.contributions for r in results], torch.nan),
        scanpath=whole([r.scanpath for r in results], torch.nan),
        layer=found.layers if reads_layer else (),
        model_name=None if model is None else model.name,
        versions=library_versions() | ({} if model is None else model.versions),
        names=sources.names,
        errors=found.errors,
    )


def target_name(index: int, model: Model | None) -> str:
    if index < 0:
        return "unreadable"
    labels = None if model is None else model.labels
    return labels[index] if labels is not None and index < len(labels) else f"class {index}"


def _said(value: Any) -> Any:
    """An option as the provenance keeps it: plain values as they are, tensors and objects by description."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return [_said(item) for item in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else repr(value)


def library_versions() -> dict[str, str]:
    return {"heatproof": importlib.metadata.version("heatproof"), "torch": str(torch.__version__)}
