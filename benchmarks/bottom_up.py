"""Bottom-up models against OpenCV and scikit-image: `python -m benchmarks.bottom_up` in the repository's root.

Noise with structure at 512 × 512, alone and 32 at a time; content does not matter to the clock, but entropy's table look-ups
like repeated values, so the images are smooth.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.timing import in_turns, machine
from heatproof.bottom_up.center_surround import center_surround
from heatproof.bottom_up.entropy import entropy
from heatproof.bottom_up.filters import gaussian
from heatproof.bottom_up.gbvs import gbvs
from heatproof.bottom_up.itti import itti
from heatproof.bottom_up.scanpath import scanpath
from heatproof.bottom_up.spectral_residual import spectral_residual


def images(count: int) -> torch.Tensor:
    """The same smooth noise on every run."""
    noise = torch.rand(count, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    return gaussian(noise, 2.0).sub(0.4).mul(4).clamp(0, 1).contiguous()  # a transposed batch is read more slowly


def contenders(x: torch.Tensor) -> dict[str, dict[str, Callable[[], object]]]:
    """By question, the reference first; the peers take one image after the other, which is laid out as they want it before."""
    import cv2
    from skimage.filters.rank import entropy as rank_entropy
    from skimage.morphology import disk

    photos = [np.ascontiguousarray(image) for image in (x * 255).byte().permute(0, 2, 3, 1).numpy()[..., ::-1]]
    floats = [np.ascontiguousarray(image) for image in x.permute(0, 2, 3, 1).numpy()[..., ::-1]]
    greys = [photo.mean(2).astype(np.uint8) for photo in photos]
    last = x.contiguous(memory_format=torch.channels_last)
    theirs = cv2.saliency.StaticSaliencySpectralResidual_create()
    maps = itti(x)
    return {
        "spectral residual": {
            "OpenCV, floats": lambda: [theirs.computeSaliency(photo) for photo in floats],
            "OpenCV, floats to one array": lambda: np.stack([theirs.computeSaliency(photo)[1] for photo in floats]),
            "OpenCV, 8 bits": lambda: [theirs.computeSaliency(photo) for photo in photos],
            "heatproof": lambda: spectral_residual(x),
            "heatproof, channels last": lambda: spectral_residual(last),
            "heatproof, Lab": lambda: spectral_residual(x, "lab"),
            "reading, and writing anew": lambda: (x.sum(), np.ones((len(x), 512, 512), np.float32)),
        },
        "entropy, disk of 15 pixels": {
            "scikit-image": lambda: [rank_entropy(grey, disk(7)) for grey in greys],
            "heatproof": lambda: entropy(x, 15),
            "heatproof, colour": lambda: entropy(x, 15, channels="colour"),
        },
        "models": {
            "itti": lambda: itti(x),
            "itti, iterative": lambda: itti(x, normalisation="iterative"),
            "scanpath of ten": lambda: scanpath(maps),
            "gbvs": lambda: gbvs(x),
            "center-surround": lambda: center_surround(x),
        },
    }


def main() -> None:
    """Run everything and print milliseconds per image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=None, help="threads of torch and OpenCV; default: their own choice")
    parser.add_argument("--processor", action="store_true", help="processor time, for one thread on a busy machine")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    given = parser.parse_args()
    if given.threads:
        import cv2

        torch.set_num_threads(given.threads)
        cv2.setNumThreads(given.threads)
    print(machine("scikit-image", "numba"))
    for batch in given.batches:
        for question, calls in contenders(images(batch)).items():
            rounds = max(3, given.rounds // (1 if batch == 1 else 2))
            print(f"\n{question}, batch {batch} (per image; ratio to the first)")
            for name, row in in_turns(calls, rounds, warm=1, processor=given.processor).items():
                print(
                    f"  {name:<28} {1000 * row.seconds / batch:8.2f} ms  {row.ratio:6.2f}×  [{row.low:.2f}, {row.high:.2f}]",
                    flush=True,
                )


if __name__ == "__main__":
    main()
