"""What is left of a map when the model forgets: `python examples/sanity_curves.py` makes docs/images/sanity.png.

efficientnet-lite0 on scikit-image's `coffee` and `chelsea`, randomised from the scores down to the image.
"""

from pathlib import Path

import matplotlib
import skimage
from matplotlib import pyplot

import heatproof as hp

matplotlib.use("Agg")
PHOTOS = Path(skimage.__file__).parent / "data"
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "sanity.png"
METHODS = ["gradcam", "gradient", "gradient-x-input", "lrp", "edges"]


def main() -> None:
    model = hp.load("efficientnet-lite0")
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    for method in METHODS:
        found = hp.sanity(model, [PHOTOS / "coffee.png", PHOTOS / "chelsea.png"], method, orders=("top-down",), stages=10)
        print(found)
        print(f"  eMPRT {found.emprt.mean():+.2f}")
        for axis, measure in zip(axes, ("spearman", "spearman_abs"), strict=True):
            mean, spread = found.cascades["top-down"].curve(measure)
            (line,) = axis.plot(range(len(mean) + 1), [1, *mean], label=method)
            axis.fill_between(range(1, len(mean) + 1), mean - spread, mean + spread, alpha=0.2, color=line.get_color())
    for axis, title in zip(axes, ("with its signs", "where it is strong (|map|)"), strict=True):
        axis.set(title=title, xlabel="stages randomised, from the scores down", ylim=(-0.6, 1.05))
        axis.axhline(0, color="grey", linewidth=0.5)
    axes[0].set_ylabel("Spearman with the learned map")
    axes[1].legend(frameon=False, fontsize=8, loc="lower left", ncols=2)
    figure.savefig(PICTURE, dpi=90)
    print(PICTURE)


if __name__ == "__main__":
    main()
