"""Small photos on disk, and a network that takes them at any size."""

import numpy as np
import torch
from PIL import Image

import heatproof as hp


def photo(path, width, height, seed=0, dc=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256 - dc, (3, 4, 3), dtype=np.uint8) + np.uint8(dc))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


class Tiny(torch.nn.Module):
    """Scores of images of any size; class 1 likes blue."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.features = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.head = torch.nn.Linear(5, 4)

    def forward(self, x):
        if min(x.shape[-2:]) < 4:
            raise RuntimeError("too small")
        return self.head(self.features(x).relu().mean((2, 3)))


LABELS = ["crane", "Crane bird, wader", "sea, snow", "crane"]


def as_they_are(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def tiny_model():
    """Images enter at their own size."""
    return hp.wrap(Tiny(), preprocess=as_they_are, labels=LABELS)
