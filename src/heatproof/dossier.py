"""The dossier: everything that was found out about one image's maps, on one page."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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

_INTERRUPTED = "The run was interrupted; what is shown is what was measured until then."


class Dossier(NamedTuple):
    """A page of evidence, and whether it is `partial`: a run was interrupted, and the page says so."""

    html: str
    partial: bool


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
) -> Dossier:
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
        HTML, as `page()` makes it, with every verdict in the JSON inside. Interrupted with Ctrl-C, or of a proof that was,
        it is partial: a page of what was measured until then, which says so among its notes.

    Raises:
        InputError: an image that could not be read, or explanations of different images.
    """
    say = progress or (lambda _: None)
    failed = next((one.errors[i] for one in explanations.values() if i in one.errors), None)
    if failed is not None:
        raise InputError(failed)
    findings, notes, checks = {}, list[str](), dict[str, Sanity]()
    x = model.tensor(image)
    stopped = any(verdict.partial for verdict in verdicts.values())
    for method, verdict in verdicts.items():
        one, points, checked = explanations[method], None, None
        if not stopped:
            try:
                aimed, aims = _aimed(model, verdict, i)
                say(f"measuring the regions of {method}")
                points = _points(Subject(aimed, x, torch.tensor(aims)), one, i)
                say(f"randomising under {method}")
                checked = _checked(aimed, x, method, one, aims, stages, seeds, options or {}, notes)
            except KeyboardInterrupt:
                stopped = True
        checks |= {method: checked} if checked else {}
        for t in range(one.maps.shape[1]):
            findings[method, t] = finding(verdict, i, t, checked, points)
        notes += [note for note in verdict.notes if note not in notes]
    notes += [_INTERRUPTED] * stopped
    data = {
        "verdicts": {method: json.loads(one.to_json()) for method, one in verdicts.items()},
        "sanity": {method: one.sentence for method, one in checks.items()},
        "sanity_curves": {method: one.table for method, one in checks.items()},
    }
    extras = Extras(_classes(model, x), findings, notes, data, _provenance(verdicts, checks))
    return Dossier(page(explanations, i, extras), stopped)


def _provenance(verdicts: Mapping[str, Verdict], checks: Mapping[str, Sanity]) -> list[tuple[str, str]]:
    """Seeds and numbers that the verdicts and checks can be had again with; one row where they are the same for all."""
    proofs = [f"seed {one.seed}, {one.budget} forwards per map, {one.null.shape[-1]} copies" for one in verdicts.values()]
    cascades = [(order, one) for checked in checks.values() for order, one in checked.cascades.items()]
    draws = [f"{order} in {len(one.stages)} stages, seeds {', '.join(map(str, one.seeds))}" for order, one in cascades]
    rows = {"proof": proofs, "sanity checks": draws}
    return [(name, "; ".join(dict.fromkeys(said))) for name, said in rows.items() if said]


def _aimed(model: Model, verdict: Verdict, i: int) -> tuple[Model, list[list[int]]]:
    """The model with the prompts that were explained among its classes, and where the targets are among them."""
    if not model.takes_prompts:
        return model, verdict.targets[i : i + 1].tolist()
    names = verdict.target_names[i]
    aimed = model.knowing(names)
    return aimed, [[find_label(name, aimed.labels) for name in names]]


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
