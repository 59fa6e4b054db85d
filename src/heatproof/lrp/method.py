"""The method `lrp`."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from heatproof.errors import InputError, MethodError
from heatproof.lrp.composites import composite
from heatproof.lrp.conditions import at_channels, check_met, conditions
from heatproof.lrp.ledger import table
from heatproof.lrp.propagation import MixedBatch, Propagation
from heatproof.lrp.tags import drop_tags
from heatproof.methods import Maps
from heatproof.models.sites import Site
from heatproof.models.tape import Tape, at_least_float32, on_run, recording, run


@dataclass(frozen=True)
class LRP:
    """Layer-wise relevance propagation: the score, handed back from layer to layer down to the pixels.

    `R_j = Σ_k (a_j w_jk / z_k) R_k` and its rules; `Σ_pixels R + residual = s`

    Args:
        composite: `"auto"`, `"lrp0"`, `"epsilon"`, `"epsilon-gamma-box"`, `"epsilon-plus-flat"`, `"attnlrp"`, or a
            `Composite`.
        epsilon: of the ε rules, ≥ 0; None is 1e-6.
        gamma: of the γ rules, ≥ 0; None is 0.25.
        low: lowest input value for the box rule, in preprocessed units, a number, one for each channel, or a tensor that
            broadcasts to `(1, 3, 1, 1)`; None takes it from the preprocessing, else from the image.
        high: the highest, likewise.
        ledger: whether to return a row for every operation.
        layer: where to stop: relevance of that layer's output instead of the input's.
        through: conditional relevance: `{layer: [channels]}` lets it pass only through those channels of what the layer
            returns, `{attention: {"heads": [heads]}}` only through those heads of the attention in it.
        contrast: explain the score less that of another class (an index), or less the mean of all others (`"rest"`).

    Returns:
        `raw` `(B, T, 3, H, W)` signed, in units of the score (with `layer`: in the shape of that layer's output);
        `residual` `(B, T)`: what biases, stabilisers, norms and the softmax absorbed, counted operation by operation;
        `ledger`: rows with `place`, `op`, `rule`, `relevance_in` (arriving from above), `relevance_out` (handed down)
        and what was absorbed: `bias`, `epsilon`, `norm`, `softmax`.

    Raises:
        MethodError: an operation without a rule, named with its place; a composite that does not exist.

    Misleads where conservation is taken for truth: many maps add up to the score, and only an intervention tells
    which of them is right. z⁺ maps depend little on the upper layers.

    Paper: Bach et al. 2015; Montavon et al. 2019, section 10.2; Achtibat et al. 2024 (AttnLRP).
    """

    signed: ClassVar[bool] = True
    composite: Any = "auto"
    epsilon: float | None = None
    gamma: float | None = None
    low: Any = None
    high: Any = None
    ledger: bool = False
    layer: Any = None
    through: Any = None
    contrast: Any = None

    def watch(self, tape: Tape) -> Tensor | None:
        """Be the tape's own forward: relevance alone then needs no other. None where the images have to go one by one."""
        try:
            tape.watched = self._start(tape, tape.x.detach())
        except MixedBatch:
            return None
        return tape.watched.scores

    def __call__(self, tape: Tape) -> Maps:
        x = tape.x.detach()
        try:
            watched, tape.watched = tape.watched, None  # the last backward uses it up
            return self._finish(tape, watched or self._start(tape, x), tape.targets, 0)
        except MixedBatch:
            pass
        singles = [self._finish(tape, self._start(tape, x[i : i + 1]), tape.targets[i : i + 1], i) for i in range(len(x))]
        raw, maps, residual = (torch.cat([getattr(one, name) for one in singles]) for name in ("raw", "maps", "residual"))
        ledger = [row for one in singles for row in one.ledger or ()] if self.ledger else None
        return Maps(raw, maps, residual, ledger, resolved=singles[0].resolved)

    def _start(self, tape: Tape, x: Tensor) -> "_Run":
        box, said = self._box(tape, x)
        prop = Propagation(tape.module, composite(self.composite, self.epsilon, self.gamma, False), box, self.ledger)
        if isinstance(self.layer, list | tuple) and len(self.layer) > 1:
            raise MethodError(f"layer= names {len(self.layer)} layers; lrp stops at one of them, so ask once for each.")
        site = tape.sites[0] if self.layer is not None else None
        cut: list[Tensor] = []
        with recording(True):
            scores = self._forward(tape, prop, prop.begin(x), site, cut)
        if self.composite == "auto":
            prop.composite = composite("auto", self.epsilon, self.gamma, prop.has_attention)
        return _Run(prop, scores, cut, site, said if prop.composite.pixels is not None else {})

    def _finish(self, tape: Tape, watched: "_Run", targets: Tensor, first: int) -> Maps:
        with recording(True):
            count = targets.shape[1]
            found = [self._one_target(watched, targets[:, t], last=t + 1 == count) for t in range(count)]
        raw = at_least_float32(torch.stack([one[0] for one in found], 1))
        residual = torch.stack([sum(one[1].values(), torch.zeros(())) for one in found], 1).to(raw)
        ledger = [row for t, one in enumerate(found) for row in table(one[2], first, t)] if self.ledger else None
        site = watched.site
        maps = raw.sum(2) if site is None else torch.stack([site.to_map(raw[:, t]).sum(1) for t in range(raw.shape[1])], 1)
        return Maps(raw, maps, residual, ledger, resolved=watched.said)

    def _forward(self, tape: Tape, prop: Propagation, root: Tensor, site: Site | None, cut: list[Tensor]) -> Tensor:
        modules = dict(tape.module.named_modules())
        handles = []

        def stop(output: Tensor) -> Tensor:
            cut.append(output.detach().requires_grad_())
            prop.seen.add_leaf(cut[0])
            return cut[0].clone()

        if site is not None:
            handles.append(modules[site.name].register_forward_hook(on_run(site.run, stop)))
        wanted = conditions(self.through, tape.source)
        prop.heads = [condition for condition in wanted if condition.heads]
        for condition in wanted:
            if not condition.heads:
                handles.append(modules[condition.place].register_forward_hook(at_channels(prop, condition, tape.size)))
        try:
            with prop:
                scores = run(tape.readout, tape.module, root)
                check_met(prop)
                prop.check_seen(scores)
                prop.count_reads(scores)
                if not scores.requires_grad:
                    held = [f"{row.op!r} in {prop.where(row.place)}" for row in prop.rows if row.rule == "held constant"]
                    why = (
                        f"lrp holds {held[-1]} constant"
                        if held
                        else "a detach(), argmax or numpy step inside the model cuts the graph"
                    )
                    raise MethodError(
                        f"the scores do not depend differentiably on the input or the layer ({why}); scorecam and ablationcam "
                        "need no gradient."
                    )
            return drop_tags(scores)  # they hold the last layer's input
        finally:
            for handle in handles:
                handle.remove()

    def _one_target(self, watched: "_Run", target: Tensor, last: bool) -> tuple[Tensor, dict[str, Tensor], list[tuple]]:
        prop, scores, cut = watched.prop, watched.scores, watched.cut
        prop.clear()
        prop.final = last  # what a layer kept can go as soon as the backward has passed it
        wanted = scores.gather(1, target[:, None])[:, 0]
        less = self._less(scores, target)
        inputs = [prop.leaf, prop.carrier, *cut]
        try:
            gradients = torch.autograd.grad((wanted - less).sum(), inputs, retain_graph=not last, allow_unused=True)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise MethodError(
                "the model writes in place into values that a backward pass needs, so that no gradient can pass it; scorecam and "
                "ablationcam need none."
            ) from error
        leaf, carrier, *at_cut = [torch.zeros_like(i) if g is None else g for g, i in zip(gradients, inputs, strict=True)]
        relevance = (prop.leaf * leaf + carrier).detach()
        extra = {"contrast": less.detach().double()} if self.contrast is not None else {}
        if cut:
            extra["bypass"] = relevance.flatten(1).sum(1, dtype=torch.float64)
            relevance = (cut[0] * at_cut[0]).detach()
        totals = dict(extra)
        for row in prop.rows:
            for column, amount in row.absorbed.items():
                totals[column] = totals.get(column, 0) + amount
        # rows change with the next target: what the ledger needs of them is taken now
        taken = [(row.place, row.op, row.rule, row.arrived, dict(row.absorbed)) for row in prop.rows] if self.ledger else []
        taken += [("", name, name, amount, {name: amount}) for name, amount in extra.items()]
        return relevance, totals, taken

    def _less(self, scores: Tensor, target: Tensor) -> Tensor:
        if self.contrast is None:
            return torch.zeros_like(scores[:, 0])
        if self.contrast == "rest":
            own = scores.gather(1, target[:, None])[:, 0]
            return (scores.sum(1) - own) / max(scores.shape[1] - 1, 1)
        if isinstance(self.contrast, bool) or not isinstance(self.contrast, int) or not 0 <= self.contrast < scores.shape[1]:
            raise InputError(f"contrast={self.contrast!r}; expected a class index from 0 to {scores.shape[1] - 1}, or 'rest'.")
        return scores[:, self.contrast]

    def _box(self, tape: Tape, x: Tensor) -> tuple[tuple[Tensor, Tensor], dict[str, str]]:
        """Bounds of the input, and what the provenance says of them."""
        known = tape.preprocess.bounds() or (None, None)
        seen = (x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))  # of each image, so that batch mates do not matter
        ends, said = [], {}
        for given, own, name in ((self.low, 0, "low"), (self.high, 1, "high")):
            wanted = known[own] if given is None else given
            if wanted is None:
                ends.append(seen[own])
                said[name] = "each image's own range"
                continue
            ends.append(_bound(name, wanted, x))
            source = "preprocessing" if given is None else "given"
            said[name] = f"{[round(v, 4) for v in ends[-1].flatten().tolist()]} ({source})"
        if bool((ends[0] > ends[1]).any()):
            raise InputError(f"low={said['low']} lies above high={said['high']}; expected the bounds of the input's values.")
        return (ends[0], ends[1]), said


@dataclass
class _Run:
    """A forward under watch, ready for backwards."""

    prop: Propagation
    scores: Tensor
    cut: list[Tensor]
    site: Site | None
    said: dict[str, str]


def _bound(name: str, wanted: Any, x: Tensor) -> Tensor:
    """A bound of the input as `(1, 3, 1, 1)`."""
    try:
        bound = torch.as_tensor(wanted).to(x)
        return (bound[:, None, None] if bound.ndim == 1 else bound).expand(1, 3, 1, 1)
    except (RuntimeError, TypeError, ValueError) as error:
        shape = getattr(wanted, "shape", None)
        given = repr(wanted) if shape is None else f"shape {tuple(shape)}"
        raise InputError(
            f"{name}= does not broadcast to (1, 3, 1, 1): {given} came, expected a number, or one for each channel."
        ) from error
