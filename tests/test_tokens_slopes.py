"""Backward through a block for many targets at once gives what each gives alone."""

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from tiny import CLASSES, TinyViT, images
from transformers_tiny import lively


class Watchful(torch.autograd.Function):
    """A backward that looks at the values of its gradient, which many at once have none of."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient if bool((gradient == gradient).all()) else gradient


class WatchfulMlp(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return Watchful.apply(self.inner(x)) / 2


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_a_backward_that_takes_no_two_targets_at_once(pooling):
    module, x = lively(TinyViT), images(2)
    targets = [list(range(CLASSES))] * 2
    expected = hp.explain(module, x, method="legrad", target=targets, pooling=pooling).raw
    module.blocks[1].linear2 = WatchfulMlp(module.blocks[1].linear2)
    torch.testing.assert_close(hp.explain(module, x, method="legrad", target=targets, pooling=pooling).raw, expected)


def test_prompts_share_one_forward_and_equal_those_asked_alone():
    module, x = lively(TinyViT), images(2)
    together = hp.explain(module, x, method="legrad", target=[list(range(CLASSES))] * 2).raw
    for c in range(CLASSES):
        torch.testing.assert_close(together[:, c], hp.explain(module, x, method="legrad", target=c).raw[:, 0])
