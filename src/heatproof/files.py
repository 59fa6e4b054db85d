"""From image files to explanation files: what the command line does with each image, one group in memory at a time."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from heatproof.errors import InputError, ModelError
from heatproof.explain import explain
from heatproof.explanation import Explanation
from heatproof.images import SUFFIXES, check_tensor, read_image
from heatproof.methods import methods
from heatproof.models.batching import batch_limit
from heatproof.models.model import Model
from heatproof.models.preprocess import RAW
from heatproof.models.tape import placement
from heatproof.report.page import Extras, page, write_page
from heatproof.report.panel import panel
from heatproof.storage import written_whole


@dataclass(frozen=True)
class Request:
    """What is asked of every image.

    Args:
        model: what is explained, None for methods that need none.
        methods: their names.
        targets: class indices that are explained of each image, None for its top score.
        layer: names of layers, None for the last spatial features.
        options: of the methods.
        classes: how many of an image's highest classes are told besides.
    """

    model: Model | None
    methods: Sequence[str]
    targets: Sequence[int] | None = None
    layer: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    classes: int = 0


@dataclass(frozen=True)
class Result:
    """What came of one image: explanations by method, or a sentence that says why there are none."""

    index: int
    explanations: dict[str, Explanation] = field(default_factory=dict)
    classes: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


def natural(path: str | os.PathLike) -> list[Any]:
    """A key that sorts `img2` before `img10`."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", str(path))]


