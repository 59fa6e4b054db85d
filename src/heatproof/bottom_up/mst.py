"""What stands out is what the border cannot be reached from without a change of colour: distances on a spanning tree."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.ndimage import maximum_filter, minimum_filter
from torch import Tensor

from heatproof.bottom_up.colour import lab
from heatproof.bottom_up.method import BottomUp
from heatproof.bottom_up.working_size import back, within
from heatproof.images import check_tensor, to_uint8

_CLUSTERS = 3
_STRIP = 0.1  # of √(H·W): width of the border whose colours are background
_SIGMA = 20.0  # of the tree filter, in 8-bit values
_RADIUS = 50 / 300  # of the morphological smoothing, in √(H·W), for a map whose mean is 1


@dataclass(frozen=True, kw_only=True)
class MST(BottomUp):
    """What the image's border cannot be reached from without a change of colour.

    `S = D / max D + B / max B`, smoothed, with `D` the minimum barrier distance to the border along the image's minimum
    spanning tree and `B` how unlike the border's colours a pixel is; formulas at the function `mst`

    Args:
        dissimilarity: whether to add `B`.
        post: whether the map is cleaned of small spots and its contrast raised, as in the paper.
        center_bias: σ of a Gaussian prior around the image's centre, None for none.
        blur: σ in pixels of a Gaussian that smooths the map, None for none.

    Returns:
        `maps` `(B, T, H, W)` in [0, 1] before `blur` and `center_bias`.

    Misleads where the object touches the border: then it is background.

    Paper: Tu, He, Yang, Chien 2016, "Real-Time Salient Object Detection with a Minimum Spanning Tree".
    """

    dissimilarity: bool = True
    post: bool = True

    def saliency(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width"]:
        return mst(pixels, self.dissimilarity, self.post)


def mst(
    x: Float[Tensor, "batch 3 height width"], dissimilarity: bool = True, post: bool = True
) -> Float[Tensor, "batch height width"]:
    """Distance of each pixel to the image's border, along the image's minimum spanning tree.

    `D(p) = Σ_c min_b (max_{q ∈ π(p,b)} I_c(q) − min_{q ∈ π(p,b)} I_c(q))`, with `b` any border pixel and `π` the tree path
    (the minimum barrier distance); `S = smooth(D / max D + B / max B)`, with `B` the dissimilarity to the border's colours
    and `smooth` the tree's own filter; then opening and closing by reconstruction, and `1 / (1 + exp(−10 (S − ½)))`.

    Args:
        x: RGB in [0, 1], rounded to 8 bits.
        dissimilarity: whether to add `B`.
        post: whether to do what follows it; else `S` itself, stretched to [0, 1], is returned.

    Returns:
        float32 in [0, 1]; constant for a constant image. Images over `WORKING_PIXELS` are worked on at that size.

    Raises:
        InputError: NaN or infinite values.

    Paper: Tu, He, Yang, Chien 2016, "Real-Time Salient Object Detection with a Minimum Spanning Tree". Distances are
    exact here where the paper's two passes with one path per pixel are not.
    """
    x = check_tensor(x)
    small = within(x.detach().float())
    maps = [_one(image, dissimilarity, post) for image in to_uint8(small)]
    return back(torch.from_numpy(np.stack(maps)).to(x.device), (x.shape[-2], x.shape[-1]))


def barrier(image: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width"]:
    """The minimum barrier distance to the border along the spanning tree, summed over the channels.

    Returns:
        float64, whole numbers from 0 to 765.
    """
    from heatproof.bottom_up import spanning_tree as tree  # numba takes half a second to import

    order, parent, _ = tree.spanning_tree(image)
    return _distance(image, order, parent)


def _distance(image: np.ndarray, order: np.ndarray, parent: np.ndarray) -> np.ndarray:
    from heatproof.bottom_up import spanning_tree as tree

    edge = np.zeros(image.shape[:2], bool)
    edge[[0, -1], :] = edge[:, [0, -1]] = True
    total = tree.barrier_distance(image.reshape(-1, 3), order, parent, edge.ravel(), tree.PAIRS)
    return total.reshape(edge.shape).astype(np.float64)


def _one(image: np.ndarray, dissimilarity: bool, post: bool) -> np.ndarray:
    from heatproof.bottom_up import spanning_tree as tree
    from heatproof.bottom_up.compiled import announce

    announce(tree.spanning_tree, "the spanning tree's loops")
    order, parent, weight = tree.spanning_tree(image)
    saliency = _share(_distance(image, order, parent))
    if dissimilarity:
        total = (saliency + _share(unlike_border(image))).ravel()
        saliency = _share(tree.smoothed(total, order, parent, weight, _SIGMA).reshape(saliency.shape))
    saliency = saliency.astype(np.float32)
    return 1 / (1 + np.exp(-10 * (_share(cleaned(saliency)) - np.float32(0.5)))) if post else saliency


def _share(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 1; zeros where there is nothing to divide by."""
    values = values - values.min()
    return values / (values.max() or 1)


