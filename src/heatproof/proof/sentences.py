"""The verdict on one map in plain words."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from heatproof.proof.verdict import Verdict


def sentence(verdict: "Verdict", b: int, t: int) -> str:
    """What was removed, what it cost, what it costs elsewhere, how surprising that is, and what follows."""
    state = verdict.states[b][t]
    if state == "no verdict":
        return f"no verdict: {verdict.errors[b][t]}"
    if state == "nothing to explain":
        return _nothing_to_explain(verdict, b, t)
    if state == "says nothing":
        return (
            "says nothing: the map is constant, or nowhere positive, so it points at no part of the image; p = 1: not supported."
        )
    # where the image with everything removed scores no less, there is no whole that a part could be told of
    among = verdict.above_blank[b][t]
    whole, of = (float(verdict.whole[b, t]), "the score") if among else (1.0, f"the score's {float(verdict.scores[b, t]):.3g}")
    null = verdict.null[b, t][torch.isfinite(verdict.null[b, t])] / whole
    cost = float(verdict.effect[b, t]) / whole
    if not len(null):
        return f"no verdict: removing {_marked(verdict, b, t)} costs {cost:.2f} of {of}, compared with nothing yet."
    spread = f" ± {float(null.std()):.2f}" if len(null) > 1 else ""
    said = (
        f"removing {_marked(verdict, b, t)} costs {cost:.2f} of {of}; a random region of the same shape costs "
        f"{float(null.mean()):.2f}{spread}; {_chance(verdict, b, t, len(null))}: {state}"
    )
    if not among:
        said += f"; with everything removed the score is no less ({float(verdict.scores[b, t] - verdict.whole[b, t]):.3g})"
    better = {
        name: float(effect[b, t]) / whole
        for name, effect in verdict.rivals.items()
        if effect[b, t] >= verdict.effect[b, t] and name != verdict.method
    }
    if better:
        told = " and ".join(f"{name} ({value:.2f})" for name, value in better.items())
        said += f"; as much is lost by following {told}, which ignore{'s' * (len(better) == 1)} the model"
    return said + "."


def _marked(verdict: "Verdict", b: int, t: int) -> str:
    small, large = (_percent(float(share)) for share in verdict.shares[b, t])
    return f"the marked {small} %" if small == large else f"the marked {small} to {large} %"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.0095 else f"{100 * share:.1g}"


def _chance(verdict: "Verdict", b: int, t: int, copies: int) -> str:
    p = float(verdict.p_value[b, t])
    low, high = (float(end) for end in verdict.p_interval[b, t])
    planned = verdict.null.shape[-1]
    run = f" with {copies} copies" if copies == planned else f"; partial: {copies} of {planned} copies"
    return f"p = {p:.2g} ({low:.2g} to {high:.2g}{run})"


def _nothing_to_explain(verdict: "Verdict", b: int, t: int) -> str:
    score = float(verdict.scores[b, t])
    blank, average = score - float(verdict.whole[b, t]), float(verdict.average_scores[b, t])
    what, chance = ("the same image with everything removed", blank) if blank >= average else ("an average class", average)
    return (
        f"nothing to explain: the score of {verdict.target_names[b][t]!r} is {score:.3g}, no more than that of {what} "
        f"({chance:.3g}): not supported."
    )
