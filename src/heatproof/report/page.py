"""The page: one self-contained HTML file for one image, that needs no server and no network."""

import base64
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from heatproof.errors import InputError
from heatproof.explanation import Explanation
from heatproof.overlay import heat
from heatproof.storage import written_whole

_WIDEST = 448
"""Pixels of the viewer's longer side."""

_MARKS = {True: "yes", False: "no", None: "open"}


@dataclass(frozen=True)
class Figure:
    """A drawing and its caption.

    Args:
        svg: the drawing.
        text: the caption; it says in words what the drawing shows.
    """

    svg: str
    text: str


@dataclass(frozen=True)
class Finding:
    """What the interventions say of one map, as the page shows it.

    Args:
        word: the verdict in a word or two.
        holds: True supported, False not, None where nothing can be said.
        sentence: the verdict in a sentence.
        facts: name and value of further figures.
        figures: curves and the like.
    """

    word: str
    holds: bool | None
    sentence: str
    facts: Sequence[tuple[str, str]] = ()
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Extras:
    """What a page may show beside the maps.

    Args:
        classes: the model's highest classes, as dicts with `class`, `score` and `softmax` (None for similarities).
        findings: by `(method, t)`.
        notes: sentences for the reader.
        data: further machine-readable values.
        provenance: name and value of what else it takes to make all this again.
    """

    classes: Sequence[Mapping[str, Any]] = ()
    findings: Mapping[tuple[str, int], Finding] = field(default_factory=dict)
    notes: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    provenance: Sequence[tuple[str, str]] = ()


def page(explanations: Mapping[str, Explanation], i: int = 0, extras: Extras | None = None) -> str:
    """One image with its maps as a page: a viewer, a card per map, and where everything comes from.

    Args:
        explanations: by method, of the same images and targets, as `explain()` returns them for a list of methods.
        i: which image.
        extras: verdicts and the like.

    Returns:
        HTML. Pictures are inside, so is everything as JSON in `<script id="heatproof" type="application/json">`.

    Raises:
        InputError: no explanations, or not of the same images and targets.
    """
    extras = extras or Extras()
    each = list(explanations.values())
    shapes = {(one.maps.shape[:2], one.maps.shape[2:]) for one in each}
    if len(shapes) != 1:
        raise InputError(
            f"a page takes explanations of the same images and targets; {len(each)} came with {len(shapes)} kinds of shape."
        )
    # a bottom-up map has no target of its own, so the names are those of the first that has
    named = next((one for one in each if one.target_names is not None), each[0])
    count, (height, width) = each[0].maps.shape[1], each[0].maps.shape[-2:]
    names = [""] * count if named.target_names is None else named.target_names[i]
    path = each[0].names[i] if each[0].names else None
    name = Path(path).name if path else ""
    cards = [_card(method, one, i, t, names[t], extras) for t in range(count) for method, one in explanations.items()]
    seen = {int(index) for index in named.targets[i]} if named.targets is not None else set()
    environment = Environment(loader=PackageLoader("heatproof.report", "template"), autoescape=True, undefined=StrictUndefined)
    environment.filters["enumerate"] = enumerate
    folder = files("heatproof.report") / "template"
    return environment.get_template("page.html").render(
        title=f"Where did it look? {name}".strip(),
        lead=_lead(named, len(explanations)),
        name=name,
        version=named.versions.get("heatproof", ""),
        style=Markup((folder / "page.css").read_text("utf-8")),
        script=Markup((folder / "page.js").read_text("utf-8")),
        photo=_embedded(each[0].image(i), "JPEG"),
        width=width,
        height=height,
        cards=cards,
        methods=list(explanations),
        targets=names,
        classes=[
            {"name": c["class"], "score": c["score"], "probability": c["softmax"], "explained": c.get("index") in seen}
            for c in extras.classes
        ],
        notes=extras.notes,
        provenance=[*_provenance(explanations), *extras.provenance],
        data=_script(_data(explanations, i, names, extras)),
    )


