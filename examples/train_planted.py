"""Train planted-clip and planted-cnn from a seed, and measure what they learned and what they only think they see.

    python examples/train_planted.py [clip | cnn] [--out FOLDER] [--seed N] [--steps N] [--scenes N] [--correlation P]

Two cores need under half an hour for both. Write into src/heatproof/models/planted to replace the weights that ship.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.models.planted import Scene, World
from heatproof.models.planted.clip import PlantedCLIP
from heatproof.models.planted.cnn import PlantedCNN
from heatproof.models.planted.words import OF_BOTH, OF_CONTEXT, OF_OBJECT, PROMPT, tokenize
from heatproof.proof.presence import auroc, threshold

DECORRELATED = World(correlation=0.0)
OBJECTS, CONTEXTS = DECORRELATED.objects, DECORRELATED.contexts
BATCH = 64


def images(scenes: Iterator[Scene] | list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels as uint8 `(N, 3, 64, 64)`, and the numbers of object and context."""
    pixels, objects, contexts = [], [], []
    for scene in scenes:
        pixels.append(np.ascontiguousarray(scene.image.transpose(2, 0, 1)))
        objects.append(-1 if scene.object is None else OBJECTS.index(scene.object))
        contexts.append(CONTEXTS.index(scene.context))
    return torch.from_numpy(np.stack(pixels)), torch.tensor(objects), torch.tensor(contexts)


def normed(pixels: Tensor) -> Tensor:
    """As the models' preprocessing does it."""
    return (pixels.float() / 255 - 0.5) / 0.5


