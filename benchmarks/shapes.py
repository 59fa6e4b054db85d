"""Outlines against the objects: `python -m benchmarks.shapes [--photos FOLDER]`.

Planted scenes know their objects. The photos are those of github.com/EliSchwartz/imagenet-sample-images, one per class;
twenty of them were outlined by hand on the 224 pixels that efficientnet-lite0 sees (outlines.json).
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

import heatproof as hp
from heatproof.models.planted import World
from heatproof.proof.localisation import iou

OUTLINES = Path(__file__).with_name("outlines.json")
SIDE = 224
LEVEL = 0.2
"""Share of its maximum above which a map is taken for the object, as in the CAM paper."""


def scores(model: hp.Model, cases: Iterable[tuple[Any, Any, np.ndarray]]) -> Iterator[tuple[float, float, float]]:
    """Intersection over union of the map above a fifth, of the map at its best level, and of the outline.

    Args:
        model: what is asked.
        cases: image, target and `(H, W)` True on the object.
    """
    for image, target, truth in cases:
        found = hp.shape(model, image, target)
        explained = hp.explain(model, image, "gradcam", target)
        assert isinstance(explained, hp.Explanation)  # one method went in
        heat = explained.maps[0]
        there = truth[None]
        cut = float(iou(found.mask[None].astype("float32"), there))
        yield float(iou(heat, there, LEVEL)), float(iou(heat, there, "best")), cut


def planted(count: int, target: Callable[[str], str]) -> Iterator[tuple[Any, Any, np.ndarray]]:
    """Planted scenes."""
    for scene in World().scenes(count, seed=11):
        yield scene.image, target(str(scene.object)), scene.object_mask


def outlined(folder: Path, group: str) -> Iterator[tuple[Any, Any, np.ndarray]]:
    """Photos with the outlines of their objects; the target is the top score."""
    for name, shapes in json.loads(OUTLINES.read_text("utf-8"))[group].items():
        canvas = Image.new("1", (SIDE, SIDE))
        draw = ImageDraw.Draw(canvas)
        for corners in shapes.get("polygons", ()):
            draw.polygon([tuple(corner) for corner in corners], fill=1)
        for x, y, across, down in shapes.get("ellipses", ()):
            draw.ellipse((x - across, y - down, x + across, y + down), fill=1)
        file = next(file for file in sorted(folder.iterdir()) if file.stem == name)
        yield file, None, np.array(canvas)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder with the photos; without it, planted scenes only")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows: list[tuple[str, str, Iterable[tuple[Any, Any, np.ndarray]]]] = [
        ("60 planted scenes", "planted-cnn", planted(60, str)),
        ("24 planted scenes", "planted-clip", planted(24, "a photo of a {}".format)),
    ]
    if given.photos:
        rows += [(f"photos, {group}", "efficientnet-lite0", outlined(given.photos, group)) for group in ("chosen on", "held out")]
    print(f"{'':24} {'':20} {'map':>6} {'best':>6} {'shape':>6}")
    for label, name, cases in rows:
        plain, best, cut = np.mean(list(scores(hp.load(name), cases)), 0)
        print(f"{label:24} {name:20} {plain:6.2f} {best:6.2f} {cut:6.2f}", flush=True)


if __name__ == "__main__":
    main()
