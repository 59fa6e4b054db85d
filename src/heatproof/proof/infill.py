"""What a removed pixel is replaced by. Every answer to "what if it were not there" depends on it, so there are several."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import conv2d, pad

from heatproof import seeds
from heatproof.errors import InputError, MethodError, nearest
from heatproof.models.preprocess import Preprocess
from heatproof.proof.imputation import impute

Fill = Callable[[Tensor, Tensor], Tensor]
"""From rows `(n,)` of a batch and the pixels to remove `(n, H, W)` to edited images `(n, 3, H, W)`."""


class Infill(ABC):
    """From images and the pixels to remove to images without them; `on` does once per image what is the same for every mask."""

    name: ClassVar[str]

    @abstractmethod
    def on(self, x: Float[Tensor, "batch 3 height width"], preprocess: Preprocess | None = None) -> Fill:
        """Prepare a batch, to be edited many times."""

    def __call__(
        self,
        x: Float[Tensor, "many 3 height width"],
        mask: Bool[Tensor, "many height width"],
        preprocess: Preprocess | None = None,
    ) -> Float[Tensor, "many 3 height width"]:
        """`x` with the pixels where `mask` is True replaced; the others are left as they are, bit for bit.

        Args:
            x: as the model takes it.
            mask: True where a pixel is removed, from all three channels.
            preprocess: how the pixels were normalised, where it is known.
        """
        return self.on(x, preprocess)(torch.arange(len(x), device=x.device), mask)


class Picture(Infill):
    """Infills whose replacement of a pixel does not depend on which others are removed."""

    @abstractmethod
    def picture(self, x: Tensor, preprocess: Preprocess | None) -> Tensor:
        """The image of which all removed pixels are cut, `(B or 1, 3, H or 1, W or 1)`."""

    def on(self, x: Float[Tensor, "batch 3 height width"], preprocess: Preprocess | None = None) -> Fill:
        other = self.picture(x, preprocess).to(x).expand_as(x)
        return lambda rows, mask: torch.where(mask[:, None], other[rows], x[rows])


@dataclass(frozen=True)
class Zero(Picture):
    """0 in the model's own input units: the training set's mean colour where the input is normalised, black where it is not.

    Misleads where the network takes a flat patch of any colour for evidence, or the object has that colour.

    Paper: Petsiuk, Das, Saenko 2018, "RISE" (deletion).
    """

    name: ClassVar[str] = "zero"

    def picture(self, x: Tensor, preprocess: Preprocess | None) -> Tensor:
        return x.new_zeros(1, 3, 1, 1)


@dataclass(frozen=True)
class Black(Picture):
    """Pixel value 0; each image's own lowest value per channel where the normalisation is not known.

    Misleads on dark objects, which it leaves as they are, and by edges that no photo has.
    """

    name: ClassVar[str] = "black"

    def picture(self, x: Tensor, preprocess: Preprocess | None) -> Tensor:
        return _bounds(x, preprocess)[0]


@dataclass(frozen=True)
class Mean(Picture):
    """The image's own mean colour.

    Misleads where the mean colour is the object's.
    """

    name: ClassVar[str] = "mean"

    def picture(self, x: Tensor, preprocess: Preprocess | None) -> Tensor:
        return x.mean((2, 3), keepdim=True)


@dataclass(frozen=True)
class Blur(Picture):
    """The image behind a Gaussian: details go, colours and coarse shapes stay.

    Args:
        size: of the kernel in pixels, odd, at least 3.
        sigma: of the Gaussian in pixels, above 0. Pixels beyond the border repeat those on it.

    Misleads where coarse shapes or colours are the evidence: at the default they survive.

    Paper: Petsiuk, Das, Saenko 2018, "RISE" (insertion starts from it; 11 pixels, σ = 5).
    """

    name: ClassVar[str] = "blur"
    size: int = 11
    sigma: float = 5.0

    def __post_init__(self) -> None:
        if self.size < 3 or self.size % 2 == 0 or not self.sigma > 0:
            raise InputError(f"size={self.size!r}, sigma={self.sigma!r}; expected an odd size of 3 or more and a sigma above 0.")

    def picture(self, x: Tensor, preprocess: Preprocess | None) -> Tensor:
        reach = self.size // 2
        kernel = torch.exp(-(torch.arange(-reach, reach + 1.0, device=x.device) ** 2) / (2 * self.sigma**2)).to(x)
        kernel = kernel / kernel.sum()
        wide = pad(x, (reach,) * 4, mode="replicate").flatten(0, 1)[:, None]
        return conv2d(conv2d(wide, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(x)


@dataclass(frozen=True)
class Noise(Picture):
    """Uniform random pixels over the range that a pixel can have; each image's own range where the normalisation is not known.

    Args:
        seed: of the noise, which is the same for every image of a size.

    Misleads by edges and textures that no photo has.

    Paper: Samek et al. 2017, "Evaluating the Visualization of What a Deep Neural Network Has Learned".
    """

    name: ClassVar[str] = "noise"
    seed: int = 0

    def picture(self, x: Tensor, preprocess: Preprocess | None) -> Tensor:
        low, high = _bounds(x, preprocess)
        return low + torch.rand(1, *x.shape[1:], generator=seeds.generator(self.seed)).to(x) * (high - low)


@dataclass(frozen=True)
class Linear(Infill):
    """Noisy linear imputation (ROAD): each removed pixel is the weighted mean of its eight neighbours, removed ones included.

    `x_i = Σ_j w_ij x_j / Σ_j w_ij + ε_i`, `w` 1/6 beside and 1/12 across, none outside the image, `ε ~ N(0, noise²)`

    The equations of all removed pixels are solved together, for all images and channels at once; the mask's shape can
    hardly be read from the result. With every pixel removed, the image becomes its mean colour.

    Args:
        noise: standard deviation of what is added afterwards, in the model's own input units, 0 or more.
        seed: of the noise, which is the same for every image of a size.

    Misleads where the surroundings continue the object: a hole in a uniform object is filled with the object.

    Paper: Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods".
    """

    name: ClassVar[str] = "linear"
    noise: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise InputError(f"noise={self.noise!r}; expected a standard deviation of 0 or more.")

    def on(self, x: Float[Tensor, "batch 3 height width"], preprocess: Preprocess | None = None) -> Fill:
        noise = (torch.randn(x.shape[1:], generator=seeds.generator(self.seed)) * self.noise).to(x)

        def fill(rows: Tensor, mask: Tensor) -> Tensor:
            chosen = x[rows]
            return torch.where(mask[:, None], (impute(chosen.float(), mask) + noise).to(x), chosen)

        return fill


INFILLS: dict[str, type[Infill]] = {kind.name: kind for kind in (Zero, Black, Mean, Blur, Noise, Linear)}
"""Every infill by its name."""


def infill(choice: str | Infill) -> Infill:
    """An infill by its name, with its defaults; one that is an infill already is handed back.

    Raises:
        MethodError: there is none of that name.
    """
    if isinstance(choice, Infill):
        return choice
    if choice not in INFILLS:
        raise MethodError(f"there is no infill {choice!r}.{nearest(str(choice), INFILLS)} Known: {', '.join(INFILLS)}.")
    return INFILLS[choice]()


def _bounds(x: Tensor, preprocess: Preprocess | None) -> tuple[Tensor, Tensor]:
    known = None if preprocess is None else preprocess.bounds()
    if known is None:
        return x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return known[0].to(x), known[1].to(x)
