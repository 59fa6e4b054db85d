"""The CAM family that asks the model again: channels as masks, and channels taken away."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from heatproof.cam.methods import LayerMethod
from heatproof.cam.saliency import resize
from heatproof.errors import ModelError
from heatproof.models.sites import Site
from heatproof.models.tape import Tape

_WIDE = 2**24
"""Numbers that the copies of an ablated layer may take together."""


@dataclass(frozen=True)
class ScoreCAM(LayerMethod):
    """Channels weighted by the score that the image keeps when the channel masks it.

    `Sal = ReLU(Σ_k w_k A^k)`, `w = softmax_k(s(x ⊙ H^k))`, `H^k` the channel resized to the input and stretched to [0, 1]

    Args:
        layer: where to read; None for the last spatial features.
        batch_size: masked images per forward; None chooses.

    Returns:
        `raw` `(B, T, h, w)` ≥ 0. All targets share the forwards: one per channel and image.

    Raises:
        ModelError: the layer is no map.

    Misleads where a mask leaves the training distribution: the softmax of logits that moves all weight to a few
    channels can be the artefact of a grey border. The paper's baseline score cancels in the softmax.

    Paper: Wang et al. 2020, "Score-CAM", algorithm 1.
    """

    batch_size: int | None = None

    def layers(self, tape: Tape) -> Iterable[tuple[Tensor, Tensor]]:
        for activation in tape.activations:
            scores = torch.stack([self._masked_scores(tape, i, activation[i]) for i in range(len(activation))])
            yield scores.softmax(1).transpose(1, 2)[..., None, None], activation[:, None]

    def _masked_scores(self, tape: Tape, i: int, channels: Tensor) -> Tensor:
        x = tape.x.detach()[i]

        def scores(rows: slice) -> Tensor:
            mask = resize(channels[rows, None], tape.size)
            low, high = mask.amin((-2, -1), keepdim=True), mask.amax((-2, -1), keepdim=True)
            mask = torch.where(high > low, (mask - low) / (high - low), 0.0)
            return tape.scores_of(x * mask.to(x))[:, tape.targets[i]]

        return tape.in_batches(len(channels), self.batch_size, scores).to(channels)


@dataclass(frozen=True)
class AblationCAM(LayerMethod):
    """Channels weighted by the share of the score that is lost without them.

    `Sal = ReLU(Σ_k w_k A^k)`, `w_k = (s − s_k) / |s|`, `s_k` the score with channel k set to zero

    Args:
        layer: where to read; None for the last spatial features.
        batch_size: ablated copies per forward; None chooses.

    Returns:
        `raw` `(B, T, h, w)` ≥ 0. All targets share the forwards.

    Raises:
        ModelError: the layer is no map.

    The paper divides by `s`; by `|s|`, a channel whose loss lowers a negative score still counts as evidence.
    Misleads where channels are redundant: each alone can go without a loss.

    Paper: Desai & Ramaswamy 2020, "Ablation-CAM", equation 3.
    """

    batch_size: int | None = None

    def layers(self, tape: Tape) -> Iterable[tuple[Tensor, Tensor]]:
        for site, activation in zip(tape.sites, tape.activations, strict=True):
            rows = [self._losses(tape, site, i, activation[i]) for i in range(len(activation))]
            yield torch.stack(rows).transpose(1, 2)[..., None, None], activation[:, None]

    def _losses(self, tape: Tape, site: Site, i: int, channels: Tensor) -> Tensor:
        x, targets = tape.x.detach()[i : i + 1], tape.targets[i]
        active = channels.flatten(1).any(1).nonzero().flatten()  # a channel of zeros costs nothing, exactly
        losses = channels.new_zeros(len(channels), len(targets))
        if len(active):
            # one copy per channel only exists from this layer on, so many fit where 16 whole forwards would
            limit = self.batch_size or max(tape.limit(None), _WIDE // channels.numel())

            def scores(rows: slice) -> Tensor:
                factors = channels.new_ones(rows.stop - rows.start, len(channels))
                factors[torch.arange(len(factors)), active[rows]] = 0
                return _ablated(tape, site, x, factors, tape.scores[i])[:, targets]

            losses[active] = (tape.scores[i, targets] - tape.in_batches(len(active), limit, scores)).to(losses)
        return losses / tape.scores[i, targets].abs().clamp_min(1e-12).to(losses)


def _ablated(tape: Tape, site: Site, x: Tensor, factors: Tensor, whole: Tensor) -> Tensor:
    """Scores of one image with a layer's channels multiplied by each row of factors.

    Below the layer one image is enough; from it on there is one copy per row, and one more that stays whole and
    tells whether the layers above took the widened batch as meant. A network that concatenates the layer's output
    with something from below it cannot; there every layer runs on all copies.
    """
    try:
        with tape.edited(site, torch.cat([torch.ones_like(factors[:1]), factors])):
            wide = tape.scores_of(x)
        if len(wide) == len(factors) + 1 and torch.allclose(wide[0], whole, rtol=1e-3, atol=1e-4):
            return wide[1:]
    except ModelError:
        pass

    def scores(rows: slice) -> Tensor:
        with tape.edited(site, factors[rows]):
            return tape.scores_of(x.expand(rows.stop - rows.start, -1, -1, -1))

    return tape.in_batches(len(factors), None, scores)
