"""Make the pictures in docs/images: `python examples/pictures.py [NAME…]`, all of them without a name (some minutes).

The photos are scikit-image's `chelsea` (Stefan van der Walt) and `coffee` (Rachel Michetti, courtesy of Pikolo Espresso
Bar), both CC0 and part of its wheel.
"""

import sys
from pathlib import Path

import skimage
from PIL import Image

import heatproof as hp
from heatproof.report.panel import panel

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
PHOTOS = Path(skimage.__file__).parent / "data"
CAMS = ["cam", "gradcam", "gradcam++", "eigencam", "eigengradcam", "xgradcam", "hirescam", "layercam", "scorecam", "ablationcam"]
GRADIENTS = ["gradient", "gradient-x-input", "integrated-gradients", "smoothgrad", "taylor"]

PICTURES = {
    "chelsea": ("chelsea", ["gradcam", "scorecam", "hirescam", "smoothgrad"], {}),
    "coffee": ("coffee", ["gradcam", "scorecam", "hirescam", "smoothgrad"], {}),
    "cam": ("coffee", CAMS, {}),
    "gradients": ("coffee", GRADIENTS, {"steps": 64}),
    "baselines": ("coffee", ["random", "center", "edges"], {}),
}


def main() -> None:
    model = hp.load("efficientnet-lite0")
    for name in sys.argv[1:] or PICTURES:
        photo, methods, options = PICTURES[name]
        explanations = hp.explain(model, PHOTOS / f"{photo}.png", methods, **options)
        sheet = panel(explanations, tile=170)
        if len(methods) > 4:
            # 256 colours halve the file; dithered, or the smooth maps would show bands that the methods did not draw
            sheet = sheet.quantize(palette=sheet.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
        sheet.save(FOLDER / f"{name}.png", optimize=True)
        print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
