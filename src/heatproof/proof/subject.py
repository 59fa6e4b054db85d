"""`Subject`: one batch in front of one model, asked again and again what it makes of edited images."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from heatproof.errors import InputError, ModelError
from heatproof.models.batching import batch_limit, in_batches
from heatproof.models.model import Model
from heatproof.models.shadow import shadow
from heatproof.models.tape import at_least_float32, placement, recording, run

READINGS = ("probability", "score", "top-1")
"""What a test can read of a model: the target's probability, its score, or whether it is the top class (1 or 0)."""

_CLIP_SCALE = 100.0
"""What CLIP's temperature is clipped to in training, and where it ends."""


class Subject:
    """A batch of images, the scores that are in question, and a shadow of the model that can be asked for more.

    The shadow is made once, no graph is ever recorded, and the user's model is not touched. Images live on the model's
    device, everything that is read of them on the CPU.

    Args:
        model: what `load()` or `wrap()` returned.
        x: `(B, 3, H, W)` as the model takes it.
        targets: `(B, T)` class indices.
        batch_size: images per forward; None chooses by their area.
        progress: called with the number of images after each forward.

    Attributes:
        scores, all_scores: `(B, T)` and `(B, C)` of the untouched images.
        probabilities: `(B, T)` of the untouched images; `reading` says what they are.
        pixels: `(B, 3, H, W)` in [0, 1].
        forwards: images that went through the model so far.

    Raises:
        InputError: a shape that does not fit, or a target that does not exist.
        ModelError: the model cannot take the images, or its scores are not finite.
    """

    def __init__(
        self,
        model: Model,
        x: Tensor,
        targets: Tensor,
        *,
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if x.ndim != 4 or x.shape[1] != 3 or targets.ndim != 2 or len(targets) != len(x) or 0 in (*x.shape, targets.shape[1]):
            raise InputError(
                f"images of shape {tuple(x.shape)} and targets of shape {tuple(targets.shape)} came; expected (B, 3, H, W) "
                "and (B, T)."
            )
        self.model, self.module, self.progress, self.forwards = model, shadow(model.module), progress, 0
        with recording(False):
            self.x: Float[Tensor, "batch 3 height width"] = x.detach().clone().to(*placement(self.module))
            self.pixels: Float[Tensor, "batch 3 height width"] = model.preprocess.pixels(self.x)
        self.targets: Int[Tensor, "batch targets"] = targets.cpu()
        self.limit = batch_limit(*self.size, batch_size)
        self.all_scores: Float[Tensor, "batch classes"] = self._run(self.x)
        classes = self.all_scores.shape[1]
        if (targets < 0).any() or (targets >= classes).any():
            raise InputError(
                f"targets from {int(targets.min())} to {int(targets.max())}; this model has classes 0 to {classes - 1}."
            )
        self.scores: Float[Tensor, "batch targets"] = self.all_scores.gather(1, self.targets)
        self.probabilities: Float[Tensor, "batch targets"] = self._read(self.all_scores, self.targets, "probability")

    @property
    def size(self) -> tuple[int, int]:
        """`(H, W)` of the images."""
        return self.x.shape[-2], self.x.shape[-1]

    @property
    def scale(self) -> float:
        """What an image–text model multiplies its similarities by before the softmax: its own `logit_scale`, else CLIP's 100."""
        own = getattr(self.module, "logit_scale", None)
        return math.exp(float(own)) if isinstance(own, Tensor) and own.numel() == 1 else _CLIP_SCALE

    @property
    def reading(self) -> str:
        """What `"probability"` is for this model.

        Softmax over the classes; over the prompts, of the similarities times the model's own scale; the sigmoid of a
        single logit. The similarity itself where there is one prompt, whose softmax would always be 1.
        """
        single = self.all_scores.shape[1] == 1
        if self.model.takes_prompts:
            return "similarity" if single else f"softmax of {self.scale:.4g} × similarity"
        return "sigmoid" if single else "softmax probability"

    def clean(self, read: str = "score") -> Float[Tensor, "batch targets"]:
        """What is read of the untouched images: `"score"`, `"probability"` or `"top-1"`."""
        return self._read(self.all_scores, self.targets, read)

    def scores_of(
        self, images: Float[Tensor, "many 3 height width"], rows: Int[Tensor, " many"], read: str = "score"
    ) -> Float[Tensor, "many targets"]:
        """What other images score on the targets of the rows they were made from.

        Args:
            images: edited copies, as the model takes them; any number, split into the batch limit.
            rows: which image of the batch each one comes from.
            read: `"score"`, `"probability"` or `"top-1"`.

        Returns:
            `(n, T)`.
        """
        return self._read(self._run(images), self.targets[rows.cpu()], read)

    def stream(
        self,
        count: int,
        make: Callable[[slice], tuple[Tensor, Tensor]],
        read: str = "score",
    ) -> Float[Tensor, "count targets"]:
        """What `count` edited images score, of which at most one batch exists at any time.

        Args:
            count: how many there are.
            make: from a slice of `range(count)` to those images `(n, 3, H, W)` and the rows `(n,)` they come from.
            read: `"score"`, `"probability"` or `"top-1"`.

        Returns:
            `(count, T)`.
        """
        if count == 0:
            return self.scores.new_zeros(0, self.targets.shape[1])

        def compute(part: slice) -> Tensor:
            images, rows = make(part)
            # one forward and no further split: where memory ends, `make` is asked again for fewer
            return self._read(self._forward(images), self.targets[rows.cpu()], read)

        with recording(False):
            return in_batches(count, self.limit, compute)

    def _run(self, images: Tensor) -> Tensor:
        with recording(False):
            return in_batches(len(images), self.limit, lambda part: self._forward(images[part]))

    def _forward(self, images: Tensor) -> Tensor:
        batch = images.to(self.x, copy=True)  # a network may write into its input
        scores = at_least_float32(run(self.model.readout, self.module, batch)).cpu()
        if not torch.isfinite(scores).all():
            raise ModelError(
                f"the model's scores are NaN or infinite for {int((~torch.isfinite(scores)).any(1).sum())} of {len(batch)} "
                "image(s); check its weights (a failed training, or half precision that overflowed) and the range of the input."
            )
        self.forwards += len(batch)
        if self.progress:
            self.progress(len(batch))
        return scores

    def _read(self, scores: Tensor, targets: Tensor, read: str) -> Tensor:
        if read not in READINGS:
            raise InputError(f"read={read!r}; expected one of {', '.join(map(repr, READINGS))}.")
        if read == "top-1":
            return (scores.argmax(1, keepdim=True) == targets).to(scores)
        if read == "score" or self.reading == "similarity":
            return scores.gather(1, targets)
        if self.reading == "sigmoid":
            return scores.sigmoid().gather(1, targets)
        scale = self.scale if self.model.takes_prompts else 1.0
        return (scores * scale).softmax(1).gather(1, targets)
