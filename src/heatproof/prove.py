"""`prove()`: the one way from (model, images, maps) to a `Verdict`. It fetches what the proof compares a map with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.aim import Aim
from heatproof.errors import InputError
from heatproof.explain import chunks, explain, library_versions, target_name
from heatproof.explanation import Explanation
from heatproof.images import Sources
from heatproof.models.loading import as_model
from heatproof.models.model import Model, stack
from heatproof.models.tape import recording
from heatproof.models.targets import check_targets
from heatproof.proof.examination import Examination, examine
from heatproof.proof.interventions import Test
from heatproof.proof.maps import as_numbers, take_maps
from heatproof.proof.plan import Plan, by_name, plan
from heatproof.proof.subject import Subject
from heatproof.proof.verdict import Tested, Verdict

RIVALS = ("center", "edges", "spectral-residual")
"""Maps that ignore the model, measured beside every map: the photographer's, the outlines, and a bottom-up one."""

_INTERRUPTED = "the run was interrupted before this image."


def prove(
    model: Model | nn.Module | None,
    images: Any,
    ex: Any,
    tests: Any = None,
    budget: int | None = None,
    seed: int = 0,
    *,
    target: Any = None,
    progress: Callable[[int], None] | None = None,
) -> Verdict:
    """Cross-examine maps: does the score depend on what they point at, more than on the same shape elsewhere?

    `p = (1 + #{k: φ(R_k) ≥ φ(R)}) / (K + 1)`, where R is the region that the map marks, `R_1 … R_K` are the same region
    elsewhere in the image, and φ is what a region is worth: the score lost without it, the rest of the image being
    there, and the score regained by it alone, in the mean.

    A map points at its positive values; evidence against (negative values) is not examined.

    Args:
        model: what `load()` or `wrap()` returned, or a plain module.
        images: as `explain()` takes them.
        ex: an `Explanation`, or any array of maps `(B, H, W)` or `(B, T, H, W)`, whoever made them. Maps of another size
            are resized.
        tests: names of single tests that are run besides (`deletion insertion road pixel-flipping infidelity sensitivity-n
            average-drop average-increase token-dropping`), or tests with options of their own. None for deletion and
            insertion, an empty list for none.
        budget: forwards per map, everything included; None for 400. More of them make p finer and its interval narrower.
            Every test is run on the map at least, whatever that costs; one that came with its own options keeps them.
        seed: of the copies.
        target: as in `explain()`, for maps that do not say what they explain. For an `Explanation` of this model it has
            to be the target that it explains.
        progress: called with the number of images after each forward.

    Returns:
        A `Verdict`. Interrupted with Ctrl-C, one of what was measured until then, with `partial` true.

    Raises:
        InputError: no image could be read, maps that do not fit them, another target than the explanation's, or a budget
            that p cannot be had for.
        ModelError: the model cannot take these images.
        MethodError: no such test.

    Misleads where the null does: it knows of no photographer, so that a spot in the middle of the image is supported
    wherever photos show their objects. See the effects of `center` and `edges` beside it, and docs/verdict.md.
    """
    with recording(False):
        return _prove(model, images, ex, by_name(tests), budget, seed, target, progress)


def _prove(
    model: Any,
    images: Any,
    ex: Any,
    tests: dict[str, tuple[Test, bool]],
    budget: int | None,
    seed: int,
    target: Any,
    progress: Callable[[int], None] | None,
) -> Verdict:
    model = as_model(model)
    spending = plan(budget, len(tests), len(RIVALS))
    sources = Sources.of(images)
    check_targets(target, len(sources))
    aim = Aim.of(model, ex, target)
    model = aim.model
    values, broken = _values(ex, len(sources), aim.count)
    found: list[Examination] = []
    errors: dict[int, str] = {}
    notes: list[str] = []
    partial = False
    for tensors, rows, failed in chunks(sources, model.preprocess):
        errors |= failed
        if not rows:
            continue
        try:
            x = stack(tensors)
            if found and found[0].subject.size != tuple(x.shape[-2:]):
                raise InputError(
                    f"the images have different sizes, {found[0].subject.size} and {tuple(x.shape[-2:])}; prove them in calls "
                    "of one size each."
                )
            subject = Subject(model, x, aim.targets(model.scores(x), rows), progress=progress)
            intake = take_maps(values[rows], len(rows), aim.count, subject.size)
            notes += [remark for remark in intake.remarks if remark not in notes]
            ignorant: Any = explain(None, subject.pixels.cpu(), list(RIVALS))
            rivals = {name: other.maps.expand_as(intake.maps) for name, other in ignorant.items()}
            one = examine(subject, rows, intake.maps, broken[rows], rivals, spending, tests, seed)
        except KeyboardInterrupt:
            if not found:
                raise
            partial = True
            break
        found.append(one)
        if not one.trial.complete:
            partial = True
            break
    if not found:
        raise InputError(next(iter(errors.values())))
    read = [row for one in found for row in one.rows]
    scores, every = (torch.cat([getattr(one.subject, name).cpu() for one in found]) for name in ("scores", "all_scores"))
    notes = [*aim.notes(read, scores, every), *notes]
    return _verdict(ex, sources, aim, found, errors, notes, spending, seed, partial)


