"""Does a map need the right labels? `python examples/label_randomisation.py` (some minutes).

Two copies of planted-cnn's network learn the same 400 scenes, one with their true objects, one with labels shuffled among
them, each until it knows 95 % by heart. What their maps of new scenes share has nothing to do with what is an object.
"""

import numpy as np
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.models.planted import World
from heatproof.models.planted.cnn import PREPROCESS, PlantedCNN
from heatproof.proof.randomisation import compare_models
from heatproof.proof.similarity import MEASURES

COUNT, NEW, BATCH = 400, 32, 40


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images as the network takes them, and the number of each object."""
    drawn = list(World(correlation=0.2).scenes(count, seed))
    objects = drawn[0].world.objects
    pixels = torch.tensor(np.stack([scene.image for scene in drawn])).permute(0, 3, 1, 2).float() / 255
    return (pixels - 0.5) / 0.5, torch.tensor([objects.index(scene.object) for scene in drawn])


def learn(x: Tensor, y: Tensor) -> nn.Module:
    """Train until 95 % of the scenes are known."""
    torch.manual_seed(0)
    net = PlantedCNN()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-4)
    for epoch in range(1, 301):
        net.train()
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            known = (net(x).argmax(1) == y).float().mean().item()
        if known >= 0.95:
            print(f"{known:.0%} known after {epoch} epochs", flush=True)
            break
    return net


def main() -> None:
    x, y = scenes(COUNT, 0)
    shuffled = y[torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))]
    models = [hp.wrap(learn(x, labels), preprocess=PREPROCESS, labels=list(World().objects)) for labels in (y, shuffled)]
    new, truth = scenes(NEW, 1)
    for model, name in zip(models, ("true", "shuffled"), strict=True):
        print(f"{name} labels: {(model.scores(new).argmax(1) == truth).float().mean():.0%} of new scenes right")
    for method in ("gradcam", "gradient", "gradient-x-input", "lrp", "edges"):
        found = compare_models(lambda m, x, method=method: hp.explain(m, x, method, truth.tolist()).maps, *models, new)
        print(f"{method:<18}", ", ".join(f"{MEASURES[name]} {value.nanmean():.2f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
