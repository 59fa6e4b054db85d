"""Regions that differ from the large regions near them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from skimage.segmentation import slic
from torch import Tensor

from heatproof.bottom_up.colour import lab
from heatproof.bottom_up.method import BottomUp
from heatproof.bottom_up.working_size import back, within
from heatproof.errors import MethodError
from heatproof.images import check_tensor


@dataclass(frozen=True, kw_only=True)
class RegionContrast(BottomUp):
    """Superpixels whose colour differs from that of large regions near them.

    `S(R_i) = Σ_j |R_j| exp(−‖c_i − c_j‖ / σ²) ‖μ_i − μ_j‖`, with mean colours `μ` in Lab and centroids `c`

    Args:
        regions: how many superpixels (SLIC) to ask for.
        strength: `σ²`: the larger, the more far regions count.
        compactness: of the superpixels: the larger, the squarer.
        center_bias: σ of a Gaussian prior around the image's centre, None for none.
        blur: σ in pixels of a Gaussian that smooths the map, None for none.

    Returns:
        `maps` `(B, T, H, W)` ≥ 0, in units of Lab, constant on each superpixel.

    Misleads where the background has more colours than the object, and knows nothing of what is inside a superpixel.

    Paper: Cheng, Mitra, Huang, Torr, Hu 2015, "Global Contrast Based Salient Region Detection".
    """

    regions: int = 200
    strength: float = 0.4
    compactness: float = 10.0

    def saliency(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width"]:
        return region_contrast(pixels, self.regions, self.strength, self.compactness)


class Regions(NamedTuple):
    """Superpixels of one image.

    Args:
        labels: `(H, W)` from 0 to R − 1.
        colours: `(R, 3)` mean Lab.
        places: `(R, 2)` centroid, rows and columns from 0 to 1.
        areas: `(R,)` share of the image's pixels, sums to 1.
    """

    labels: Int[np.ndarray, "height width"]
    colours: Float[np.ndarray, "regions 3"]
    places: Float[np.ndarray, "regions 2"]
    areas: Float[np.ndarray, " regions"]


def region_contrast(
    x: Float[Tensor, "batch 3 height width"], regions: int = 200, strength: float = 0.4, compactness: float = 10.0
) -> Float[Tensor, "batch height width"]:
    """Contrast of each superpixel with all others.

    `S(R_i) = Σ_j w_ij ‖μ_i − μ_j‖`, `w_ij = |R_j| exp(−‖c_i − c_j‖ / σ²)`, with `μ` the mean colours in Lab, `|R|` the areas
    as shares of the image and `c` the centroids in a unit square

    Args:
        x: RGB in [0, 1].
        regions: how many superpixels (SLIC) to ask for.
        strength: `σ²`: the larger, the more far regions count.
        compactness: of the superpixels: the larger, the squarer.

    Returns:
        float32 ≥ 0, in units of Lab, constant on each superpixel. Images over `WORKING_PIXELS` are worked on at that size.

    Raises:
        InputError: NaN or infinite values.
        MethodError: an option that is not positive.

    Paper: Cheng, Mitra, Huang, Torr, Hu 2015, "Global Contrast Based Salient Region Detection", with mean colours for
    colour histograms and SLIC (Achanta et al. 2012) for the segments.
    """
    for name, value in {"regions": regions, "strength": strength, "compactness": compactness}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise MethodError(f"{name}={value!r}; expected a finite number above 0.")
    x = check_tensor(x)
    size = (x.shape[-2], x.shape[-1])
    maps = []
    for image in lab(within(x.detach().float()).clamp(0, 1)).permute(0, 2, 3, 1).cpu().numpy():
        found = superpixels(image, regions, compactness)
        maps.append(torch.from_numpy(contrast(found, strength)[found.labels].astype(np.float32)))
    return back(torch.stack(maps).to(x.device), size)


def superpixels(image: Float[np.ndarray, "height width 3"], regions: int, compactness: float) -> Regions:
    """SLIC superpixels of an image in Lab, and what is known of each."""
    height, width = image.shape[:2]
    span = float(image.max() - image.min()) or 1.0  # slic() stretches what it gets to [0, 1]; compactness is meant in Lab
    labels = slic(image, regions, compactness / span, start_label=0, convert2lab=False, channel_axis=2)
    flat = labels.ravel()
    counts = np.bincount(flat)
    colours = np.stack([np.bincount(flat, plane.ravel()) for plane in np.moveaxis(image, 2, 0)], 1) / counts[:, None]
    rows = np.bincount(flat, np.repeat((np.arange(height) + 0.5) / height, width))
    columns = np.bincount(flat, np.tile((np.arange(width) + 0.5) / width, height))
    return Regions(labels, colours, np.stack([rows, columns], 1) / counts[:, None], counts / flat.size)


def contrast(regions: Regions, strength: float) -> Float[np.ndarray, " regions"]:
    """`S(R_i)` of each region, from all pairs at once: R² numbers, not pixels."""
    colours = np.linalg.norm(regions.colours[:, None] - regions.colours, axis=2)
    places = np.linalg.norm(regions.places[:, None] - regions.places, axis=2)
    return (np.exp(-places / strength) * colours) @ regions.areas