def _values(ex: Any, batch: int, targets: int) -> tuple[Tensor, Tensor]:
    """Maps `(B, T, h, w)` with 0 where they are NaN or infinite, and which of them have such values `(B, T)`."""
    maps = as_numbers(ex)
    finite = torch.isfinite(maps)
    size = (maps.shape[-2], maps.shape[-1]) if maps.ndim >= 2 else (1, 1)
    whole = maps.nan_to_num(0.0, 0.0, 0.0)
    if maps.ndim == 4 and isinstance(ex, Explanation) and ex.targets is None and maps.shape[1] == 1:
        whole, finite = whole.expand(-1, targets, -1, -1), finite.expand(-1, targets, -1, -1)  # one map for every target
    return take_maps(whole, batch, targets, size).maps, ~finite.reshape(batch, targets, -1).all(2)


def _verdict(
    ex: Any,
    sources: Sources,
    aim: Aim,
    found: list[Examination],
    errors: dict[int, str],
    notes: list[str],
    spending: Plan,
    seed: int,
    partial: bool,
) -> Verdict:
    batch, done = len(sources), [row for one in found for row in one.rows]

    def whole(parts: list[Tensor], fill: float = torch.nan) -> Tensor:
        return _in_order(parts, done, batch, fill)

    silent, broken = (whole([getattr(one, name).float() for one in found], 0).bool() for name in ("silent", "broken"))

    def trials(name: str, silence: float | None = None) -> Tensor:
        table = whole([getattr(one.trial, name) for one in found])
        if silence is not None:  # what points at nothing removes nothing, here and elsewhere
            table[silent & ~broken] = silence
        return table

    effects = trials("effects", 0.0)
    targets = whole([one.subject.targets.cpu() for one in found], -1)
    why = {row: errors.get(row, _INTERRUPTED) for row in range(batch) if row not in done}
    unreadable = ex.errors if isinstance(ex, Explanation) else {}
    nan = "the map has NaN or infinite values."

    def error(b: int, t: int) -> str | None:
        return why.get(b) or (unreadable.get(b, nan) if broken[b, t] else None)

    lost, kept = trials("lost", 0.0), trials("kept", 0.0)
    tests = {
        "necessity": Tested(lost[..., 0], lost[..., 1:]),
        "sufficiency": Tested(kept[..., 0], kept[..., 1:]),
        "texture": Tested(effects[..., 0], trials("spectrum", 0.0)),
    }
    for name in found[0].tests:
        some = [one for one in found if name in one.tests]
        tests[name] = _joined([one.tests[name] for one in some], [row for one in some for row in one.rows], batch)
    return Verdict(
        effect=effects[..., 0],
        null=effects[..., 1:],
        shares=trials("shares", 0.0),
        whole=trials("whole"),
        scores=whole([one.subject.scores.cpu().double() for one in found]),
        average_scores=whole([one.average for one in found]),
        targets=targets,
        target_names=[[target_name(int(t), aim.model) for t in row] for row in targets],
        errors=[[error(b, t) for t in range(aim.count)] for b in range(batch)],
        silent=silent.tolist(),
        rivals={name: whole([one.trial.rivals[name] for one in found]) for name in RIVALS},
        tests=tests,
        names=sources.names,
        method=ex.method if isinstance(ex, Explanation) else None,
        model_name=aim.model.name,
        versions=library_versions() | aim.model.versions,
        notes=tuple(notes),
        seed=seed,
        budget=spending.budget,
        forwards=sum(one.subject.forwards + len(one.rows) for one in found),
        partial=partial,
    )


def _in_order(parts: list[Tensor], rows: list[int], batch: int, fill: float = torch.nan) -> Tensor:
    """All images in their order; rows that nothing was found for are filled."""
    found = torch.cat(parts)
    full = found.new_full((batch, *found.shape[1:]), fill)
    full[rows] = found
    return full


def _joined(parts: list[Tested], rows: list[int], batch: int) -> Tested:
    def whole(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else _in_order(found, rows, batch)

    first = parts[0]
    return Tested(whole("values"), whole("nulls"), first.higher_is_better, first.fractions, whole("curves"), whole("null_curves"))