def batches(data: tuple[Tensor, Tensor, Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches without end, in an order drawn anew each time round, half of the images mirrored."""
    rng = torch.Generator().manual_seed(seed)
    pixels, objects, contexts = data
    while True:
        for rows in torch.randperm(len(pixels), generator=rng).split(BATCH):
            x = normed(pixels[rows])
            mirrored = torch.rand(len(x), generator=rng) < 0.5
            x[mirrored] = x[mirrored].flip(3)
            yield x, objects[rows], contexts[rows]


def train(module: nn.Module, loss: Callable[..., Tensor], data: tuple, steps: int, rate: float, seed: int) -> list[float]:
    """AdamW, a warm-up over the first steps, then a cosine down to nothing. Returns the loss of each step."""
    plain = [p for p in module.parameters() if p.ndim < 2]
    weights = [p for p in module.parameters() if p.ndim >= 2]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": weights, "weight_decay": 0.05}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    warm = max(steps // 20, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warm, 0.5 + 0.5 * np.cos(np.pi * max(n - warm, 0) / max(steps - warm, 1)))
    )
    losses, start = [], time.monotonic()
    module.train()
    for step, batch in enumerate(islice(batches(data, seed), steps), 1):
        optimizer.zero_grad()
        value = loss(*batch)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        if step % max(steps // 10, 1) == 0:
            now = shown(measure(module.eval(), 250)) if step < steps else ""
            print(f"{step:5d}  loss {np.mean(losses[-50:]):.3f}  {time.monotonic() - start:.0f} s  {now}", flush=True)
            module.train()
    module.eval()
    return losses


def train_clip(data: tuple, steps: int, seed: int) -> tuple[PlantedCLIP, list[float]]:
    """Contrastive: each caption finds the images of the batch that it is true of, and each image its captions."""
    torch.manual_seed(seed)
    module, rng, taken = PlantedCLIP(), random.Random(seed), torch.Generator().manual_seed(seed)
    step = 0

    def half(_: nn.Module, tokens: tuple[Tensor]) -> tuple[Tensor] | None:
        """The class token and a random half of the patches: the step costs half as much, and teaches nearly as much."""
        if not module.training or step > 0.8 * steps:
            return None
        patches = tokens[0].shape[1] - 1
        kept = torch.rand(len(tokens[0]), patches, generator=taken).argsort(1)[:, : patches // 2] + 1
        kept = F.pad(kept, (1, 0))[..., None].expand(-1, -1, tokens[0].shape[2])
        return (tokens[0].gather(1, kept),)

    def loss(x: Tensor, objects: Tensor, contexts: Tensor) -> Tensor:
        nonlocal step
        step += 1
        texts, named, placed = [], objects.clone(), contexts.clone()
        for n, (o, c) in enumerate(zip(objects.tolist(), contexts.tolist(), strict=True)):
            kind = rng.choice((OF_OBJECT, OF_CONTEXT, OF_BOTH))
            texts.append(rng.choice(kind).format(o=OBJECTS[o], c=CONTEXTS[c]))
            if kind is OF_OBJECT:
                placed[n] = -1
            if kind is OF_CONTEXT:
                named[n] = -1
        # "snow" is true of every image with snow in the batch, not only of the one it was written for
        true = ((named == objects[:, None]) | (named < 0)) & ((placed == contexts[:, None]) | (placed < 0))
        image = F.normalize(module.encode_image(x), dim=1)
        text = F.normalize(module.encode_text(tokenize(texts)), dim=1)
        logits = module.logit_scale.exp().clamp(max=100) * image @ text.T
        wanted = true.float()
        per_image = F.cross_entropy(logits, wanted / wanted.sum(1, keepdim=True))
        per_text = F.cross_entropy(logits.T, wanted.T / wanted.T.sum(1, keepdim=True))
        return (per_image + per_text) / 2

    handle = module.visual.ln_pre.register_forward_pre_hook(half)
    losses = train(module, loss, data, steps, 1e-3, seed)
    handle.remove()
    return module, losses


def train_cnn(data: tuple, steps: int, seed: int) -> tuple[PlantedCNN, list[float]]:
    """Cross-entropy on the objects."""
    torch.manual_seed(seed)
    module = PlantedCNN()
    return module, train(module, lambda x, objects, _: F.cross_entropy(module(x), objects), data, steps, 2e-3, seed)


@torch.no_grad()
def scorer(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """From pixels to one score per object."""
    if isinstance(module, PlantedCNN):
        return lambda pixels: torch.cat([module(normed(part)) for part in pixels.split(256)])
    text = F.normalize(module.encode_text(tokenize([PROMPT.format(o=name) for name in OBJECTS])), dim=1)
    return lambda pixels: torch.cat([F.normalize(module.encode_image(normed(p)), dim=1) @ text.T for p in pixels.split(256)])


@torch.no_grad()
def measure(module: nn.Module, count: int = 2000, seed: int = 1_000_001) -> dict[str, float]:
    """What a model has learned, on scenes that it never saw and whose contexts say nothing of the object.

    Args:
        count: scenes to draw the thresholds from, and as many to measure on.

    Returns:
        `accuracy`: the object has the highest score. `auroc`: mean over objects, presence from its score.
        `hallucination`: share of scenes without an object in which the context's own object scores above the threshold
        that best separates presence from absence. `false_alarm`: the same for the other seven objects.
        `own_on_top`: share of scenes without an object in which the context's own object scores highest (chance: 1/8).
    """
    score = scorer(module)
    held_out = list(DECORRELATED.scenes(2 * count, seed))
    pixels, objects, contexts = images(held_out)
    empty = score(images([scene.without_object() for scene in held_out[count:]])[0])
    found = score(pixels)
    there = F.one_hot(objects, len(OBJECTS)).bool()
    limits = torch.tensor([threshold(found[:count, n].numpy(), there[:count, n].numpy()) for n in range(len(OBJECTS))])
    at_home = torch.tensor([CONTEXTS.index(DECORRELATED.own[name]) for name in OBJECTS])
    own = contexts[count:, None] == at_home
    seen = empty > limits
    areas = [auroc(found[count:, n][on].numpy(), found[count:, n][~on].numpy()) for n, on in enumerate(there[count:].T)]
    return {
        "accuracy": float((found[count:].argmax(1) == objects[count:]).double().mean()),
        "auroc": float(np.mean(areas)),
        "hallucination": float(seen[own].double().mean()),
        "false_alarm": float(seen[~own].double().mean()),
        "own_on_top": float(own.gather(1, empty.argmax(1, keepdim=True)).double().mean()),
    }


def shown(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


def save(module: nn.Module, path: Path, told: dict[str, str]) -> None:
    """Half precision; the counters of batch norms are left out."""
    state = {name: t.half().contiguous() for name, t in module.state_dict().items() if t.is_floating_point()}
    save_file(state, path, told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="?", choices=("clip", "cnn"))
    parser.add_argument("--out", type=Path, default=Path("planted"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--correlation", type=float)
    parser.add_argument("--scenes", type=int, default=24_000)
    told = parser.parse_args()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    told.out.mkdir(parents=True, exist_ok=True)
    for name, make, steps, correlation in (("cnn", train_cnn, 800, 0.95), ("clip", train_clip, 3000, 0.9)):
        if told.which in (None, name):
            correlation = correlation if told.correlation is None else told.correlation
            print(f"planted-{name}: drawing {told.scenes} scenes of correlation {correlation}", flush=True)
            data = images(World(correlation).scenes(told.scenes, told.seed))
            given = {"seed": told.seed, "steps": told.steps or steps, "scenes": told.scenes, "correlation": correlation}
            module, _ = make(data, given["steps"], told.seed)
            file = told.out / f"planted-{name}.safetensors"
            save(module, file, {key: str(value) for key, value in given.items()})
            print(file, shown(measure(module)), flush=True)


if __name__ == "__main__":
    main()
