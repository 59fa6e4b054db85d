"""A map as a segmentation: the protocol of Chefer et al. 2021, over a data set, from sums that can be merged."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from heatproof.errors import InputError
from heatproof.proof.localisation import as_tensor, precision_area


@dataclass
class Segmentation:
    """Pixel accuracy, mIoU and mAP of maps against masks, batch by batch.

    Each map is clipped at 0 and stretched to [0, 1]; foreground is where it is above its own mean. Pixel accuracy and the
    IoU of foreground and of background come from counts pooled over all images (a large object weighs more than a small
    one), `mIoU = (IoU_fg + IoU_bg) / 2`; `mAP` is the mean over images of the average precision of the soft map and one
    minus it, taken together, as a detector of foreground and background.

    Attributes:
        counts: `(2, 2)` pixels by truth (row) and by prediction (column), background first.
        precisions: average precision of each image.

    Paper: Chefer, Gur, Wolf 2021, "Transformer Interpretability Beyond Attention Visualization", section 4.
    """

    counts: Tensor = field(default_factory=lambda: torch.zeros(2, 2, dtype=torch.long))
    precisions: list[float] = field(default_factory=list)

    def update(self, maps: Any, masks: Any, void: Any = None) -> None:
        """Add a batch.

        Args:
            maps: `(B, H, W)`, any range. A constant map is all background.
            masks: `(B, H, W)`, True on the object; may be empty.
            void: `(B, H, W)`, pixels left out of the scores (not of the stretching, nor of the mean).

        Raises:
            InputError: shapes that differ, values that are not finite, or an image that is void altogether.
        """
        maps, masks = as_tensor(maps), as_tensor(masks) > 0
        counted = torch.ones_like(masks) if void is None else as_tensor(void) <= 0
        if maps.ndim != 3 or maps.shape != masks.shape or maps.shape != counted.shape:
            raise InputError(f"maps of shape {tuple(maps.shape)} and masks of {tuple(masks.shape)} came; expected (B, H, W).")
        if not torch.isfinite(maps).all():
            raise InputError("a map with NaN or infinite values came; leave that image out.")
        if not counted.flatten(1).any(1).all():
            raise InputError("an image is void altogether; leave it out.")
        soft = stretched(maps)
        for one, marked, on, count in zip(soft, above_mean(soft), masks, counted, strict=True):
            on, marked, values = on[count], marked[count], one[count]
            self.counts += torch.bincount(2 * on.long() + marked.long(), minlength=4).view(2, 2)
            area = precision_area(torch.cat([values, 1 - values]), torch.cat([on, ~on]))
            self.precisions.append(float(area))

    def merge(self, other: "Segmentation") -> "Segmentation":
        """Both data sets together."""
        return Segmentation(self.counts + other.counts, self.precisions + other.precisions)

    def compute(self) -> dict[str, float]:
        """`pixel_accuracy`, `miou`, `map` and the two parts of the mIoU, each from 0 to 1.

        Raises:
            InputError: no image came.
        """
        if not self.precisions:
            raise InputError("no image was scored; update() with at least one.")
        counts = self.counts.double()
        # where a class is neither there nor predicted, there is nothing to miss
        union = counts.sum(0) + counts.sum(1) - counts.diag()
        background, foreground = torch.where(union > 0, counts.diag() / union.clamp_min(1), 1.0).tolist()
        return {
            "pixel_accuracy": float(counts.diag().sum() / counts.sum()),
            "miou": (background + foreground) / 2,
            "map": sum(self.precisions) / len(self.precisions),
            "iou_foreground": foreground,
            "iou_background": background,
        }


def stretched(maps: Tensor) -> Tensor:
    """Each map clipped at 0 and stretched to [0, 1]; a constant one is 0."""
    positive = maps.clamp_min(0)
    low, high = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
    return (positive - low) / (high - low).clamp_min(torch.finfo(positive.dtype).tiny)


def above_mean(soft: Tensor) -> Tensor:
    """Foreground: where a map is above its own mean."""
    return soft > soft.mean((1, 2), keepdim=True)
