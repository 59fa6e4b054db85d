"""The dossier: everything that was found out about one image's maps, on one page."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from heatproof.errors import HeatproofError, InputError
from heatproof.explanation import Explanation
from heatproof.files import highest
from heatproof.models.model import Model
from heatproof.models.targets import find_label
from heatproof.proof.scatter import Scatter, scatter
from heatproof.proof.subject import Subject
from heatproof.proof.verdict import Verdict
from heatproof.report.findings import finding
from heatproof.report.page import Extras, page
from heatproof.sanity import Sanity, sanity

_CELLS = 8
"""Regions along the shorter side of the scatter plot's grid."""

_CLASSES = 5


def dossier(
    model: Model,
    image: Any,
    explanations: Mapping[str, Explanation],
    verdicts: Mapping[str, Verdict],
    i: int = 0,
    *,
    stages: int = 8,
    seeds: int = 2,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> str:
    """One image's maps, verdicts, curves, sanity checks and effects as a page.

    Args:
        model: what was explained.
        image: the image itself, as `explain()` takes it.
        explanations: by method, as `explain()` returns them for a list of methods.
        verdicts: by method, of these explanations; a method may lack one.
        i: which image of them it is.
        stages: of the cascade of randomisations, 0 for no sanity checks; each is an explanation per draw.
        seeds: draws of the cascade.
        options: that the explanations were made with.
        progress: called with a few words on what comes next.

    Returns:
        HTML, as `page()` makes it, with every verdict in the JSON inside.

    Raises:
        InputError: an image that could not be read, or explanations of different images.
    """
    say = progress or (lambda _: None)
    failed = next((one.errors[i] for one in explanations.values() if i in one.errors), None)
    if failed is not None:
        raise InputError(failed)
    findings, notes, checks = {}, [], {}
    x = model.tensor(image)
    for method, verdict in verdicts.items():
        one, aimed = explanations[method], _aimed(model, verdict, i)
        aims = verdict.targets[i : i + 1].tolist()
        if aimed.takes_prompts:  # a prompt that was explained may stand elsewhere among this model's
            aims = [[find_label(name, aimed.labels) for name in verdict.target_names[i]]]
        say(f"measuring the regions of {method}")
        points = _points(Subject(aimed, x, torch.tensor(aims)), one, i)
        say(f"randomising under {method}")
        checked = _checked(aimed, x, method, one, aims, stages, seeds, options or {}, notes)
        checks |= {method: checked.sentence} if checked else {}
        for t in range(one.maps.shape[1]):
            findings[method, t] = finding(verdict, i, t, checked, points)
        notes += [note for note in verdict.notes if note not in notes]
        if verdict.partial:
            notes.append(f"{method}: the run was interrupted; what is shown is what was measured until then.")
    data = {"verdicts": {method: json.loads(one.to_json()) for method, one in verdicts.items()}, "sanity": checks}
    return page(explanations, i, Extras(_classes(model, x), findings, notes, data))


def _aimed(model: Model, verdict: Verdict, i: int) -> Model:
    """The model with the prompts that were explained among its classes."""
    new = [name for name in verdict.target_names[i] if name not in (model.labels or ())] if model.takes_prompts else []
    return model.with_prompts([*(model.labels or ()), *new]) if new else model


def _points(subject: Subject, one: Explanation, i: int) -> Scatter | None:
    maps = one.maps[i : i + 1]
    if not bool(torch.isfinite(maps).all()):
        return None
    return scatter(subject, maps, max(1, math.ceil(min(subject.size) / _CELLS)))


def _checked(
    model: Model,
    x: Any,
    method: str,
    one: Explanation,
    aims: Any,
    stages: int,
    seeds: int,
    options: Mapping[str, Any],
    notes: list[str],
) -> Sanity | None:
    if not stages or one.model_name is None:
        return None
    known = {key: value for key, value in options.items() if key in one.options}
    layer = list(one.layer) or None
    try:
        return sanity(model, x, method, aims, layer, orders=("top-down",), seeds=seeds, stages=stages, **known)
    except HeatproofError as error:  # a check that cannot be made is no reason to lose the page
        notes.append(f"{method}: no sanity check ({error})")
        return None


def _classes(model: Model, x: Any) -> list[dict[str, Any]]:
    return [] if model.takes_prompts and not model.labels else highest(model, x, _CLASSES)[0]
