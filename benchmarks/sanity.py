"""A whole cascade of randomisations against nothing but its explanations: `python -m benchmarks.sanity`.

torchvision's networks with seeded random weights at 224 pixels, every layer a stage of its own. The reference is the same
number of explanations of the model as it is.
"""

import argparse

import torch
import torchvision

import heatproof as hp
from benchmarks.timing import in_turns, machine
from heatproof.proof.randomisation import cascade, explanations
from heatproof.proof.reinitialise import Forgetful


def contenders(name: str, method: str, seeds: int, batch: int) -> dict:
    """The bare explanations, and the cascade in each order."""
    torch.manual_seed(0)
    model = hp.wrap(getattr(torchvision.models, name)().eval())
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    count = explanations(len(Forgetful(model, x).layers), seeds)

    def maps(one: hp.Model, images: torch.Tensor) -> torch.Tensor:
        return hp.explain(one, images, method=method, target=1).maps

    def bare() -> None:
        for _ in range(count):
            maps(model, x)

    def whole(order: str) -> None:
        cascade(model, x, maps, order=order, seeds=tuple(range(seeds)))

    # top-down and bottom-up cost the same
    return {f"{count} explanations": bare, "cascade, top-down": lambda: whole("top-down")}


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(machine("torchvision", "scikit-image"))
    for name in given.networks:
        for method in ("gradcam", "gradient"):
            rows = in_turns(contenders(name, method, given.seeds, given.batch), given.rounds, processor=True)
            print(f"\n{name}, {method}, batch {given.batch}, {given.seeds} seed(s)")
            for row, ratio in rows.items():
                print(f"  {row:<24} {ratio}", flush=True)


if __name__ == "__main__":
    main()