def write_page(text: str, path: str | os.PathLike) -> Path:
    """Write a page whole or not at all.

    Returns:
        The path.

    Raises:
        InputError: the file cannot be written.
    """
    with written_whole(path, "the page") as temporary:
        temporary.write_text(text, "utf-8")
    return Path(path)


def _lead(one: Explanation, count: int) -> str:
    maps = "one map" if count == 1 else f"{count} maps"
    return f"{maps[0].upper()}{maps[1:]} of {one.model_name}." if one.model_name else f"{maps[0].upper()}{maps[1:]}, no model."


def _card(method: str, one: Explanation, i: int, t: int, target: str, extras: Extras) -> dict[str, Any]:
    picture = heat(_shown(one.maps[i, t]).numpy(), one.signed)
    finding = extras.findings.get((method, t))
    word, sentence = _told_once(finding) if finding else (None, None)
    facts = [("score", f"{one.scores[i, t]:.3f}")] if one.scores is not None else []
    if one.residual is not None:
        facts.append(("not on the map", f"{one.residual[i, t]:.3g}"))
    return {
        "method": method,
        "t": t,
        "heat": _embedded(picture or Image.new("RGBA", (1, 1)), "PNG"),
        "alt": f"{method} map" + (f" for {target}" if target else "") + ("" if picture else ": constant, says nothing"),
        "word": word,
        "verdict": sentence,
        "mark": _MARKS[finding.holds] if finding else None,
        "facts": facts + list(finding.facts if finding else ()),
        "figures": [{"svg": Markup(f.svg), "text": f.text} for f in (finding.figures if finding else ())],
    }


def _shown(values: Tensor) -> Tensor:
    """A map at most as large as the page shows it; pixel noise of a large one would be most of the page."""
    height, width = values.shape
    if max(height, width) <= _WIDEST:
        return values
    scale = _WIDEST / max(height, width)
    return interpolate(values[None, None], [max(1, round(height * scale)), max(1, round(width * scale))], mode="area")[0, 0]


def _told_once(finding: Finding) -> tuple[str, str]:
    """The verdict's word and what follows it; a sentence that begins with the word is not told twice."""
    begin = len(finding.word.rstrip("."))
    if finding.sentence[:begin].casefold() == finding.word[:begin].casefold():
        return finding.sentence[:begin], finding.sentence[begin:]
    return finding.word, f" {finding.sentence}"


def _provenance(explanations: Mapping[str, Explanation]) -> list[tuple[str, str]]:
    rows = []
    first = next(iter(explanations.values()))
    if first.model_name:
        rows.append(("model", first.model_name))
    for method, one in explanations.items():
        said = [f"layer {', '.join(one.layer)}"] * bool(one.layer) + [f"{k}={v!r}" for k, v in one.options.items()]
        rows.append((method, ", ".join(said) or "no options"))
    versions = {key: value for one in explanations.values() for key, value in one.versions.items()}
    return [*rows, ("versions", ", ".join(f"{key} {value}" for key, value in versions.items()))]


def _data(explanations: Mapping[str, Explanation], i: int, names: Sequence[str], extras: Extras) -> dict[str, Any]:
    maps = []
    for method, one in explanations.items():
        for t, target in enumerate(names):
            finding = extras.findings.get((method, t))
            maps.append(
                {
                    "method": method,
                    "t": t,
                    "target": target or None,
                    "index": None if one.targets is None else int(one.targets[i, t]),
                    "score": None if one.scores is None else one.scores[i, t].item(),
                    "residual": None if one.residual is None else one.residual[i, t].item(),
                    "layer": list(one.layer),
                    "options": one.options,
                    "verdict": finding.sentence if finding else None,
                    "supported": finding.holds if finding else None,
                }
            )
    first = next(iter(explanations.values()))
    versions = {key: value for one in explanations.values() for key, value in one.versions.items()}
    return {
        "image": first.names[i] if first.names else None,
        "model": first.model_name,
        "versions": versions,
        "classes": [dict(one) for one in extras.classes],
        "maps": maps,
        **extras.data,
    }


def _script(value: Any) -> Markup:
    """JSON that may stand in a script element: no tag can begin in it, no number that JSON lacks."""
    text = json.dumps(_finite(value), default=str, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _embedded(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
