"""Writes in place, views, calls in every spelling, and what relevance may not pass."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from lrp_networks import every_composite, lrp, settle
from tiny import images, seeded

# --- writes, views, calls ----------------------------------------------------------------------------------------


def add_to_a_slice(y: Tensor) -> Tensor:
    y[:, :2] += 1.0
    return y


def after(write, y: Tensor) -> Tensor:
    """What is left in `y` when something has been written into a part of it."""
    write(y)
    return y


def into_zeros(y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[:, 1:3] = y[:, :2]
    return z


def set_in_a_view(y: Tensor) -> Tensor:
    y[:, :2][:, 1] = 0.7
    return y


SPELLINGS = {
    "relu_": (lambda y: y.relu_(), lambda y: y.relu()),
    "functional relu_": (lambda y: F.relu(y, inplace=True), lambda y: y.relu()),
    "add_": (lambda y: y.clone().add_(y, alpha=0.5), lambda y: y + 0.5 * y),
    "add_ to a view": (lambda y: after(lambda z: z[:, 0].add_(1.0), y), lambda y: torch.cat([y[:, :1] + 1.0, y[:, 1:]], 1)),
    "+= on a slice": (add_to_a_slice, lambda y: torch.cat([y[:, :2] + 1.0, y[:, 2:]], 1)),
    "mul_ on a view": (lambda y: after(lambda z: z[:, 1:].mul_(2.5), y), lambda y: torch.cat([y[:, :1], y[:, 1:] * 2.5], 1)),
    "mul_ with a gate": (lambda y: y.mul_(y.mean((2, 3), keepdim=True).sigmoid()),
                         lambda y: y * y.mean((2, 3), keepdim=True).sigmoid()),
    "mul_ with itself": (lambda y: y.mul_(y), lambda y: y * y),
    "clamp_": (lambda y: y.clamp_(-0.1, 0.3), lambda y: y.clamp(-0.1, 0.3)),
    "clamp_ on a view": (lambda y: after(lambda z: z[:, :1].clamp_(0, 0.2), y),
                         lambda y: torch.cat([y[:, :1].clamp(0, 0.2), y[:, 1:]], 1)),
    "hardtanh_": (lambda y: F.hardtanh(y, 0, 0.3, True), lambda y: F.hardtanh(y, 0, 0.3)),
    "silu_": (lambda y: F.silu(y, inplace=True), lambda y: F.silu(y)),
    "copy_": (lambda y: torch.empty_like(y).copy_(y), lambda y: y),
    "copy_ into a view": (lambda y: after(lambda z: z[:, :2].copy_(z[:, 2:] * 2), y),
                          lambda y: torch.cat([y[:, 2:] * 2, y[:, 2:]], 1)),
    "fill_ a view": (lambda y: after(lambda z: z[:, 0].fill_(2.0), y),
                     lambda y: torch.cat([torch.full_like(y[:, :1], 2.0), y[:, 1:]], 1)),
    "zero_ a view": (lambda y: after(lambda z: z[:, 0].zero_(), y), lambda y: torch.cat([y[:, :1] * 0, y[:, 1:]], 1)),
    "set to a constant": (lambda y: after(lambda z: z.__setitem__((slice(None), 0), 2.0), y),
                          lambda y: torch.cat([torch.full_like(y[:, :1], 2.0), y[:, 1:]], 1)),
    "set in a view": (set_in_a_view, lambda y: torch.cat([y[:, :1], torch.full_like(y[:, :1], 0.7), y[:, 2:]], 1)),
    "set in zeros": (into_zeros, lambda y: F.pad(y[:, :2], (0, 0, 0, 0, 1, 1))),
    "a view that was taken before": (lambda y: (lambda v: y.relu_() + v.view_as(y))(y.flatten(1)), lambda y: y.relu() * 2),
    "index_add_": (lambda y: y.index_add_(1, torch.tensor([0]), y[:, 1:2].clone()),
                   lambda y: torch.cat([y[:, :1] + y[:, 1:2], y[:, 1:]], 1)),
    "masked_fill_": (lambda y: y.masked_fill_(y.detach() > 0.1, 0.5), lambda y: torch.where(y > 0.1, 0.5, y)),
    "transpose_": (lambda y: y.transpose_(2, 3).transpose(2, 3), lambda y: y),
    "squeeze_": (lambda y: after(lambda z: z.squeeze_(0), y.unsqueeze(0)), lambda y: y),
    "views": (lambda y: y.view(len(y), -1).unflatten(1, (4, -1)).permute(0, 2, 1).transpose(1, 2).reshape_as(y), lambda y: y),
    "split": (lambda y: torch.cat(y.split([1, 3], 1), 1), lambda y: y),
    "unbind and stack": (lambda y: torch.stack(y.unbind(1), 1), lambda y: y),
    "rsub": (lambda y: 1 - y, lambda y: -y + 1),
    "operators": (lambda y: torch.sub(torch.mul(y, 3.0), y), lambda y: 2 * y),
}  # fmt: skip


class Spelt(nn.Module):
    def __init__(self, spelling) -> None:
        super().__init__()
        self.spelling = spelling
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.spelling(self.first(x))).mean((2, 3)))


@pytest.mark.parametrize("composite", ["lrp0", "epsilon-gamma-box"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_writing_in_place_is_the_same_as_not(name, composite):
    written, plain = (seeded(lambda s=s: Spelt(s)) for s in SPELLINGS[name])
    x = images(2, size=(7, 6)).double()
    one, other = (lrp(net, x, composite, [1, 2], ledger=True) for net in (written, plain))
    torch.testing.assert_close(one.scores, written(x).gather(1, one.targets).detach())
    torch.testing.assert_close(one.scores, other.scores)
    torch.testing.assert_close(one.raw, other.raw)
    torch.testing.assert_close(one.residual, other.residual)
    torch.testing.assert_close(one.raw.flatten(2).sum(2) + one.residual, one.scores)


class Reused(nn.Module):
    """One convolution and one ReLU, used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.relu, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(True),
            nn.Linear(4, 5),
        )
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        for _ in range(2):
            x = self.relu(self.conv(x))
        return self.head(x.mean((2, 3)))


