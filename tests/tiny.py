"""Small seeded networks with awkward shapes: a 3×5 grid, odd channels, prefix tokens."""

import torch
from torch import Tensor, nn

SIZE = (24, 40)
CLASSES = 5


def seeded(build, seed: int = 0) -> nn.Module:
    """Build a module from a seed without leaving a mark on the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def images(count: int = 2, seed: int = 1, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


class GapNet(nn.Module):
    """Convolutions, ReLU, global average pooling, one linear layer: where CAM applies. 24×40 gives a 3×5 grid."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=bias), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.features = nn.Sequential(
            nn.Conv2d(6, 9, 3, 2, 1, bias=bias), nn.ReLU(), nn.Conv2d(9, 7, 3, 2, 1, bias=bias), nn.ReLU(inplace=True)
        )
        self.fc = nn.Linear(7, CLASSES, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(self.stem(x)).mean((2, 3)))


class HeadNet(GapNet):
    """A nonlinear head on the same features: gradients differ from place to place, CAM does not apply."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(7 * 15, 11), nn.Tanh(), nn.Linear(11, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(self.stem(x)))


class TinyViT(nn.Module):
    """Two blocks, a class token and two registers in front of a 3×5 grid, the class token is read."""

    def __init__(self, width: int = 12, heads: int = 3, prefix: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, prefix, width))
        self.position = nn.Parameter(torch.randn(1, prefix + 15, width) * 0.3)
        layer = lambda: nn.TransformerEncoderLayer(width, heads, 2 * width, 0.1, batch_first=True, norm_first=True)  # noqa: E731
        self.blocks = nn.ModuleList(layer() for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)[:, 0])
