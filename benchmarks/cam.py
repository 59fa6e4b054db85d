"""The CAM family against a plain forward and against the peers: `python -m benchmarks.cam` in the repository's root.

torchvision's ResNet-50 with seeded random weights at 224 pixels. Weights do not matter to the clock.
"""

import argparse
from collections.abc import Callable

import torch
import torchvision

import heatproof as hp
from benchmarks import memory, start
from benchmarks.timing import Ratio, in_turns, machine

SIX = ["gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "eigengradcam"]
"""Methods that need the gradient at the layer."""

FIVE = [1, 10, 100, 500, 999]
"""Targets of every image."""


def network() -> torch.nn.Module:
    """ResNet-50 in eval mode, the same on every run."""
    torch.manual_seed(0)
    return torchvision.models.resnet50().eval()


def one_map(net: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """One Grad-CAM per image, by each library, and what a forward and an input gradient cost."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchcam.methods import GradCAM as TorchCAM

    model, targets = hp.wrap(net), [100] * len(x)

    def forward() -> None:
        with torch.no_grad():
            net(x)

    def input_gradient() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(net(leaf)[:, 100].sum(), leaf)

    def pytorch_grad_cam() -> None:
        with GradCAM(model=net, target_layers=[net.layer4]) as cam:
            cam(x, [ClassifierOutputTarget(t) for t in targets])
        net.zero_grad(set_to_none=True)

    def torchcam() -> None:
        with TorchCAM(net, "layer4") as cam:
            cam(targets, net(x))

    return {
        "forward (no_grad)": forward,
        "forward + input gradient": input_gradient,
        "heatproof gradcam": lambda: hp.explain(model, x, method="gradcam", target=targets),
        "heatproof gradcam, model wrapped anew": lambda: hp.explain(net, x, method="gradcam", target=targets),
        "heatproof gradient": lambda: hp.explain(model, x, method="gradient", target=targets),
        "TorchCAM GradCAM": torchcam,
        "pytorch-grad-cam GradCAM": pytorch_grad_cam,
    }


def six_by_five(net: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Six gradient CAMs of five targets in one call."""
    model, targets = hp.wrap(net), [FIVE] * len(x)

    def forward() -> None:
        with torch.no_grad():
            net(x)

    calls: dict[str, Callable[[], object]] = {"forward (no_grad)": forward}
    calls["heatproof, six methods × five targets"] = lambda: hp.explain(model, x, method=SIX, target=targets)
    return calls | {f"heatproof, {name} × five targets": _one_of_six(model, x, name, targets) for name in SIX}


def _one_of_six(model: hp.Model, x: torch.Tensor, name: str, targets: list[list[int]]) -> Callable[[], object]:
    return lambda: hp.explain(model, x, method=name, target=targets)


def six_by_five_peer(net: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The same thirty maps per image from pytorch-grad-cam, which takes one target per call."""
    import pytorch_grad_cam as peer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    kinds = [peer.GradCAM, peer.GradCAMPlusPlus, peer.XGradCAM, peer.HiResCAM, peer.LayerCAM, peer.EigenGradCAM]

    def forward() -> None:
        with torch.no_grad():
            net(x)

    def thirty() -> None:
        for kind in kinds:
            with kind(model=net, target_layers=[net.layer4]) as cam:
                for target in FIVE:
                    cam(x, [ClassifierOutputTarget(target)] * len(x))
        net.zero_grad(set_to_none=True)

    return {"forward (no_grad)": forward, "pytorch-grad-cam, six methods × five targets": thirty}


def _print(title: str, rows: dict[str, Ratio]) -> None:
    print(f"\n{title}")
    for name, row in rows.items():
        print(f"  {name:<46} {row}", flush=True)


def main() -> None:
    """Run everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=None, help="torch threads; default: torch's own choice")
    parser.add_argument("--processor", action="store_true", help="processor time, for one thread on a busy machine")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", choices=["one", "six", "peer", "memory", "growth", "start"], nargs="+", default=None)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)

    def wanted(part: str) -> bool:
        return given.only is None or part in given.only

    print(machine("torchvision", "grad-cam", "torchcam"))
    net = network()
    for batch in given.batches:
        x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        rounds = max(3, given.rounds // (1 if batch == 1 else 2))
        if wanted("one"):
            _print(f"One map per image, batch {batch}", in_turns(one_map(net, x), rounds, processor=given.processor))
        if wanted("six"):
            _print(f"Thirty maps per image, batch {batch}", in_turns(six_by_five(net, x), rounds, processor=given.processor))
        if wanted("peer"):
            _print(
                f"Thirty maps per image by the peer, batch {batch}",
                in_turns(six_by_five_peer(net, x), 3 if batch == 1 else 1, warm=0),
            )
        if wanted("memory"):
            print(f"\nPeak memory, batch {batch} (MB: before the call, at its peak, difference; × a forward's)")
            found = memory.peaks(batch)
            for what, one in found.items():
                whole, own = one["peak"] / found["forward"]["peak"], one["own"] / found["forward"]["own"]
                print(f"  {what:<46} {one['before']:8.0f} {one['peak']:8.0f} {one['own']:8.0f}   {whole:.2f}×, own {own:.2f}×")
    if wanted("growth"):
        print("\nResident MB after 100 and after 1,000 images, ResNet-18 at 64 pixels, one call each, gradcam and gradient")
        print("  " + ", ".join(f"{count}: {mb:.1f}" for count, mb in memory.growth().items()))
    if wanted("start"):
        print("\nSeconds")
        for name, seconds in start.imports().items():
            print(f"  {name:<46} {seconds:8.3f}")
        helped = start.help_page()
        print(f"  {'heatproof --help':<46} {helped['seconds']:8.3f}   torch imported: {bool(helped['torch imported'])}")


if __name__ == "__main__":
    main()
