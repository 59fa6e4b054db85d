"""Make the pictures in docs/images: `python examples/pictures.py`.

The photos are scikit-image's `chelsea` (Stefan van der Walt) and `coffee` (Rachel Michetti, courtesy of Pikolo Espresso
Bar), both CC0 and part of its wheel.
"""

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
    for name, (photo, methods, options) in PICTURES.items():
        explanations = hp.explain(model, PHOTOS / f"{photo}.png", methods, **options)
        sheet = panel(explanations, tile=200 if len(methods) < 6 else 170)
        # 256 colours halve the file; dithered, or the smooth maps would show bands that the methods did not draw
        palette = sheet.quantize(256)
        sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(FOLDER / f"{name}.png", optimize=True)
        print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
