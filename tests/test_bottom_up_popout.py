"""Classic displays: one item among many differs in one thing, and is the most salient place."""

import pytest
import torch

from heatproof.bottom_up.center_surround import center_surround
from heatproof.bottom_up.gbvs import gbvs
from heatproof.bottom_up.itti import itti

CELL, ROWS, COLUMNS = 48, 6, 8


def display(kind, odd):
    """A grid of items on grey; the one in cell `odd` differs in colour, orientation, size or luminance."""
    image = torch.full((3, ROWS * CELL, COLUMNS * CELL), 0.5)
    v, u = torch.meshgrid(torch.arange(CELL) - CELL / 2 + 0.5, torch.arange(CELL) - CELL / 2 + 0.5, indexing="ij")
    for row in range(ROWS):
        for column in range(COLUMNS):
            differs = (row, column) == odd
            radius, colour = 12, (0.2, 0.2, 0.2)
            if kind == "colour":
                colour = (0.9, 0.3, 0.3) if differs else (0.3, 0.9, 0.3)  # both as bright as the grey
            if kind == "size":
                radius = 18 if differs else 8
            if kind == "luminance":
                colour = (1.0,) * 3 if differs else (0.4,) * 3
            item = u**2 + v**2 <= radius**2
            if kind == "orientation":
                a, b = (u, v) if differs else (v, u)  # vertical among horizontal bars
                item = (a.abs() <= 4) & (b.abs() <= 18)
            place = image[:, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            place[:, item] = torch.tensor(colour)[:, None]
    return image[None]


CLAIMS = [
    *((itti, kind) for kind in ("colour", "orientation", "size", "luminance")),
    *((gbvs, kind) for kind in ("colour", "orientation", "size", "luminance")),
    (center_surround, "luminance"),  # it knows how far from the mean, not how rare
]


@pytest.mark.parametrize("odd", [(1, 2), (2, 5), (3, 3)])
@pytest.mark.parametrize("model, kind", CLAIMS)
def test_the_odd_one_out_is_the_most_salient(model, kind, odd):
    saliency = model(display(kind, odd))[0]
    place = saliency.argmax().item()
    row, column = place // saliency.shape[1], place % saliency.shape[1]
    assert (row // CELL, column // CELL) == odd, (row / CELL, column / CELL)
