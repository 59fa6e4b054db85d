"""Token methods against one forward, and against LeGrad's own package: `python -m benchmarks.tokens`.

open_clip's ViT-B-16 with seeded random weights at 224 pixels, one image. Weights do not matter to the clock.
"""

import argparse
import contextlib
import copy
import io
from collections.abc import Callable

import torch

import heatproof as hp
from benchmarks.timing import in_turns, machine

PROMPTS = [f"prompt number {n}" for n in range(16)]
LAST_TWO = [-2, -1]


def network() -> torch.nn.Module:
    """The image–text model, the same on every run."""
    import open_clip

    torch.manual_seed(0)
    return open_clip.create_model("ViT-B-16", pretrained=None).eval().requires_grad_(False)


def contenders(module: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """One and many prompts, all blocks and two; the other token methods; the official package where it is installed."""
    model = hp.wrap(module, prompts=PROMPTS)

    def forward() -> None:
        with torch.no_grad():
            module.encode_image(x)

    def legrad(prompts: int, **options: object) -> Callable[[], object]:
        targets = [PROMPTS[:prompts]]
        return lambda: hp.explain(model, x, method="legrad", target=targets, **options)

    calls: dict[str, Callable[[], object]] = {"forward of the image tower": forward}
    calls |= {f"legrad, 12 blocks, {n} prompt(s)": legrad(n) for n in (1, 4, 16)}
    calls |= {f"legrad, class token, {n} prompt(s)": legrad(n, pooling="class") for n in (1, 16)}
    calls |= {f"legrad, last two blocks, {n} prompt(s)": legrad(n, layers=LAST_TWO) for n in (1, 16)}
    calls |= {name: lambda name=name: hp.explain(model, x, method=name) for name in ("rollout", "attention")}
    return calls | _official(module, x, model.readout.classifier.T.contiguous())


def _official(module: torch.nn.Module, x: torch.Tensor, texts: torch.Tensor) -> dict[str, Callable[[], object]]:
    try:
        from legrad import LeWrapper
    except ImportError:
        return {}
    twin = copy.deepcopy(module)
    for block in twin.visual.transformer.resblocks:
        block.attn.batch_first = False  # it was written for blocks that keep tokens in front of the batch
    with contextlib.redirect_stdout(io.StringIO()):
        wrapper = LeWrapper(twin)
    return {
        f"legrad-torch, last two blocks, {n} prompt(s)": lambda n=n: wrapper.compute_legrad(texts[:n], image=x) for n in (1, 16)
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--processor", action="store_true", help="processor time instead of the wall clock")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    print(machine("open_clip_torch"))
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for name, ratio in in_turns(contenders(network(), x), given.rounds, warm=1, processor=given.processor).items():
        print(f"  {name:48} {ratio}")


if __name__ == "__main__":
    main()
