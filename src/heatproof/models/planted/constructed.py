"""Networks with hand-set weights, whose every answer is known: where derivatives and interventions disagree, and why.

Red, green and blue are three inputs that mean different things to each network; where they are in the image does not
matter to it, so every method that works on a convolutional network works on these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from heatproof import seeds
from heatproof.models.model import Model
from heatproof.models.preprocess import RAW

GAIN = 6.0
"""The target's score with all its evidence; the other class always has half of it."""

_STEEP, _LEVEL, _WIDTH = 24.0, 0.8, 0.02


@dataclass(frozen=True, eq=False)
class Case:
    """One constructed network, one image, and what is true of the two.

    Args:
        name: of the case.
        model: pixels in [0, 1] to two scores, of which the first is in question.
        x: `(1, 3, H, W)`.
        evidence: `(H, W)` the pixels that the score comes from.
        others: `(H, W)` masks of pixels that play another part, by name.
        truth: what is true, in a sentence.
        worth: `(H, W)` exact loss of score when one pixel alone turns black, where there is such a thing.
    """

    name: str
    model: Model
    x: Float[Tensor, "1 3 height width"]
    evidence: Bool[Tensor, "height width"]
    truth: str
    others: dict[str, Bool[Tensor, "height width"]] = field(default_factory=dict)
    worth: Float[Tensor, "height width"] | None = None
    target: int = 0