def expand(arguments: Iterable[str]) -> tuple[list[Path], dict[str, str]]:
    """The image files that files, folders and glob patterns stand for.

    Args:
        arguments: paths. A folder stands for the images in it (not in its subfolders); a pattern such as
            `photos/**/*.jpg` for the files that match it.

    Returns:
        The files, each once, those of a folder or pattern in natural order; and a sentence for each argument that
        stands for nothing.
    """
    files: list[Path] = []
    failed: dict[str, str] = {}
    for argument in arguments:
        path = Path(argument)
        try:
            if not argument:  # a shell's variable that is not set; Path would take it for the current folder
                found, empty = [], "an empty name came; pass image files, folders or patterns."
            elif path.is_dir():
                inside = (p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
                found = sorted((p for p in inside if p.is_file()), key=natural)
                empty = f"the folder {argument!r} has no images in it; expected files ending in {', '.join(sorted(SUFFIXES))}."
            elif glob.has_magic(argument) and not path.exists():  # a file really called a[1].jpg is itself
                found = sorted((Path(p) for p in glob.glob(argument, recursive=True) if Path(p).is_file()), key=natural)
                empty = f"the pattern {argument!r} matches no file; check it from the current folder."
            else:
                found, empty = [path], ""  # reading it says what is wrong with it
        except OSError as error:
            found, empty = [], f"{argument!r} cannot be looked into ({error.strerror}); check its name and permissions."
        files += found
        if not found:
            failed[argument] = empty
    return list(dict.fromkeys(files)), failed


def slug(text: str, size: int, empty: str) -> str:
    """Text as a part of a file name: letters, digits, `+`, `_` and `-` of any script, at most `size` bytes."""
    plain = re.sub(r"[^\w+]+", "-", text).strip("-")
    return plain.encode()[:size].decode(errors="ignore").strip("-") or empty


def unique(names: Iterable[str]) -> list[str]:
    """The names, with `-2`, `-3` … where one came before, also where a file system does not tell `A` from `a`."""
    taken: set[str] = set()
    last: dict[str, int] = {}
    result = []
    for name in names:
        chosen, count = name, last.get(name.casefold(), 1)
        while chosen.casefold() in taken:
            count += 1
            chosen = f"{name}-{count}"
        last[name.casefold()] = count
        taken.add(chosen.casefold())
        result.append(chosen)
    return result


def stems(paths: Iterable[Path]) -> list[str]:
    """A name for the output of each file; no dot in it, so that dots part image, method and target."""
    return unique(slug(path.stem, 100, "image") for path in paths)


def explain_files(request: Request, paths: Sequence[Path]) -> Iterator[Result]:
    """Explain files in order, in groups of neighbours with one input size, as many at once as the batch limit allows.

    Yields:
        One `Result` per path. Memory holds one group.

    Raises:
        InputError, MethodError: a target, option or method that cannot be served for any image.
        ModelError: a layer that does not exist or is no map.
    """
    preprocess = RAW if request.model is None else request.model.preprocess
    group: list[tuple[int, Path, Tensor]] = []
    for index, path in enumerate(paths):
        try:
            x = check_tensor(preprocess(read_image(path)))[0]
        except (InputError, OSError) as error:
            yield from _explain_group(request, group)
            yield Result(index, error=str(error))
            group = []
            continue
        if group and (group[0][2].shape != x.shape or len(group) >= batch_limit(*x.shape[-2:])):
            yield from _explain_group(request, group)
            group = []
        group.append((index, path, x))
    yield from _explain_group(request, group)


def _explain_group(request: Request, group: list[tuple[int, Path, Tensor]]) -> Iterator[Result]:
    if not group:
        return
    x = torch.stack([tensor for _, _, tensor in group])
    model = request.model
    if model is not None and request.layer is not None and any("layer" in methods()[name].needs for name in request.methods):
        model.sites(request.layer, x.to(*placement(model.module)))  # outside the try: a wrong layer is no fault of an image
    target = None if request.targets is None else [list(request.targets)] * len(group)
    try:
        every = explain(model, x, list(request.methods), target, request.layer, **request.options)
        classes = highest(model, x, request.classes) if model is not None and request.classes else [[]] * len(group)
    except ModelError as error:
        if len(group) == 1:
            yield Result(group[0][0], error=f"{str(group[0][1])!r}: {error}")
        else:  # one image can spoil the scores of its group
            for one in group:
                yield from _explain_group(request, [one])
        return
    assert isinstance(every, dict)  # a list of methods went in
    for i, (index, path, _) in enumerate(group):
        yield Result(index, {name: _single(whole, i, str(path)) for name, whole in every.items()}, classes[i])


def _single(whole: Explanation, i: int, name: str) -> Explanation:
    """The explanation of image `i` alone."""
    parts = ("maps", "raw", "images", "scores", "targets", "residual", "contributions", "scanpath", "target_names")
    values: dict[str, Any] = {part: getattr(whole, part) for part in parts}
    sliced: dict[str, Any] = {part: None if value is None else value[i : i + 1] for part, value in values.items()}
    ledger = None if whole.ledger is None else [row | {"image": 0} for row in whole.ledger if row["image"] == i]
    return replace(whole, **sliced, ledger=ledger, names=(name,))


def highest(model: Model, x: Tensor, count: int) -> list[list[dict[str, Any]]]:
    """The highest classes of each image: name, index, score, and for a classifier its softmax."""
    scores = model.scores(x).float().cpu()
    shares = [None] * len(x) if model.takes_prompts else scores.softmax(1)
    rows = []
    for row, share in zip(scores, shares, strict=True):
        best = row.topk(min(count, len(row))).indices.tolist()
        names = [f"class {c}" if model.labels is None or c >= len(model.labels) else model.labels[c] for c in best]
        rows.append(
            [
                {"class": name, "index": c, "score": row[c].item(), "softmax": None if share is None else share[c].item()}
                for name, c in zip(names, best, strict=True)
            ]
        )
    return rows


def write(result: Result, stem: str, folder: Path, html: bool = False) -> dict[str, Any]:
    """Write an image's files: `stem.method.safetensors`, `stem.method.target.png`, and with several methods `stem.panel.png`.

    Args:
        result: what came of the image.
        stem: how the names of its files begin.
        folder: where they go.
        html: whether to write `stem.html` too, a page with all of it.

    Returns:
        What was written, in plain values.

    Raises:
        InputError: the folder cannot be written to.
    """
    explanations = result.explanations
    record: dict[str, Any] = {"explanations": [], "panel": None, "page": None}
    for name, one in explanations.items():
        count = one.maps.shape[1]
        kinds = [""] if one.target_names is None else unique(slug(t, 60, "target").lower() for t in one.target_names[0])
        targets = []
        for t in range(count):
            picture = folder / ".".join(part for part in (stem, name, kinds[t], "png") if part)
            _save(one.overlay(0, t), picture)
            targets.append(
                {
                    "target": None if one.target_names is None else one.target_names[0][t],
                    "index": None if one.targets is None else int(one.targets[0, t]),
                    "score": None if one.scores is None else one.scores[0, t].item(),
                    "residual": None if one.residual is None else one.residual[0, t].item(),
                    "picture": str(picture),
                }
            )
        file = one.save(folder / f"{stem}.{name}.safetensors")
        record["explanations"].append(
            {"method": name, "layer": list(one.layer), "options": one.options, "file": str(file), "targets": targets}
        )
    if len(explanations) > 1:
        record["panel"] = str(_save(panel(explanations), folder / f"{stem}.panel.png"))
    if html:
        record["page"] = str(write_page(page(explanations, 0, Extras(classes=result.classes)), folder / f"{stem}.html"))
    return record


def _save(picture: Image.Image, path: Path) -> Path:
    """Write a PNG whole or not at all."""
    with written_whole(path, "the picture") as temporary:
        picture.save(temporary, "PNG")
    return path
