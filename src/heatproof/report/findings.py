"""From a verdict, and what was measured beside it, to what the page shows of one map."""

import numpy as np

from heatproof.proof.scatter import Scatter
from heatproof.proof.similarity import MEASURES
from heatproof.proof.verdict import Tested, Verdict
from heatproof.report.charts import curve, distribution, points, stages
from heatproof.report.page import Figure, Finding
from heatproof.sanity import Sanity

_HOLDS = {"supported": True, "not supported": False, "says nothing": False}

_AXES = {"deletion": ("removed", "probability left"), "insertion": ("shown", "probability reached")}

_SHOWN = ("spearman_abs", "ssim", "hog")
"""Similarities that the page draws; the signed one is for maps whose signs mean something."""


def finding(verdict: Verdict, b: int, t: int, checked: Sanity | None = None, scatter: Scatter | None = None) -> Finding:
    """What the page shows of one map.

    Args:
        verdict: of these maps.
        b: which image.
        t: which target.
        checked: the method's sanity check on this image, if it was made.
        scatter: sensitivity and effect of this image's regions alone, if they were measured.

    Returns:
        A `Finding`: word, sentence, facts and figures.
    """
    state = verdict.states[b][t]
    sentence = verdict.sentences[b][t]
    return Finding(
        word=f"{state[0].upper()}{state[1:]}.",
        holds=_HOLDS.get(state),
        sentence=f"{sentence[0].upper()}{sentence[1:]}",
        facts=_facts(verdict, b, t) if state in ("supported", "not supported") else (),
        figures=_figures(verdict, b, t, checked, scatter),
    )


def _facts(verdict: Verdict, b: int, t: int) -> list[tuple[str, str]]:
    null = _finite(verdict, b, t)
    low, high = (float(end) for end in verdict.p_interval[b, t])
    rows = [
        ("effect", f"{float(verdict.effect[b, t]):.3g}" + f" of {float(verdict.whole[b, t]):.3g}" * verdict.above_blank[b][t]),
        ("elsewhere", f"{null.mean():.3g} ± {null.std():.2g} ({len(null)} copies)" if len(null) > 1 else "–"),
        ("p", f"{float(verdict.p_value[b, t]):.3g} ({low:.2g} to {high:.2g})"),
    ]
    rows += [(f"effect of {name}", f"{float(effect[b, t]):.3g}") for name, effect in verdict.rivals.items()]
    rows += [
        (f"p of {name}", f"{float(one.p_value[b, t]):.3g} ({int(one.nulls[b, t].isfinite().sum())} copies)")
        for name, one in verdict.tests.items()
        if one.nulls.shape[-1] and bool(one.values[b, t].isfinite())
    ]
    return rows


def _finite(verdict: Verdict, b: int, t: int) -> np.ndarray:
    null = verdict.null[b, t]
    return null[null.isfinite()].numpy()


def _figures(verdict: Verdict, b: int, t: int, checked: Sanity | None, scatter: Scatter | None) -> list[Figure]:
    figures = []
    null = _finite(verdict, b, t)
    if len(null) > 1 and verdict.states[b][t] in ("supported", "not supported"):
        rivals = {name: float(effect[b, t]) for name, effect in verdict.rivals.items()}
        figures.append(
            Figure(
                distribution(float(verdict.effect[b, t]), null, rivals, "score lost"),
                "What removing the marked region costs, beside the same shape elsewhere, and beside maps that ignore the model.",
            )
        )
    for name, one in verdict.tests.items():
        if one.curves is not None and one.fractions is not None and bool(one.curves[b, t].isfinite().all()):
            figures.append(_curve(name, one, b, t))
    if checked is not None and not checked.says_nothing:
        figures.append(_sanity(checked))
    if scatter is not None:
        figures.append(_scatter(scatter, t))
    return figures


def _curve(name: str, one: Tested, b: int, t: int) -> Figure:
    assert one.curves is not None and one.fractions is not None
    null = one.curves.new_zeros(0, one.curves.shape[-1]) if one.null_curves is None else one.null_curves[b, t]
    null = null[null.isfinite().all(-1)]
    across, up = _AXES.get(name, ("share of the image", "value"))
    better = "higher" if one.higher_is_better else "lower"
    drawn = curve(100 * one.fractions.numpy(), one.curves[b, t].numpy(), null.numpy(), (f"{across} (%)", up))
    return Figure(drawn, f"{name[0].upper()}{name[1:]}: {float(one.values[b, t]):.3f}, {better} is better.")


def _sanity(checked: Sanity) -> Figure:
    order, cascade = next(iter(checked.cascades.items()))
    names = [str(number) for number in range(len(cascade.stages) + 1)]
    series = {}
    for measure in _SHOWN:
        mean, spread = cascade.curve(measure)
        series[MEASURES[measure]] = ([1.0, *mean.tolist()], [0.0, *spread.tolist()])
    drawn = stages(names, series, "similarity")
    return Figure(drawn, f"The model forgets, {order} in {len(cascade.stages)} stages. {checked.sentence}")


def _scatter(scatter: Scatter, t: int) -> Figure:
    there = scatter.effect[0, t].isfinite() & scatter.sensitivity[0, t].isfinite()
    x, y = scatter.sensitivity[0, t][there].numpy(), scatter.effect[0, t][there].numpy()
    return Figure(
        points(x, y, ("what the map says of a region", "score lost without it")),
        f"Every point is a region: what is said of it against what it does, rank correlation with the effect's size "
        f"{float(scatter.correlation[0, t]):.2f}. Right and near the line is marked without effect; left and far from it is "
        "effect without a mark.",
    )