class Constructed(nn.Module):
    """1×1 convolution, ReLU, mean over the image, linear, ReLU, linear: every weight is given.

    Args:
        colours: `(k, 3)` weights of the convolution, and its `k` biases.
        mixtures: `(j, k)` weights of the first linear layer, and its `j` biases.
        votes: `j` weights of the target's score; the other class has the constant score `GAIN / 2`.
    """

    def __init__(
        self,
        colours: tuple[Sequence[Sequence[float]], Sequence[float]],
        mixtures: tuple[Sequence[Sequence[float]], Sequence[float]],
        votes: Sequence[float],
        bias: float = 0.0,
    ) -> None:
        super().__init__()
        k, j = len(colours[0]), len(mixtures[0])
        self.features = nn.Sequential(nn.Conv2d(3, k, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(k, j), nn.ReLU(), nn.Linear(j, 2))
        given = [*colours, *mixtures, [list(votes), [0.0] * j], [bias, GAIN / 2]]
        with torch.no_grad():
            for parameter, values in zip(self.parameters(), given, strict=True):
                parameter.copy_(torch.tensor(values).view_as(parameter))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


def saturated(size: tuple[int, int] = (32, 48), seed: int = 0) -> Case:
    """The saturated neuron: the score is at its ceiling, so no pixel has a gradient, and all evidence together is everything.

    `s = GAIN (1 − ReLU(1 − 1.05 r))`, r the share of the red square that is there
    """
    x, (square,) = _scene(size, seed, 1)
    x[0, 0, square] = 1
    share = _per(square, 1.05)
    net = Constructed(_RED, ([[-share, 0, 0]], [1.0]), [-GAIN], GAIN)
    truth = "The red square is all the evidence: without it the score falls to 0. Its gradient is exactly 0 everywhere."
    return Case("saturated neuron", _model(net, "saturated"), x, square, truth)


def spurious(size: tuple[int, int] = (32, 48), seed: int = 0) -> Case:
    """The spurious pixel: the steepest gradient of the image at a background pixel that can change next to nothing.

    `s = GAIN (r + clamp(24 (b − 0.8), 0, 0.48) / n)`: the blue of one pixel stands on a steep, low step; n red pixels
    """
    x, (square,) = _scene(size, seed, 1)
    x[0, 0, square] = 1
    pixel = torch.zeros_like(square)
    away = (~square).nonzero()
    row, column = away[int(torch.randint(len(away), (), generator=seeds.generator(seed + 1)))].tolist()
    pixel[row, column] = True
    x[0, 2, pixel] = _LEVEL + _WIDTH / 2
    area = float(size[0] * size[1])
    step = area / float(square.sum())
    colours = ([[1.0, 0.0, 0.0], [0.0, 0.0, _STEEP], [0.0, 0.0, _STEEP]], [0.0, -_STEEP * _LEVEL, -_STEEP * (_LEVEL + _WIDTH)])
    net = Constructed(colours, ([[_per(square, 1.0), 0, 0], [0, step, -step]], [0.0, 0.0]), [GAIN, GAIN])
    truth = (
        "The red square is the evidence. One blue background pixel has 24 times the gradient of a red one and, whatever "
        "it is replaced by, less than a quarter of the effect."
    )
    return Case("spurious pixel", _model(net, "spurious"), x, square, truth, {"spurious": pixel})


def redundant(size: tuple[int, int] = (32, 48), seed: int = 0) -> Case:
    """Redundant evidence: either of two squares is enough, and removing one of them changes nothing.

    `s = GAIN max(r, g − 10⁻⁴)`, written `r + ReLU(g − r − 10⁻⁴)`: were the two equal, rounding would choose the gradient's
    """
    x, (first, second) = _scene(size, seed, 2)
    x[0, 0, first], x[0, 1, second] = 1, 1
    red, green = _per(first, 1.0), _per(second, 1.0)
    net = Constructed(_ALL, ([[red, 0, 0], [-red, green, 0]], [0.0, -1e-4]), [GAIN, GAIN])
    truth = (
        "The red and the green square are evidence, each enough for the whole score. The gradient sees only one of them; "
        "removing one costs nothing, removing both everything."
    )
    return Case("redundant evidence", _model(net, "redundant"), x, first | second, truth, {"red": first, "green": second})


def suppressor(size: tuple[int, int] = (32, 48), seed: int = 0) -> Case:
    """The suppressor: pixels that say nothing about the class, which the network subtracts to clean its evidence.

    `s = GAIN ReLU(r − g)`: red is signal plus disturbance, green is the disturbance alone
    """
    x, (square, beside) = _scene(size, seed, 2)
    noise = torch.rand(int(square.sum()), generator=seeds.generator(seed + 2)) * 0.5
    x[0, 0, square], x[0, 1, beside] = 0.5 + noise, noise
    share = _per(square, 2.0)
    net = Constructed(_ALL, ([[share, -share, 0]], [0.0]), [GAIN])
    truth = (
        "The red square holds the evidence. The green one holds none: the network subtracts it, so its removal raises the "
        "score, and a map that marks it positively is wrong."
    )
    return Case("suppressor", _model(net, "suppressor"), x, square, truth, {"suppressor": beside})


def additive(size: tuple[int, int] = (32, 48), seed: int = 0) -> Case:
    """The additive model: every pixel is worth what it is worth, whatever the others are.

    `s = GAIN Σ_i (2 r_i − g_i) / n`, n the pixels of the red square
    """
    x, (square, against) = _scene(size, seed, 2)
    generator = seeds.generator(seed + 3)
    x[0, 0, square] = 0.5 + torch.rand(int(square.sum()), generator=generator) / 2
    x[0, 1, against] = torch.rand(int(against.sum()), generator=generator)
    share = _per(square, 1.0)
    mixture = [2 * share, -share, 0.0]
    net = Constructed(_ALL, ([mixture, [-one for one in mixture]], [0.0, 0.0]), [GAIN, -GAIN])
    worth = GAIN * (2 * x[0, 0] - x[0, 1]) / float(square.sum())
    truth = "Each red pixel adds twice its brightness to the score, each green one takes its own from it; blue does nothing."
    return Case("additive model", _model(net, "additive"), x, square, truth, {"against": against}, worth)


CONSTRUCTED: dict[str, Callable[..., Case]] = {
    "saturated": saturated,
    "spurious": spurious,
    "redundant": redundant,
    "suppressor": suppressor,
    "additive": additive,
}
"""Every constructed case by its name; each takes `size=` and `seed=`, which decides the layout."""

_RED = ([[1, 0, 0], [0, 0, 0], [0, 0, 0]], [0.0, 0.0, 0.0])
_ALL = ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0.0, 0.0, 0.0])


def _scene(size: tuple[int, int], seed: int, squares: int) -> tuple[Tensor, list[Tensor]]:
    """A blue texture that no network reads, and places for squares of a quarter of the shorter side that do not touch."""
    height, width = size
    generator = seeds.generator(seed)
    x = torch.zeros(1, 3, height, width)
    x[0, 2] = torch.rand(height, width, generator=generator) / 2
    side, column = max(1, min(size) // 4), width // squares
    masks = []
    for n in range(squares):
        top = int(torch.randint(height - side + 1, (), generator=generator))
        left = n * column + int(torch.randint(column - side, (), generator=generator))
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[top : top + side, left : left + side] = True
        masks.append(mask)
    return x, masks


def _per(mask: Tensor, scale: float) -> float:
    """The weight behind the mean over the image that makes a fully lit mask worth `scale`."""
    return scale * mask.numel() / float(mask.sum())


def _model(net: nn.Module, name: str) -> Model:
    return Model(net, name=f"constructed/{name}", preprocess=RAW, labels=("evidence", "none"))
