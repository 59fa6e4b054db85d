"""Outlines from a classifier, step by step: `python examples/shapes.py` makes docs/images/shape.png.

The photos are scikit-image's `coffee` and `chelsea`, the others planted scenes, whose outline is known.
"""

from pathlib import Path

import numpy as np
import skimage
from matplotlib import colormaps
from PIL import Image

import heatproof as hp
from heatproof.models.planted import World
from heatproof.proof.localisation import iou

PHOTOS = Path(skimage.__file__).parent / "data"
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "shape.png"
TILE = 180


def main() -> None:
    photos, planted = hp.load("efficientnet-lite0"), hp.load("planted-cnn")
    scenes = [scene for scene in World().scenes(200, seed=1) if scene.object in ("starfish", "cat", "duck")]
    found = [hp.shape(photos, PHOTOS / name) for name in ("coffee.png", "chelsea.png")]
    for scene in scenes[:3]:
        one = hp.shape(planted, scene.image, scene.object)
        plain = iou(one.coarse[None], scene.object_mask[None], 0.2).item()
        cut = iou(one.mask[None].astype("float32"), scene.object_mask[None]).item()
        print(f"{scene.caption}: IoU of the averaged map at 0.2 {plain:.2f}, of the outline {cut:.2f}")
        found.append(one)
    sheet = Image.new("RGB", (TILE * len(found), TILE * 4), "white")
    for n, one in enumerate(found):
        maps = [Image.fromarray((colormaps["inferno"](m)[..., :3] * 255).astype(np.uint8)) for m in (one.coarse, one.soft)]
        for row, tile in enumerate([Image.fromarray(one.image), *maps, one.overlay()]):
            sheet.paste(tile.resize((TILE, TILE), Image.Resampling.BICUBIC), (n * TILE, row * TILE))
    sheet.quantize(palette=sheet.quantize(256), dither=Image.Dither.FLOYDSTEINBERG).save(PICTURE, optimize=True)
    print(PICTURE)


if __name__ == "__main__":
    main()
