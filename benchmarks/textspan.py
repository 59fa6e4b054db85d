"""TextSpan against one forward, in time and in memory: `python -m benchmarks.textspan`.

open_clip's ViT-B-16 with seeded random weights at 224 pixels, eight images. Weights do not matter to either.
"""

import argparse
from collections.abc import Callable

import torch

import heatproof as hp
from benchmarks.timing import fresh, in_turns, machine
from benchmarks.tokens import PROMPTS, network

BATCH = 8


def contenders(module: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """One and many prompts, and the mean over prompts taken off."""
    model = hp.wrap(module, prompts=PROMPTS)

    def forward() -> None:
        with torch.no_grad():
            module.encode_image(x)

    def textspan(prompts: int, **options: object) -> Callable[[], object]:
        targets = [PROMPTS[:prompts]] * len(x)
        return lambda: hp.explain(model, x, method="textspan", target=targets, **options)

    calls: dict[str, Callable[[], object]] = {"forward of the image tower": forward}
    calls |= {f"textspan, {n} prompt(s)": textspan(n) for n in (1, 4, 16)}
    return calls | {"textspan, less the mean of 16 prompts": textspan(1, minus_mean=True)}


_MEMORY = """
import json, sys, torch
import heatproof as hp
from benchmarks.tokens import PROMPTS, network
torch.set_num_threads(1)
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
module, what, batch = network(), sys.argv[1], int(sys.argv[2])
model = hp.wrap(module, prompts=PROMPTS)
x = torch.randn(batch, 3, 224, 224)
def call(x):
    if what == "forward":
        with torch.no_grad():
            module.encode_image(x)
    elif what == "every term":
        kept = []  # what each head writes for each token, in the embedding: batch, heads, tokens, 512
        for block in module.visual.transformer.resblocks:
            kept.append(torch.ones(len(x), 12, 197, 512))
    else:
        hp.explain(model, x, method="textspan", target=[PROMPTS[:1]] * len(x))
call(x[:1])                                     # the libraries' own buffers are not the call's
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")   # the peak starts here
call(x)
print(json.dumps({"whole": status("VmHWM"), "own": status("VmHWM") - before}))
"""


def peaks(batch: int) -> dict[str, dict[str, float]]:
    """MB at the peak of a fresh process, and what of it came with the call. Linux only."""
    return {what: fresh(_MEMORY, what, str(batch)) for what in ("forward", "textspan", "every term")}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--processor", action="store_true", help="processor time instead of the wall clock")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    print(machine("open_clip_torch"))
    for what, one in peaks(BATCH).items():
        print(f"  {what:40} peak of the process {one['whole']:7.0f} MB, of the call {one['own']:7.0f} MB")
    x = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for name, ratio in in_turns(contenders(network(), x), given.rounds, warm=1, processor=given.processor).items():
        print(f"  {name:40} {ratio}")


if __name__ == "__main__":
    main()
