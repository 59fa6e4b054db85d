"""One batch of maps before the model: the headline trial, and the single tests, each map beside its copies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from heatproof.proof.interventions import Test
from heatproof.proof.maps import says_nothing
from heatproof.proof.placements import placements
from heatproof.proof.plan import Plan, fitted
from heatproof.proof.regions import PARTS, marked, mass
from heatproof.proof.subject import Subject
from heatproof.proof.trial import Trial, run_trial
from heatproof.proof.verdict import Tested


@dataclass
class Examination:
    """What was found for one batch.

    Args:
        rows: which images of the whole call these are.
        subject: the images and the scores in question.
        trial: the headline intervention.
        broken: `(B, T)` maps with NaN or infinite values.
        silent: `(B, T)` maps that point at nothing.
        average: `(B, T)` score of an average class, −∞ where there is only one.
        tests: the single tests that were run.
    """

    rows: Sequence[int]
    subject: Subject
    trial: Trial
    broken: Bool[Tensor, "batch targets"]
    silent: Bool[Tensor, "batch targets"]
    average: Float[Tensor, "batch targets"]
    tests: dict[str, Tested] = field(default_factory=dict)


def examine(
    subject: Subject,
    rows: Sequence[int],
    maps: Float[Tensor, "batch targets height width"],
    broken: Bool[Tensor, "batch targets"],
    rivals: Mapping[str, Float[Tensor, "batch targets height width"]],
    spending: Plan,
    tests: Mapping[str, tuple[Test, bool]],
    seed: int,
) -> Examination:
    """Run the trial and the tests of one batch; interrupted, what was done until then.

    Args:
        subject: the images and the scores in question.
        rows: which images of the whole call these are.
        maps: at the images' size; where they are broken any values.
        broken: maps that are not to be examined.
        rivals: maps by name that are measured beside each map.
        spending: how many copies of each map.
        tests: single tests by name, and whether their options may be fitted to the budget.
        seed: of the copies.
    """
    silent = says_nothing(maps) | (mass(maps).sum((2, 3)) <= 0)
    valid = ~(silent | broken)
    trial = run_trial(subject, maps, valid, spending.copies, spending.textures, rivals, seed)
    average = subject.all_scores.double().mean(1, keepdim=True).cpu().expand(-1, subject.targets.shape[1])
    if subject.all_scores.shape[1] == 1:  # its own score would be the average
        average = torch.full_like(average, -torch.inf)
    found = Examination(rows, subject, trial, broken, silent, average)
    if trial.complete:
        try:
            for name, (test, elastic) in tests.items():
                found.tests[name] = _run(test, elastic, subject, maps, valid, spending, seed)
        except KeyboardInterrupt:
            trial.complete = False
    return found


def _run(test: Test, elastic: bool, subject: Subject, maps: Tensor, valid: Tensor, spending: Plan, seed: int) -> Tested:
    """A single test of the maps and of copies on a lattice of their own."""
    test, copies = fitted(test, elastic, subject, spending.per_test, spending.copies)
    every = maps[:, :, None].repeat(1, 1, 1 + copies, 1, 1)
    for b, t in valid.nonzero().tolist():
        for k, place in enumerate(placements(marked(maps[b, t], PARTS[-1]), copies, seed) if copies else ()):
            every[b, t, 1 + k] = place(maps[b, t])
    result = test(subject, every)
    values = torch.where(valid[..., None], result.values.cpu().double(), torch.nan)
    curves = None if result.curves is None else torch.where(valid[..., None, None], result.curves.cpu().double(), torch.nan)
    return Tested(
        values[..., 0],
        values[..., 1:],
        result.higher_is_better,
        None if result.fractions is None else result.fractions.cpu().double(),
        None if curves is None else curves[:, :, 0],
        None if curves is None else curves[:, :, 1:],
    )
