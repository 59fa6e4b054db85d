"""Interventions against the bare batched forwards that they need: `python -m benchmarks.proof`.

ResNet-50 with seeded random weights and maps at 224 pixels: neither matters to the clock. The reference runs as many
images through the bare network, 16 at a time, as the test says that it needs.
"""

import argparse
import copy
from collections.abc import Callable

import torch

import heatproof as hp
from benchmarks.lrp import network
from benchmarks.timing import fresh, in_turns, machine
from heatproof.proof.battery import TESTS
from heatproof.proof.interventions import Test
from heatproof.proof.plan import BUDGET
from heatproof.proof.subject import Subject

SHORT: dict[str, dict[str, object]] = {
    "deletion": {"steps": 33},
    "insertion": {"steps": 33},
    "road": {},
    "pixel-flipping": {"regions": 32, "repeats": 1},
    "infidelity": {"samples": 32},
    "sensitivity-n": {"samples": 8, "fractions": (0.05, 0.1, 0.2, 0.4)},
    "token-dropping": {"fractions": (0.25, 0.5, 0.75)},
}
"""Fewer steps than by default: the ratio is the same, the wait is not."""


def contenders(test: Test, net: torch.nn.Module, maps: int) -> dict[str, Callable[[], object]]:
    """The bare forwards of a test, and the test on one image with that many maps, shadow and clean forward included."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 224, 224, generator=noise)
    heat = torch.nn.functional.interpolate(torch.rand(maps, 1, 7, 7, generator=noise), (224, 224), mode="bilinear")
    model, target = hp.wrap(net), torch.tensor([[0]])
    count = 1 + test.cost(Subject(model, x, target), maps)

    def bare() -> None:
        with torch.no_grad():
            for start in range(0, count, 16):
                net(x.repeat(min(16, count - start), 1, 1, 1))

    def ours() -> None:
        test(Subject(model, x, target), heat.view(1, 1, maps, 224, 224))

    return {f"{count} bare forwards": bare, test.name: ours}


def verdict(net: torch.nn.Module) -> dict[str, Callable[[], object]]:
    """As many bare forwards as a default verdict may take, and one on a confident score: of one at chance there is none."""
    sure = copy.deepcopy(net)
    sure.fc.weight.mul_(100)
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 224, 224, generator=noise)
    heat = torch.nn.functional.interpolate(torch.rand(1, 1, 7, 7, generator=noise), (224, 224), mode="bilinear")
    model = hp.wrap(sure)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(BUDGET // 16):
                sure(x.repeat(16, 1, 1, 1))

    def ours() -> None:
        found = hp.prove(model, x, heat)
        assert found.p_value.isfinite().all()

    return {f"{BUDGET} bare forwards": bare, "default verdict": ours}


_PEAK = """
import json, sys, torch
from benchmarks.lrp import network
import heatproof as hp
from heatproof.proof.battery import TESTS
from heatproof.proof.subject import Subject
torch.set_num_threads(1)
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
subject = Subject(hp.wrap(network("resnet18")), torch.randn(1, 3, 224, 224), torch.tensor([[0]]))
test = TESTS["deletion"](steps=int(sys.argv[1]))
test(subject, torch.rand(1, 1, 1, 224, 224))
print(json.dumps({"peak": status("VmHWM")}))
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", default="deletion,insertion,pixel-flipping,infidelity,sensitivity-n,road")
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--maps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processor", action="store_true", help="processor time instead of the wall clock")
    parser.add_argument("--verdict", action="store_true", help="a whole default verdict as well, ResNet-50; takes minutes")
    parser.add_argument("--memory", action="store_true", help="peak memory of deletion in 64 and in 448 steps, ResNet-18, Linux")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(machine("torchvision"))
    net = network(given.network)
    for name in filter(None, given.tests.split(",")):
        test = TESTS[name](**SHORT.get(name, {}))
        for label, ratio in in_turns(contenders(test, net, given.maps), given.rounds, warm=1, processor=given.processor).items():
            print(f"  {label:28} {ratio}", flush=True)
    if given.verdict:
        for label, ratio in in_turns(verdict(net), given.rounds, warm=0, processor=given.processor).items():
            print(f"  {label:28} {ratio}", flush=True)
    if given.memory:
        few, many = (fresh(_PEAK, steps)["peak"] for steps in ("64", "448"))
        print(f"  peak memory of the process: {few:.0f} MB in 64 steps, {many:.0f} MB in 448 steps")


if __name__ == "__main__":
    main()
