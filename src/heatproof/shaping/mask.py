"""`Mask`: an object's outline in an image, and where it comes from."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw
from skimage.measure import approximate_polygon, find_contours


@dataclass(frozen=True, eq=False, repr=False)
class Mask:
    """Where an object is.

    Args:
        mask: `(H, W)`, True on the object, at the size of the model's input.
        soft: `(H, W)` in [0, 1], the refined map that it was cut from.
        coarse: `(H, W)` in [0, 1], the map before it was refined.
        image: `(H, W, 3)` uint8, what the model saw.
        target: index of the class.
        target_name: its name.
        method: what made the map.
        model_name: of the model.
        scales: of the image at which the map was made; a model that takes one size only has one.
    """

    mask: Bool[ndarray, "height width"]
    soft: Float[ndarray, "height width"]
    coarse: Float[ndarray, "height width"]
    image: UInt8[ndarray, "height width 3"]
    target: int
    target_name: str
    method: str
    model_name: str
    scales: tuple[float, ...]

    @property
    def area(self) -> int:
        """Pixels of the object."""
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """The smallest box around the object, `(left, top, right, bottom)`, right and bottom excluded; None where it is empty."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        if not len(rows):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @cached_property
    def contours(self) -> list[Float[ndarray, "_ 2"]]:
        """Polygons around the object's parts and holes, `(N, 2)` row and column in pixels, the longest first.

        The first point is also the last; `(0.0, 0.0)` is the centre of the upper left pixel, and no corner is more than
        a pixel away from the mask's own outline.
        """
        padded = np.pad(self.mask, 1).astype(float)
        found = [approximate_polygon(line - 1, 1.0) for line in find_contours(padded, 0.5)]
        return sorted((line for line in found if len(line) > 3), key=len, reverse=True)

    def overlay(self) -> Image.Image:
        """The image, in grey outside the object, with its outline drawn."""
        grey = self.image.astype(np.float64) @ (0.299, 0.587, 0.114)
        dim = np.repeat((0.5 * grey + 64)[..., None], 3, axis=2)
        picture = Image.fromarray(np.where(self.mask[..., None], self.image, dim).astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for line in self.contours:
            points = [(float(column), float(row)) for row, column in line]
            draw.line(points, fill="black", width=3)
            draw.line(points, fill="yellow", width=1)
        if not self.area:
            draw.text((4, 4), "no object", fill="white", stroke_width=1, stroke_fill="black")
        return picture

    def __repr__(self) -> str:
        height, width = self.mask.shape
        share = f"{self.area / self.mask.size:.0%} of {height}×{width}, box {self.box}" if self.area else "nothing found"
        return f"Mask: {self.target_name}, {share} ({self.method} of {self.model_name})"

    def _repr_png_(self) -> bytes:
        import io

        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG")
        return buffer.getvalue()