def unlike_border(image: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width"]:
    """How far each pixel's colour is from the colours of the border.

    `B(p) = Σ_k n_k/n · √((L_p − μ_k)ᵀ (Σ_k + I)⁻¹ (L_p − μ_k))`: Mahalanobis distances in Lab to three clusters of the
    pixels in a strip along the border, a tenth of `√(H·W)` wide. The `I` (one unit of Lab) keeps plain borders finite.

    Returns:
        float64 ≥ 0.
    """
    planes = lab(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0].numpy()
    height, width = image.shape[:2]
    strip = max(1, round(_STRIP * (height * width) ** 0.5))
    border = np.ones((height, width), bool)
    border[strip:-strip, strip:-strip] = False
    colours = planes[:, border].T
    colours = colours[:: max(1, len(colours) // 4096)]  # a few thousand tell three clusters
    labels = _clusters(colours)
    total = np.zeros((height, width), np.float32)
    for k in np.unique(labels):
        own = colours[labels == k].astype(np.float64)
        away = own - own.mean(0)
        # whitening first, so that a distance is a plain length
        whitening = np.linalg.inv(np.linalg.cholesky(away.T @ away / len(own) + np.eye(3)))
        away = [plane - mean for plane, mean in zip(planes, own.mean(0).astype(np.float32), strict=True)]
        # the whitening is triangular; plane by plane is many times faster than a product with a 3 × 3 matrix
        white = (sum(float(whitening[i, j]) * away[j] for j in range(i + 1)) for i in range(3))
        total += len(own) / len(colours) * np.sqrt(sum(part * part for part in white))
    return total.astype(np.float64)


def _clusters(colours: np.ndarray) -> np.ndarray:
    """k-means that starts from the mean's farthest colour, then the farthest from those taken: no chance in it."""
    centres = [colours[np.linalg.norm(colours - colours.mean(0), axis=1).argmax()]]
    while len(centres) < _CLUSTERS:
        centres.append(colours[np.min([np.linalg.norm(colours - c, axis=1) for c in centres], axis=0).argmax()])
    means = np.stack(centres)
    labels = np.full(len(colours), -1)
    for _ in range(20):
        nearest = np.linalg.norm(colours[:, None] - means, axis=2).argmin(1)
        if (nearest == labels).all():
            break
        labels = nearest
        means = np.stack([colours[labels == k].mean(0) if (labels == k).any() else means[k] for k in range(_CLUSTERS)])
    return labels


def cleaned(saliency: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """Opening, then closing, both by reconstruction: small bright and small dark spots go, outlines stay where they are.

    The window is a square of radius `√(H·W) / 6 · √mean(S)`: the more stands out, the larger the spots that do not count.

    Args:
        saliency: float32 in [0, 1].

    Returns:
        float32 in [0, 1].
    """
    from heatproof.bottom_up.spanning_tree import reconstructed

    radius = round(_RADIUS * (saliency.size * float(saliency.mean())) ** 0.5)
    opened = reconstructed(minimum_filter(saliency, 2 * radius + 1, mode="nearest"), saliency)
    # closing is the opening of the negative
    return -reconstructed(-maximum_filter(opened, 2 * radius + 1, mode="nearest"), -opened)
