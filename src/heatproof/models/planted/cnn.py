"""A small residual network that names the object of a planted scene: convolutions, global average pooling, one linear layer."""

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from heatproof.models.model import Model
from heatproof.models.planted.objects import OBJECTS
from heatproof.models.preprocess import resize_crop
from heatproof.models.weights import load_state, read_state

SIZE, WIDTHS = 64, (24, 48, 96)

WEIGHTS = Path(__file__).with_name("planted-cnn.safetensors")
PREPROCESS = resize_crop(SIZE, SIZE, (0.5,) * 3, (0.5,) * 3)


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(given, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if given != width or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(given, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Float[Tensor, "batch given height width"]) -> Float[Tensor, "batch channels h w"]:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class PlantedCNN(nn.Module):
    """From 64 pixels to 8 × 8 places with 96 channels, their mean, and one score per object. Any larger size does, too."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        self.layer1 = Residual(first, first, 1)
        self.layer2 = Residual(first, second, 2)
        self.layer3 = Residual(second, third, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, len(OBJECTS))

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def load(weights: Any = None) -> Model:
    """planted-cnn, 64 px, one class per object.

    Raises:
        ModelError: `weights` cannot be read or does not fit.
    """
    path = WEIGHTS if weights is None else weights
    module = PlantedCNN().eval()
    load_state(module, read_state(path), path)
    return Model(module, "planted-cnn", preprocess=PREPROCESS, labels=tuple(OBJECTS))
