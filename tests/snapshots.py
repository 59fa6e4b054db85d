"""A network with everything that could be disturbed, and what it looks like before and after."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import heatproof as hp

SIZE = (13, 17)
CLASSES = 5
METHODS = [row.name for row in hp.methods() if row.family != "tokens"]
"""Every method that takes a convolutional network; test_token_promises.py does the same for the others."""
CHEAP = {"smoothgrad": {"samples": 3}, "integrated-gradients": {"steps": 4}}


class Net(nn.Module):
    """Small, with everything that remembers or behaves by mode: batch norm, dropout, in-place and shared activations."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 7, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(7)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(7, classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        return self.act(self.norm2(self.conv2(x)))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.drop(self.features(x).mean((-2, -1))))


def seeded(kind: Callable[[], nn.Module] = Net, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = kind()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.bias, 0, 1)
    return net


def image(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def state_of(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    version = None if tensor.is_inference() else tensor._version  # counts every in-place write
    plain = tensor.detach().contiguous().view(-1).clone().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    grad = state_of(tensor.grad) if tensor.is_leaf else None
    return id(tensor), tensor.data_ptr(), version, tensor.requires_grad, tensor.dtype, tensor.shape, plain, grad


def snapshot(module: nn.Module) -> dict[Any, Any]:
    """Everything that can be asked of a module, by identity and by value."""
    found: dict[Any, Any] = {"global hooks": [len(hooks) for hooks in global_hooks()]}
    for name, child in module.named_modules(remove_duplicate=False):
        for key, value in vars(child).items():
            where = (name, key)
            if key in ("_parameters", "_buffers"):
                found |= {(*where, n): state_of(t) for n, t in value.items()}
            elif isinstance(value, Tensor):
                found[where] = state_of(value)
            elif isinstance(value, dict):  # hooks and children
                found[where] = [(k, id(v)) for k, v in value.items()]
            elif isinstance(value, list | set):
                found[where] = (id(value), [repr(item) for item in value])
            else:
                found[where] = (id(value), repr(value) if isinstance(value, str | int | float | bool | tuple) else None)
    return found


def global_hooks() -> list[dict]:
    names = [name for name in vars(torch.nn.modules.module) if name.startswith("_global_") and name.endswith("hooks")]
    assert len(names) > 4
    return [getattr(torch.nn.modules.module, name) for name in names]


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Inside, anything may be explained; afterwards everything is as before."""
    before = snapshot(module)
    yield
    after = snapshot(module)
    assert before.keys() == after.keys()
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, f"changed: {changed}"


def explained(net: Any, x: Tensor, method: str = "gradcam", **options: Any) -> hp.Explanation:
    return hp.explain(net, x, method=method, **CHEAP.get(method, {}), **options)
