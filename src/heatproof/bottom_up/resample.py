"""Large images to small ones and small maps to large ones: each pixel is read or written once, and images share the threads."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from heatproof.bottom_up.compiled import compiled, each


def averaged(
    x: Float[Tensor, "batch channels height width"], size: tuple[int, int], mix: Sequence[Sequence[float]] | None = None
) -> Float[Tensor, "batch planes h w"]:
    """Means over the pixels that each pixel of a smaller image touches, of mixtures of the channels.

    `out_kij = mean_{r ∈ rows(i), s ∈ columns(j)} Σ_c mix_kc x_crs`, `rows(i) = ⌊iH/h⌋ … ⌈(i+1)H/h⌉ − 1`

    Args:
        x: on the processor, float32.
        size: rows and columns, none larger than the image's.
        mix: one row of weights per plane; None keeps the channels.

    Returns:
        One plane per row of `mix`; NaN or infinite where a pixel that counts is.
    """
    count, channels = x.shape[:2]
    weights = np.asarray(np.eye(channels) if mix is None else mix, np.float32)
    # numpy asks for large pages, torch does not: on fresh memory that is most of the cost
    out = np.empty((count, len(weights), *size), np.float32)
    images = x.numpy()  # as it lies: copying images whose channels come last would take longer than reading them
    each(_average, "the reduction of images", [(image, weights, one) for image, one in zip(images, out, strict=True)])
    return torch.from_numpy(out)


@compiled
def _average(image: np.ndarray, mix: np.ndarray, out: np.ndarray) -> None:
    """Rows first, over the whole width, because that runs along memory; then the few columns of each mean."""
    channels, height, width = image.shape
    planes, tall, wide = out.shape
    line = np.empty(width, np.float32)
    for plane in range(planes):
        for i in range(tall):
            top, bottom = i * height // tall, -(-(i + 1) * height // tall)
            line[:] = 0
            for row in range(top, bottom):
                if channels == 3:  # in one pass over the line
                    a, b, c = mix[plane, 0], mix[plane, 1], mix[plane, 2]
                    for j in range(width):
                        line[j] += a * image[0, row, j] + b * image[1, row, j] + c * image[2, row, j]
                else:
                    for channel in range(channels):
                        for j in range(width):
                            line[j] += mix[plane, channel] * image[channel, row, j]
            for j in range(wide):
                left, right = j * width // wide, -(-(j + 1) * width // wide)
                total = np.float32(0)
                for k in range(left, right):
                    total += line[k]
                out[plane, i, j] = total / ((bottom - top) * (right - left))


def stretched(maps: Float[Tensor, "maps h w"], size: tuple[int, int]) -> Float[Tensor, "maps height width"]:
    """Bilinear enlargement with pixel areas aligned: the value at row `r` is read at `(r + ½) h/H − ½` of the small map.

    Args:
        maps: on the processor, float32.
        size: rows and columns, none smaller than the maps'.
    """
    out = np.empty((len(maps), *size), np.float32)
    each(_stretch, "the enlargement of maps", list(zip(maps.contiguous().numpy(), out, strict=True)))
    return torch.from_numpy(out)


@compiled
def _stretch(small: np.ndarray, out: np.ndarray) -> None:
    """Few rows are made wide, then every row of the result is between two of them: nothing but sums along memory."""
    tall, wide = small.shape
    height, width = out.shape
    lines = np.empty((tall, width), np.float32)
    for j in range(width):
        place = max((j + 0.5) * wide / width - 0.5, 0.0)
        left = min(int(place), wide - 1)
        right, share = min(left + 1, wide - 1), np.float32(place - left)
        for i in range(tall):
            lines[i, j] = small[i, left] + share * (small[i, right] - small[i, left])
    for i in range(height):
        place = max((i + 0.5) * tall / height - 0.5, 0.0)
        upper = min(int(place), tall - 1)
        lower, share = min(upper + 1, tall - 1), np.float32(place - upper)
        for j in range(width):
            out[i, j] = lines[upper, j] + share * (lines[lower, j] - lines[upper, j])
