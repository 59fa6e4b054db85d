"""Grids of pixels by hand."""

import itertools

import numpy as np


def grid_edges(height, width):
    """Pairs of pixel numbers, row by row, to the right before down."""
    for r, c in itertools.product(range(height), range(width)):
        if c + 1 < width:
            yield r * width + c, r * width + c + 1
        if r + 1 < height:
            yield r * width + c, (r + 1) * width + c


def random_image(shape, seed, levels=256):
    """Few levels make many ties."""
    return (np.random.default_rng(seed).integers(levels, size=(*shape, 3)) * (255 // (levels - 1))).astype(np.uint8)
