"""Trees and regions against the libraries under them, and all model-free maps against human eyes.

`python -m benchmarks.bottom_up_trees` compares running times; with `--eyes FOLDER` it scores a data set of fixations
(docs/fixations.md has the format), with OpenCV's two maps beside ours where opencv-contrib is installed.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from skimage.segmentation import slic

from benchmarks.timing import Ratio, in_turns, machine


def photo(size: int = 512) -> torch.Tensor:
    """A photo of `size` × `size` pixels that comes with scikit-image, `(1, 3, H, W)` in [0, 1]."""
    image = Image.fromarray(data.astronaut()).resize((size, size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def trees(x: torch.Tensor) -> dict[str, dict[str, Callable[[], object]]]:
    """Ours beside what the libraries do alone on the same image; the library is the reference."""
    import higra as hg
    from skimage.color import rgb2lab

    from heatproof.bottom_up.mst import barrier, mst
    from heatproof.bottom_up.region_contrast import region_contrast
    from heatproof.bottom_up.watershed import watershed

    image = x[0].permute(1, 2, 0).numpy()
    eight = (image * 255).round().astype(np.uint8)
    shape = image.shape[:2]

    def graph_and_tree() -> object:
        graph = hg.get_4_adjacency_graph(shape)
        return hg.bpt_canonical(graph, hg.weight_graph(graph, image, hg.WeightFunction.L_infinity))

    def hierarchy(build: Callable[..., object]) -> Callable[[], object]:
        graph = hg.get_4_adjacency_graph(shape)
        weights = hg.weight_graph(graph, rgb2lab(image), hg.WeightFunction.L2)

        def run() -> object:
            tree, altitudes = build(graph, weights)
            return hg.saliency(tree, altitudes)

        return run

    groups = {
        "mst": {
            "higra: 4-adjacency graph + bpt_canonical": graph_and_tree,
            "mst, all of it": lambda: mst(x),
            "mst without dissimilarity and post-processing": lambda: mst(x, False, False),
            "the tree and its distances": lambda: barrier(eight),
        },
        "region-contrast": {
            "scikit-image: slic(image, 200)": lambda: slic(image, 200),
            "region-contrast": lambda: region_contrast(x),
        },
    }
    for name in ("area", "dynamics", "volume"):
        build = getattr(hg, f"watershed_hierarchy_by_{name}")
        groups[f"watershed by {name}"] = {
            "higra: hierarchy + saliency": hierarchy(build),
            f"watershed(attribute={name!r}), from the pixels to the map": lambda name=name: watershed(x, name),
        }
    return groups


def opencv(image: Image.Image) -> dict[str, np.ndarray]:
    """OpenCV's two maps of an image."""
    import cv2

    pixels = np.ascontiguousarray(np.array(image)[..., ::-1])
    makers = {
        "OpenCV spectral residual": cv2.saliency.StaticSaliencySpectralResidual_create(),
        "OpenCV fine-grained": cv2.saliency.StaticSaliencyFineGrained_create(),
    }
    return {name: np.asarray(maker.computeSaliency(pixels)[1], np.float64) for name, maker in makers.items()}


def eyes(folder: Path, out: Path, blur: float) -> None:
    """Score every model-free method and OpenCV's maps, print the table and what the peers have to be beaten by."""
    from heatproof.proof.fixation_data import read_fixations
    from heatproof.scale import fixations as scale

    found, failed = read_fixations(folder)
    ours = scale.by_methods(scale.model_free())
    try:
        import cv2

        peers = ["OpenCV spectral residual", "OpenCV fine-grained"] if hasattr(cv2, "saliency") else []
    except ImportError:
        peers = []

    def make(image: Image.Image) -> dict[str, np.ndarray]:
        return {**ours(image), **(opencv(image) if peers else {})}

    rows = list(scale.score_images(found, make, blur))
    table = scale.summary(rows)
    out.mkdir(parents=True, exist_ok=True)
    scale.write(table, rows, failed, out, blur)
    width = max(map(len, table))
    print(
        f"\n{len(found)} images; mean ± half the 95 % interval\n{'':<{width}}  "
        + "  ".join(f"{s:<13}" for s in scale.SCORES.values())
    )
    for kind, row in table.items():
        print(f"{kind:<{width}}  " + "  ".join(f"{scale.told(mean):<13}" for mean in row.values()))
    if not peers:
        print("opencv-contrib is not installed: there is nothing to beat.")
        return
    for ending in ("", scale.CENTRED):
        theirs = max((kind + ending for kind in peers), key=lambda kind: table[kind]["auc_judd"].value)
        print(f"\nAUC-Judd over {theirs}, paired by image")
        for kind in table:
            if kind.endswith(scale.CENTRED) == bool(ending) and not kind.startswith("OpenCV"):
                done = [row.scores for row in rows if row.error is None]
                gain = scale.bootstrap_mean(np.array([one[kind]["auc_judd"] - one[theirs]["auc_judd"] for one in done]))
                print(f"  {kind:<{width}}  {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")


def _print(title: str, rows: dict[str, Ratio]) -> None:
    print(f"\n{title}")
    for name, row in rows.items():
        print(f"  {name:<56} {row}", flush=True)


def main() -> None:
    """Run what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--processor", action="store_true", help="processor time, for one thread on a busy machine")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--eyes", type=Path, default=None, metavar="FOLDER", help="score this data set instead")
    parser.add_argument("--blur", type=float, default=0.0, help="degrees of visual angle by which every map is smoothed")
    parser.add_argument("-o", "--out", type=Path, default=Path("bench"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(machine("higra", "numba", "scikit-image"))
    if given.eyes is not None:
        eyes(given.eyes, given.out, given.blur)
        return
    for title, contenders in trees(photo(given.size)).items():
        rows = in_turns(contenders, given.rounds, processor=given.processor)
        _print(f"{title}, {given.size}×{given.size}", rows)


if __name__ == "__main__":
    main()
