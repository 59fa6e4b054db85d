"""The slow, obvious second implementation of relevance: matrices for layers, a graph of values for networks.

Everything here is in relevance itself (`R`), one image at a time, with each layer's matrix written out; the package
works in gradient form (`R / a`), batched, and never makes a matrix.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from heatproof.lrp import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, Zero, ZPlus


def share(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, nothing where there is nothing to share."""
    return torch.where(whole == 0, 0.0, part / torch.where(whole == 0, 1.0, whole))


def matrix(layer: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix (outputs × inputs) and constant of an affine map, found column by column."""
    zero = torch.zeros_like(like)
    with torch.no_grad():
        constant = layer(zero[None])[0].flatten()
        columns = []
        for j in range(like.numel()):
            unit = zero.clone().flatten()
            unit[j] = 1
            columns.append(layer(unit.view_as(like)[None])[0].flatten() - constant)
    return torch.stack(columns, 1), constant


def explicit(rule, a: Tensor, w: Tensor, b: Tensor, relevance: Tensor, ones: Tensor | None = None, box=None):
    """`R_j`, and what bias and stabiliser took, for `z_k = Σ_j w_kj a_j + b_k`, all as the rule's paper writes it.

    Args:
        ones: matrix of the same layer with every weight 1: which input each output sees.
        box: lowest and highest value of each input.
    """
    c = w * a  # contributions, outputs × inputs
    z = c.sum(1) + b
    nothing = torch.zeros((), dtype=a.dtype)
    if isinstance(rule, Zero):
        return (share(c, z[:, None]) * relevance[:, None]).sum(0), (share(b, z) * relevance).sum(), nothing
    if isinstance(rule, Epsilon):
        safe = z + rule.epsilon * torch.where(z < 0, -1.0, 1.0)
        s = relevance / safe
        return (c * s[:, None]).sum(0), (b * s).sum(), ((safe - z) * s).sum()
    if isinstance(rule, Gamma):
        positive = z[:, None] > 0
        c = c + rule.gamma * torch.where(positive, c.clamp(min=0), c.clamp(max=0))
        b = b + rule.gamma * torch.where(positive[:, 0], b.clamp(min=0), b.clamp(max=0))
        whole = c.sum(1) + b
        return (share(c, whole[:, None]) * relevance[:, None]).sum(0), (share(b, whole) * relevance).sum(), nothing
    if isinstance(rule, ZPlus):
        rule = AlphaBeta(1.0, 0.0)
    if isinstance(rule, AlphaBeta):
        back, bias, lost = 0, 0, 0
        for factor, low, high in ((rule.alpha, 0.0, None), (-rule.beta, None, 0.0)):
            part, part_b = c.clamp(low, high), b.clamp(low, high)
            whole = part.sum(1) + part_b
            back = back + factor * (share(part, whole[:, None]) * relevance[:, None]).sum(0)
            bias = bias + factor * (share(part_b, whole) * relevance).sum()
            lost = lost + factor * (relevance * (whole == 0)).sum()
        return back, bias, lost
    if isinstance(rule, Flat):
        parts = ones
    elif isinstance(rule, WSquare):
        parts = w.square()
    elif isinstance(rule, ZBox):
        low, high = box
        parts = c - low * w.clamp(min=0) - high * w.clamp(max=0)
    else:
        raise TypeError(rule)
    whole = parts.sum(1, keepdim=True)
    return (share(parts, whole) * relevance[:, None]).sum(0), nothing, (relevance * (whole[:, 0] == 0)).sum()


class Value:
    """One value of a network on one image, and how its relevance goes back to the values it was made of."""

    def __init__(self, x: Tensor, sources: list[tuple["Value", Callable[[Tensor], Tensor]]] = ()) -> None:
        self.x, self.sources, self.relevance = x, list(sources), torch.zeros_like(x)

    def propagate(self, relevance: Tensor) -> None:
        """Hand relevance down to everything below, each value once all above it has spoken."""
        order: list[Value] = []

        def visit(value: Value) -> None:
            for source, _ in value.sources:
                if source not in order:
                    visit(source)
            if value not in order:
                order.append(value)

        visit(self)
        self.relevance = relevance
        for value in reversed(order):
            for source, back in value.sources:
                source.relevance = source.relevance + back(value.relevance).view_as(source.x)


class Naive:
    """The operations of a network, each with its own relevance, for one composite.

    Args:
        rule: from `(kind, pixels, top)` to the layer's rule.
        uniform: AttnLRP's halves for products and its softmax, or weights and gates as constants.
        box: `(low, high)` of the pixels, `(1, 3, 1, 1)`.
    """

    def __init__(self, rule: Callable[[str, bool, bool], object], uniform: bool, box: tuple[Tensor, Tensor]) -> None:
        self.rule, self.uniform, self.box = rule, uniform, box

    def affine(self, a: Value, layer, kind="convolution", pixels=False, top=False, ones=None) -> Value:
        w, b = matrix(layer, a.x)
        z = layer(a.x[None])[0].detach()
        seen = None if ones is None else matrix(ones, a.x)[0]
        box = tuple(edge.expand(1, *a.x.shape).flatten() for edge in self.box) if pixels else None
        rule = self.rule(kind, pixels, top)
        return Value(z, [(a, lambda r: explicit(rule, a.x.flatten(), w, b, r.flatten(), seen, box)[0])])

    def linear_map(self, a: Value, layer) -> Value:
        """What is linear without being a weighted layer: in proportion to the contributions."""
        w, b = matrix(layer, a.x)
        z = (w @ a.x.flatten() + b).view_as(layer(a.x[None])[0])
        return Value(z, [(a, lambda r: explicit(Zero(), a.x.flatten(), w, b, r.flatten())[0])])

    def activation(self, a: Value, function) -> Value:
        """All that arrives passes, but for what the value at zero takes: that is a constant."""
        y, constant = function(a.x), function(torch.zeros_like(a.x))
        return Value(y, [(a, lambda r: share(y - constant, y) * r)])

    def columns(self, a: Value, start: int, stop: int) -> Value:
        """Part of the last axis."""
        after = a.x.shape[-1] - stop
        return Value(a.x[..., start:stop], [(a, lambda r: torch.nn.functional.pad(r, (start, after)))])

    def token(self, a: Value, index: int) -> Value:
        """One row."""

        def back(r: Tensor) -> Tensor:
            rows = torch.zeros_like(a.x)
            rows[index] = r
            return rows

        return Value(a.x[index], [(a, back)])

    def tokenwise(self, a: Value, layer) -> Value:
        """A linear layer on every token."""
        rule = self.rule("linear", False, False)
        w, b = matrix(layer, a.x[0])
        z = layer(a.x).detach()

        def back(r: Tensor) -> Tensor:
            return torch.stack([explicit(rule, token, w, b, one)[0] for token, one in zip(a.x, r, strict=True)])

        return Value(z, [(a, back)])

    def max_pool(self, a: Value, size: int) -> Value:
        y, index = torch.nn.functional.max_pool2d(a.x[None], size, return_indices=True)

        def back(r: Tensor) -> Tensor:
            found = torch.zeros_like(a.x).flatten(1)
            return found.scatter_add(1, index[0].flatten(1), r.flatten(1))

        return Value(y[0], [(a, back)])

    def add(self, a: Value, b: Value) -> Value:
        z = a.x + b.x
        return Value(z, [(a, lambda r: share(a.x, z) * r), (b, lambda r: share(b.x, z) * r)])

    def plus(self, a: Value, constant: Tensor) -> Value:
        z = a.x + constant
        return Value(z, [(a, lambda r: share(a.x, z) * r)])

    def cat(self, parts: list[Value], axis: int = 0) -> Value:
        sizes = [part.x.shape[axis] for part in parts]
        take = [lambda r, n=n: r.split(sizes, axis)[n] for n in range(len(parts))]
        return Value(torch.cat([part.x for part in parts], axis), list(zip(parts, take, strict=True)))

    def view(self, a: Value, change: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Value:
        return Value(change(a.x), [(a, back)])

    def gate(self, a: Value, gate: Value) -> Value:
        """`a · gate`; the gate may broadcast."""
        if not self.uniform:
            return Value(a.x * gate.x, [(a, lambda r: r)])
        sums = lambda r: (r / 2).sum_to_size(gate.x.shape)  # noqa: E731
        return Value(a.x * gate.x, [(a, lambda r: r / 2), (gate, sums)])

    def softmax(self, a: Value) -> Value:
        s = a.x.softmax(-1)
        return Value(s, [(a, lambda r: a.x * (r - s * r.sum(-1, keepdim=True)))])

    def weighted_sum(self, weights: Value, v: Value) -> Value:
        """Attention's `O = A V`; relevance of `O_jp` goes to each `A_ji V_ip` of its sum."""
        o = weights.x @ v.x

        def to_v(r: Tensor) -> Tensor:
            whole = torch.einsum("ji,ip,jp->ip", weights.x, v.x, share(r, o))
            return whole / 2 if self.uniform else whole

        def to_weights(r: Tensor) -> Tensor:
            return torch.einsum("ji,ip,jp->ji", weights.x, v.x, share(r, o)) / 2

        return Value(o, [(v, to_v), (weights, to_weights)] if self.uniform else [(v, to_v)])

    def logits(self, q: Value, k: Value, scale: float) -> Value:
        """`q kᵀ · scale`: half to each factor."""
        z = q.x @ k.x.T * scale

        def to_q(r: Tensor) -> Tensor:
            return torch.einsum("ip,jp,ij->ip", q.x, k.x, share(r, z)) * scale / 2

        def to_k(r: Tensor) -> Tensor:
            return torch.einsum("ip,jp,ij->jp", q.x, k.x, share(r, z)) * scale / 2

        return Value(z, [(q, to_q), (k, to_k)])

    def layer_norm(self, a: Value, norm) -> Value:
        """Standard deviation constant: for every token a linear map and a bias."""
        deviation = (a.x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
        n = a.x.shape[-1]
        centre = torch.eye(n, dtype=a.x.dtype) - 1 / n
        weight, bias = norm.weight.detach(), norm.bias.detach()
        z = a.x @ centre.T / deviation * weight + bias

        def back(r: Tensor) -> Tensor:
            rows = []
            for token, one, d in zip(a.x, r, deviation, strict=True):
                rows.append(explicit(Zero(), token, centre * weight[:, None] / d, bias, one)[0])
            return torch.stack(rows)

        return Value(z, [(a, back)])
