"""Relevance against forward + input gradient, and against Zennit and Captum: `python -m benchmarks.lrp`.

torchvision networks with seeded random weights, frozen, at 224 pixels. Weights do not matter to the clock, except that a
rule may skip negative outputs that no relevance reaches.
"""

import argparse
import warnings
from collections.abc import Callable
from itertools import accumulate

import torch
import torchvision
from torch.profiler import ProfilerActivity, profile

import heatproof as hp
from benchmarks.timing import Ratio, in_turns, machine

TARGETS = [[1, 10, 100, 500, 999]]


def network(name: str) -> torch.nn.Module:
    """A torchvision network with frozen weights, the same on every run."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(name).eval()
    if name.startswith("vit"):
        torch.nn.init.normal_(net.heads.head.weight, std=0.02)  # a fresh ViT has a head of zeros
    return net.requires_grad_(False)


def contenders(name: str, net: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Each composite that fits the network, five targets, and what the peers have for it."""
    model = hp.wrap(net)

    def input_gradient() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(net(leaf)[:, 100].sum(), leaf)

    def relevance(composite: str, target: object = 100) -> Callable[[], object]:
        return lambda: hp.explain(model, x, method="lrp", composite=composite, target=target)

    composites = ["lrp0", "epsilon", "epsilon-gamma-box", "epsilon-plus-flat"]
    composites = ["lrp0", "attnlrp", "auto"] if name.startswith("vit") else composites
    calls: dict[str, Callable[[], object]] = {"forward + input gradient": input_gradient}
    calls |= {f"heatproof {composite}": relevance(composite) for composite in composites}
    calls[f"heatproof {composites[1]}, five targets"] = relevance(composites[1], TARGETS)
    return calls if name.startswith("vit") else calls | _zennit(name, net, x) | _captum(name, net, x)


def _zennit(name: str, net: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    try:
        from zennit.composites import EpsilonGammaBox, EpsilonPlusFlat
        from zennit.torchvision import ResNetCanonizer, VGGCanonizer
    except ImportError:
        return {}
    canonizers = [ResNetCanonizer() if name.startswith("resnet") else VGGCanonizer()]

    def run(composite: object) -> Callable[[], object]:
        def call() -> None:
            with composite.context(net) as changed:
                leaf = x.clone().requires_grad_()
                torch.autograd.grad(changed(leaf)[:, 100].sum(), leaf)

        return call

    box = EpsilonGammaBox(low=-3.0, high=3.0, canonizers=canonizers)
    return {"Zennit EpsilonGammaBox": run(box), "Zennit EpsilonPlusFlat": run(EpsilonPlusFlat(canonizers=canonizers))}


def _captum(name: str, net: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    if not name.startswith("vgg"):  # wrong on residual networks, whose ReLUs run several times
        return {}
    try:
        from captum.attr import LRP
    except ImportError:
        return {}

    def call() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            LRP(net).attribute(x.clone(), target=100)

    return {"Captum LRP": call}


def peak(call: Callable[[], object]) -> float:
    """MiB that tensors take at the highest moment of a call, beyond what was there before: exact, on any system."""
    call()  # buffers of the libraries are not the call's
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))) / 2**20


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="resnet50,vgg16,vit_b_16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--processor", action="store_true", help="processor time instead of the wall clock")
    parser.add_argument("--memory", action="store_true", help="peak memory as well")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    print(machine("torchvision"))
    for name in given.networks.split(","):
        net, x = network(name), torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        result: dict[str, Ratio] = in_turns(contenders(name, net, x), given.rounds, processor=given.processor)
        print(f"\n{name}")
        for label, ratio in result.items():
            print(f"  {label:44} {ratio}")
        if given.memory:
            # each on a network of its own: Captum leaves tensors on the modules, which every copy of the network then has
            found = {label: peak(contenders(name, network(name), x)[label]) for label in result}
            first = next(iter(found.values()))
            for label, size in found.items():
                print(f"  {label:44} {size:6.1f} MiB {size / first:5.2f}×")


if __name__ == "__main__":
    main()