class Unrolled(Reused):
    """The same with a module for each use."""

    def __init__(self) -> None:
        super().__init__()
        self.again = copy.deepcopy(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.stem.weight, self.stem.bias))
        x = torch.relu(self.again(self.conv(x).clamp(min=0)))
        return F.linear(x.mean((2, 3)), self.head.weight, self.head.bias)


@every_composite
def test_reused_modules_and_functional_calls(composite):
    x = images(2, size=(7, 6)).double()
    one, other = (lrp(seeded(kind), x, composite, [4, 0]) for kind in (Reused, Unrolled))
    torch.testing.assert_close(one.raw, other.raw)
    torch.testing.assert_close(one.residual, other.residual)


class Shortcut(nn.Module):
    """A convolution that is read with its batch norm and, around the block, without."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((self.norm(y).relu() + y.tanh()).mean((2, 3)))


@every_composite
def test_a_layer_read_with_and_without_its_batch_norm(composite):
    x = images(2, size=(7, 6)).double()
    ex = lrp(seeded(Shortcut), x, composite, [1, 2], ledger=True)
    torch.testing.assert_close(ex.raw.flatten(2).sum(2) + ex.residual, ex.scores)
    assert {row["op"] for row in ex.ledger if row["place"] == "conv"} == {"conv2d", "conv2d+batch_norm"}


# --- what nothing may pass ----------------------------------------------------------------------------------------


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.sin(x) * 2.0 + 1.0


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 3 + 1

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * 3


class OwnView(torch.autograd.Function):
    """A view of its input, whose backward lies."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * 7


def past_the_dispatch(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return x + 1


UNKNOWN = {
    "fft2": lambda y: torch.fft.fft2(y).real,
    "inv": lambda y: torch.linalg.inv(y[..., :4, :4]),
    "cumprod": lambda y: y.cumprod(1),
    "DifferentiableGraph|Sin|Mul|Add": scripted,
    "Own": Own.apply,
    "OwnView": OwnView.apply,
    "Add": past_the_dispatch,
    "vmap|Add|Mul": lambda y: torch.vmap(lambda t: t * 2 + 1)(y),
}


@pytest.mark.parametrize("place", ["middle", "end"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_an_operation_without_a_rule_is_named_with_its_place(name, place):
    class Inner(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return self.work(UNKNOWN[name](y))

        def work(self, y: Tensor) -> Tensor:
            return y.relu() if place == "middle" else y

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.inner = nn.Conv2d(3, 5, 3), Inner()

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(self.conv(x))
            return y.mean((2, 3)) if place == "middle" else y[:, :, 0, 0]

    with pytest.raises(hp.MethodError, match=rf"no rule for the operation '({name})\w*' in module 'inner'") as caught:
        hp.explain(seeded(Net), images(2, size=(7, 6)), "lrp")
    assert str(caught.value).count("\n") == 0 and "integrated-gradients" in str(caught.value)


def test_scores_that_cut_the_graph():
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().mean((2, 3))

    with pytest.raises(hp.MethodError, match="do not depend differentiably"):
        hp.explain(Cut().eval(), images(1), "lrp")


def test_a_weight_that_still_asks_for_gradients_is_a_weight():
    loose = torch.full((4, 1, 1), 0.7, dtype=torch.float64)
    x = images(2, size=(7, 6)).double()
    wanted = lrp(seeded(lambda: Spelt(lambda y: y * loose)), x, "attnlrp", 1)
    asking = loose.clone().requires_grad_()
    found = lrp(seeded(lambda: Spelt(lambda y: y * asking)), x, "attnlrp", 1)
    torch.testing.assert_close(found.raw, wanted.raw)
    assert asking.requires_grad and asking.grad is None
