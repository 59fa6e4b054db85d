"""Attributions from input gradients: what the score would do if the input moved a little, or along a path."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from heatproof import seeds
from heatproof.errors import InputError
from heatproof.methods import Maps
from heatproof.models.tape import Tape

_TOLERANCE = 1e-3
_FIRST_STEPS, _MOST_STEPS = 16, 512


@dataclass(frozen=True)
class Gradient:
    """How sharply the score reacts to each pixel (vanilla gradient, "saliency").

    `map_ij = max_c |∂s/∂x_cij|`

    Returns:
        `raw` `(B, T, 3, H, W)` the signed gradient; `maps` `(B, T, H, W)` ≥ 0, score per unit of input.

    Misleads where the score is saturated (evidence without gradient) and on pixels whose gradient is noise.

    Paper: Simonyan, Vedaldi, Zisserman 2014, "Deep Inside Convolutional Networks", section 3.
    """

    signed: ClassVar[bool] = False

    def __call__(self, tape: Tape) -> Maps:
        return _strongest(tape.input_gradient)


@dataclass(frozen=True)
class GradientXInput:
    """First-order share of each pixel in the score, as seen from zero input.

    `R_cij = x_cij · ∂s/∂x_cij`, summed over the channels in `maps`

    Returns:
        `raw` `(B, T, 3, H, W)` signed, in units of the score; `residual` what the shares leave of it: zero for
        networks that are piecewise linear without biases.

    Misleads where the input is near zero: a black (or, after normalisation, mean-coloured) pixel can never count.

    Paper: Shrikumar et al. 2016, "Not Just a Black Box", section 2.
    """

    signed: ClassVar[bool] = True

    def __call__(self, tape: Tape) -> Maps:
        return _shares(tape, tape.x.detach()[:, None] * tape.input_gradient)


@dataclass(frozen=True)
class IntegratedGradients:
    """Gradients added up along the straight path from a baseline to the image.

    `R = (x − x′) ⊙ ∫₀¹ ∇s(x′ + α (x − x′)) dα`, by the trapezoid rule

    Args:
        steps: that many equal intervals of the path. None starts with 16 and halves those intervals in which the
            attributions miss the change of the score most, until `ΣR = s(x) − s(x′)` holds to 1e-3, or 512 gradients
            are spent: the score changes in a small part of the path, and equal steps waste most of theirs.
        baseline: `x′`, a tensor that broadcasts to `(B, 3, H, W)` in preprocessed units; None is zero, the mean colour.
        batch_size: inputs per forward; None chooses.

    Returns:
        `raw` `(B, T, 3, H, W)` signed, in units of the score; `residual = s(x) − ΣR`: the baseline's own score and
        whatever the quadrature missed.

    Raises:
        InputError: `steps` below 1, or a baseline that does not broadcast.

    Misleads with the baseline: what looks like the baseline gets nothing. Another baseline is another question.

    Paper: Sundararajan, Taly, Yan 2017, "Axiomatic Attribution for Deep Networks", equation 1.
    """

    signed: ClassVar[bool] = True
    steps: int | None = None
    baseline: Any = None
    batch_size: int | None = None

    def __call__(self, tape: Tape) -> Maps:
        _positive("steps", self.steps)
        x = tape.x.detach()
        start = like_input(self.baseline, x, "baseline")
        rows = [[self._path(tape, start[i], x[i], target) for target in tape.targets[i]] for i in range(len(x))]
        return _shares(tape, torch.stack([torch.stack(row) for row in rows]))

    def _path(self, tape: Tape, start: Tensor, end: Tensor, target: Tensor) -> Tensor:
        limit, change = tape.limit(self.batch_size), end - start

        def visit(alphas: Tensor) -> tuple[Tensor, ...]:
            """Positions, scores, slopes along the path and gradients there."""
            parts = []
            for some in alphas.split(limit):
                points = start + some.view(-1, 1, 1, 1).to(start) * change
                scores, gradients = tape.gradients_at(points, target.expand(len(some), 1))
                parts.append((some, scores[:, 0], (gradients[:, 0] * change).sum((1, 2, 3)), gradients[:, 0]))
            return tuple(torch.cat(column) for column in zip(*parts, strict=True))

        nodes = visit(torch.linspace(0, 1, (self.steps or _FIRST_STEPS) + 1, device=start.device))
        while True:
            order = nodes[0].argsort()
            alphas, scores, slopes = (column[order] for column in nodes[:3])
            missed = alphas.diff() * (slopes[1:] + slopes[:-1]) / 2 - scores.diff()
            scale = (scores[-1] - scores[0]).abs().clamp_min(1e-3 * scores.abs().max())
            if self.steps or len(alphas) >= _MOST_STEPS or missed.sum().abs() <= _TOLERANCE * scale:
                break
            worst = missed.abs().topk(min(limit, _FIRST_STEPS)).indices
            worst = worst[missed[worst].abs() > _TOLERANCE * scale / len(missed)]
            fresh = visit((alphas[worst] + alphas[worst + 1]) / 2)
            nodes = tuple(torch.cat(pair) for pair in zip(nodes, fresh, strict=True))
        widths = torch.nn.functional.pad(alphas.diff(), (1, 1))
        weights = ((widths[1:] + widths[:-1]) / 2).to(start)
        return change * torch.einsum("n,nchw->chw", weights, nodes[3][order].to(start))


@dataclass(frozen=True)
class SmoothGrad:
    """The gradient averaged over noisy copies of the image.

    `g = mean_n ∇s(x + σ ε_n)`, `ε_n ~ N(0, 1)`, `σ = noise · (max x − min x)`; `map_ij = max_c |g_cij|`

    Args:
        samples: copies.
        noise: standard deviation, in shares of the image's range.
        seed: of the noise; every image gets the same noise, so batch mates do not matter.
        batch_size: inputs per forward; None chooses.

    Returns:
        `raw` `(B, T, 3, H, W)` the signed mean gradient; `maps` `(B, T, H, W)` ≥ 0.

    Raises:
        InputError: `samples` below 1 or negative `noise`.

    Misleads by looking better than the gradient: smoother is not truer.

    Paper: Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", section 3.
    """

    signed: ClassVar[bool] = False
    samples: int = 25
    noise: float = 0.15
    seed: int = 0
    batch_size: int | None = None

    def __call__(self, tape: Tape) -> Maps:
        _positive("samples", self.samples)
        if not (isinstance(self.noise, int | float) and self.noise >= 0):
            raise InputError(f"noise={self.noise!r}; expected a share of the image's range, 0 or more.")
        x = tape.x.detach()
        generator = seeds.generator(self.seed)
        total = torch.zeros_like(tape.targets[:, :, None, None, None], dtype=x.dtype)
        sigma = self.noise * (x.amax((1, 2, 3)) - x.amin((1, 2, 3)))
        done, limit = 0, tape.limit(self.batch_size)
        while done < self.samples:
            count = min(limit, self.samples - done)
            noise = torch.randn(count, *x.shape[1:], generator=generator).to(x)
            sums = [
                tape.gradients_at(x[i] + sigma[i] * noise, tape.targets[i].expand(count, -1))[1].sum(0) for i in range(len(x))
            ]
            total, done = total + torch.stack(sums), done + count
        return _strongest(total / self.samples)


@dataclass(frozen=True)
class Taylor:
    """First-order Taylor decomposition of the score around a root point.

    `R = ∇s(x̃) ⊙ (x − x̃)`, so that `s(x) = s(x̃) + ΣR + O(‖x − x̃‖²)`

    Args:
        root: `x̃`, a tensor that broadcasts to `(B, 3, H, W)` in preprocessed units. None searches the segment from
            zero to `x` for the point nearest to `x` where the target's score is zero, or nearest to zero.

    Returns:
        `raw` `(B, T, 3, H, W)` signed, in units of the score; `residual`: `s(x̃)` and the higher orders.

    Raises:
        InputError: a root that does not broadcast.

    Misleads with the root: near `x` it is the gradient's question, far from `x` the first order says little.

    Paper: Montavon et al. 2017, "Explaining nonlinear classification decisions with deep Taylor decomposition", equation 2.
    """

    signed: ClassVar[bool] = True
    root: Any = None

    def __call__(self, tape: Tape) -> Maps:
        x = tape.x.detach()
        count = tape.targets.shape[1]
        each, targets = x.repeat_interleave(count, 0), tape.targets.reshape(-1, 1)
        if self.root is None:
            roots = each * _root_positions(tape, each, targets).view(-1, 1, 1, 1)
        else:
            roots = like_input(self.root, x, "root").repeat_interleave(count, 0)
        slopes = torch.cat(
            [
                tape.gradients_at(r, t)[1]
                for r, t in zip(roots.split(tape.limit(None)), targets.split(tape.limit(None)), strict=True)
            ]
        )
        return _shares(tape, (slopes[:, 0] * (each - roots)).unflatten(0, (-1, count)))


def _root_positions(tape: Tape, x: Tensor, targets: Tensor, grid: int = 16, halvings: int = 12) -> Tensor:
    """For each row the largest α below 1 with score(α x) = 0, else the one with the smallest |score| on the grid."""

    def scores(alphas: Tensor) -> Tensor:
        scaled = x * alphas.view(-1, 1, 1, 1)
        return tape.in_batches(len(x), None, lambda rows: tape.scores_of(scaled[rows]).gather(1, targets[rows]))[:, 0]

    alphas = torch.linspace(1, 0, grid + 1, device=x.device, dtype=x.dtype)
    values = torch.stack([scores(a.expand(len(x))) for a in alphas], 1)
    crossing = (values[:, :-1] * values[:, 1:] <= 0).float()
    first = crossing.argmax(1)
    high, low = alphas[first], alphas[first + 1]
    at_high = values.gather(1, first[:, None])[:, 0]
    for _ in range(halvings):
        middle = (high + low) / 2
        same = scores(middle) * at_high > 0
        high, low = torch.where(same, middle, high), torch.where(same, low, middle)
    return torch.where(crossing.any(1), (high + low) / 2, alphas[values.abs().argmin(1)])


def _strongest(gradient: Float[Tensor, "batch targets 3 height width"]) -> Maps:
    return Maps(gradient, gradient.abs().amax(2))


def _shares(tape: Tape, raw: Float[Tensor, "batch targets 3 height width"]) -> Maps:
    return Maps(raw, raw.sum(2), tape.target_scores - raw.flatten(2).sum(2))


def like_input(value: Any, x: Tensor, name: str) -> Float[Tensor, "batch 3 height width"]:
    """A reference point in the shape of the batch: zeros for None.

    Raises:
        InputError: it does not broadcast, or has values that are no numbers.
    """
    try:
        point = torch.as_tensor(0.0 if value is None else value).to(x).expand_as(x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{name}= does not broadcast to the batch {tuple(x.shape)}: {error}") from error
    if not torch.isfinite(point).all():
        raise InputError(f"{name}= has NaN or infinite values; remove or mend them first.")
    return point


def _positive(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InputError(f"{name}={value!r}; expected a whole number of at least 1.")
