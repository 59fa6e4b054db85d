"""Whole networks against relevance that is worked out layer by layer, and what may not change it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import heatproof as hp
from heatproof.lrp import Composite, Epsilon, Flat, Gamma, ZBox, Zero, ZPlus
from relevance import Naive, Value
from tiny import images, seeded

EPSILON, GAMMA = 0.02, 0.3
LOW, HIGH = -4.0, 4.5
COMPOSITES = ("lrp0", "epsilon", "epsilon-gamma-box", "epsilon-plus-flat", "attnlrp")
every_composite = pytest.mark.parametrize("composite", COMPOSITES)


def naive(composite: str) -> Naive:
    """The composites once more, in words of their own."""
    weak, boost = Epsilon(EPSILON), Gamma(GAMMA)

    def rule(kind: str, pixels: bool, top: bool):
        if composite == "lrp0":
            return Zero()
        if composite == "epsilon-gamma-box":
            return ZBox() if pixels else Zero() if top else boost if kind == "convolution" else weak
        if composite == "epsilon-plus-flat":
            return Flat() if pixels else ZPlus() if kind == "convolution" else weak
        return weak

    edge = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    return Naive(rule, composite == "attnlrp", (LOW * edge, HIGH * edge))


def ones_of(conv: nn.Conv2d) -> nn.Conv2d:
    same = copy.deepcopy(conv)
    same.weight.data.fill_(1)
    same.bias = None
    return same


def settle(net: nn.Module) -> nn.Module:
    """Batch norms that do something, in double precision."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.2)
            nn.init.normal_(m.running_mean, 0, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return net.double()


class Vgg(nn.Module):
    size = (12, 8)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(inplace=True),
            nn.MaxPool2d(2), nn.Conv2d(5, 4, 3), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d((2, 1))
        self.classifier = nn.Sequential(nn.Linear(8, 7), nn.ReLU(True), nn.Dropout(), nn.Linear(7, 5))
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))

    def naive(self, n: Naive, x: Value) -> Value:
        f, c = self.features, self.classifier
        a = n.activation(n.affine(x, f[0], pixels=True, ones=ones_of(f[0])), torch.relu)
        a = n.max_pool(n.activation(n.affine(a, f[2]), torch.relu), 2)
        a = n.linear_map(n.activation(n.affine(a, f[5]), torch.relu), self.pool)
        a = n.view(a, torch.flatten, lambda r: r.view(4, 2, 1))
        return n.affine(n.activation(n.affine(a, c[0], "linear"), torch.relu), c[3], "linear", top=True)


class Residual(nn.Module):
    size = (9, 7)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, 2, bias=False), nn.BatchNorm2d(4)
        self.a, self.an = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.bn = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6)
        self.short, self.sn = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(6, 5)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.bn(self.b(self.relu(self.an(self.a(x)))))
        y += self.sn(self.short(x))
        return self.fc(self.relu(y).mean((2, 3)))

    def naive(self, n: Naive, x: Value) -> Value:
        x = n.affine(x, lambda t: self.norm(self.stem(t)), pixels=True, ones=ones_of(self.stem))
        x = n.activation(x, torch.relu)
        y = n.activation(n.affine(x, lambda t: self.an(self.a(t))), torch.relu)
        y = n.affine(y, lambda t: self.bn(self.b(t)))
        y = n.activation(n.add(y, n.affine(x, lambda t: self.sn(self.short(t)))), torch.relu)
        return n.affine(n.linear_map(y, lambda t: t.mean((2, 3))), self.fc, "linear", top=True)


class Inception(nn.Module):
    size = (8, 6)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one, self.three = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 2, 3, padding=1)
        self.fc = nn.Linear(9, 5)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        pooled = F.avg_pool2d(x, 3, 1, 1)
        return self.fc(torch.cat([self.one(x).relu(), F.gelu(self.three(x)), pooled], 1).mean((2, 3)))

    def naive(self, n: Naive, x: Value) -> Value:
        x = n.activation(n.affine(x, self.stem, pixels=True, ones=ones_of(self.stem)), F.silu)
        parts = [n.activation(n.affine(x, self.one), torch.relu), n.activation(n.affine(x, self.three), F.gelu)]
        parts.append(n.linear_map(x, lambda t: F.avg_pool2d(t, 3, 1, 1)))
        return n.affine(n.linear_map(n.cat(parts), lambda t: t.mean((2, 3))), self.fc, "linear", top=True)


class Gated(nn.Module):
    size = (8, 6)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.fc = nn.Linear(4, 5)
        settle(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        gate = self.excite(self.squeeze(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        return self.fc((x * gate).mean((2, 3)))

    def naive(self, n: Naive, x: Value) -> Value:
        x = n.activation(n.affine(x, self.stem, pixels=True, ones=ones_of(self.stem)), F.hardswish)
        gate = n.linear_map(x, lambda t: t.mean((2, 3), keepdim=True))
        gate = n.affine(n.activation(n.affine(gate, self.squeeze), torch.relu), self.excite)
        x = n.gate(x, n.activation(gate, torch.sigmoid))
        return n.affine(n.linear_map(x, lambda t: t.mean((2, 3))), self.fc, "linear", top=True)


class ViT(nn.Module):
    """One block, a class token, a 2×3 grid; attention in one of three spellings."""

    size = (8, 12)

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.attention, self.heads, self.width = attention, 2, 6
        self.patch = nn.Conv2d(3, 6, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 7, 6) * 0.3)
        self.first, self.second, self.last = (nn.LayerNorm(6) for _ in range(3))
        for norm in (self.first, self.second, self.last):
            nn.init.normal_(norm.weight, 1, 0.3)
            nn.init.normal_(norm.bias, 0, 0.3)
        if attention in ("multihead", "multihead fused"):
            self.mix = nn.MultiheadAttention(6, 2, batch_first=True)
            nn.init.normal_(self.mix.in_proj_bias, 0, 0.3)
        else:
            self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.up, self.down, self.head = nn.Linear(6, 11), nn.Linear(11, 6), nn.Linear(6, 5)
        settle(self)

    def mixed(self, x: Tensor) -> Tensor:
        if self.attention.startswith("multihead"):
            return self.mix(x, x, x, need_weights=self.attention == "multihead")[0]
        batch, count, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, 2, 3).permute(2, 0, 3, 1, 4)
        if self.attention == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.attention == "einsum":
            y = torch.einsum("bhij,bhjd->bhid", (torch.einsum("bhid,bhjd->bhij", q, k) / 3**0.5).softmax(-1), v)
        else:
            y = ((q @ k.transpose(-2, -1)) * 3**-0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, count, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        x = x + self.mixed(self.first(x))
        x = x + self.down(F.gelu(self.up(self.second(x))))
        return self.head(self.last(x)[:, 0])

    def naive(self, n: Naive, x: Value) -> Value:
        x = n.affine(x, self.patch, pixels=True, ones=ones_of(self.patch))
        x = n.view(x, lambda t: t.flatten(1).T, lambda r: r.T.reshape(6, 2, 3))
        x = n.plus(n.cat([Value(self.token[0].detach()), x]), self.position[0].detach())
        y = n.layer_norm(x, self.first)
        if self.attention.startswith("multihead"):
            qkv, out = nn.Linear(6, 18).double(), self.mix.out_proj
            qkv.weight.data.copy_(self.mix.in_proj_weight)
            qkv.bias.data.copy_(self.mix.in_proj_bias)
        else:
            qkv, out = self.qkv, self.out
        y, mixed = n.tokenwise(y, qkv), []
        for head in (0, 3):
            q, k, v = (n.columns(y, start + head, start + head + 3) for start in (0, 6, 12))
            mixed.append(n.weighted_sum(n.softmax(n.logits(q, k, 3**-0.5)), v))
        x = n.add(x, n.tokenwise(n.cat(mixed, 1), out))
        y = n.tokenwise(n.activation(n.tokenwise(n.layer_norm(x, self.second), self.up), F.gelu), self.down)
        return n.affine(n.token(n.layer_norm(n.add(x, y), self.last), 0), self.head, "linear", top=True)


NETWORKS = {
    "vgg": Vgg,
    "residual": Residual,
    "inception": Inception,
    "gated": Gated,
    **{f"vit, {kind}": lambda kind=kind: ViT(kind) for kind in ("by hand", "einsum", "fused", "multihead", "multihead fused")},
}


def network(name: str, seed: int = 0) -> nn.Module:
    return seeded(NETWORKS[name], seed)


def lrp(net: nn.Module, x: Tensor, composite, target=None, **options):
    options = {"epsilon": EPSILON, "gamma": GAMMA, "low": LOW, "high": HIGH} | options
    return hp.explain(net, x, "lrp", target=target, composite=composite, **options)


@every_composite
@pytest.mark.parametrize("name", NETWORKS)
def test_against_relevance_worked_out_layer_by_layer(name, composite):
    net = network(name)
    x = images(2, size=net.size).double()
    ex = lrp(net, x, composite, target=[3, 1])
    for i, target in enumerate((3, 1)):
        pixels = Value(x[i])
        top = net.naive(naive(composite), pixels)
        torch.testing.assert_close(top.x, net(x)[i].detach())
        top.propagate(torch.zeros(5, dtype=torch.float64).index_fill(0, torch.tensor(target), 1) * top.x)
        torch.testing.assert_close(ex.raw[i, 0], pixels.relevance, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ex.raw.flatten(2).sum(2) + ex.residual, ex.scores, rtol=1e-9, atol=1e-9)


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


# --- what does not matter -----------------------------------------------------------------------------------------


@every_composite
@pytest.mark.parametrize("name", ["residual", "gated", "vit, by hand", "vit, multihead", "vit, fused"])
def test_batches_and_targets_are_single_images_and_single_targets(name, composite):
    net = network(name)
    x = images(3, size=net.size).double()
    together = lrp(net, x, composite, [[0, 3], [2, 1], [4, 2]], ledger=True)
    for i in range(3):
        for t in range(2):
            alone = lrp(net, x[i : i + 1], composite, int(together.targets[i, t]), ledger=True)
            torch.testing.assert_close(together.raw[i, t], alone.raw[0, 0])
            torch.testing.assert_close(together.residual[i, t], alone.residual[0, 0])
            rows = [row for row in together.ledger if (row["image"], row["target"]) == (i, t)]
            assert [(row["place"], row["op"]) for row in rows] == [(row["place"], row["op"]) for row in alone.ledger]
            for column in ("relevance_in", "relevance_out", "bias", "epsilon", "norm", "softmax"):
                ours, theirs = (torch.tensor([row[column] for row in some]) for some in (rows, alone.ledger))
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@every_composite
def test_swin_windows_share_the_batch_axis_and_still_do_not_mix_images(composite):
    models = pytest.importorskip("torchvision").models
    build = lambda: models.SwinTransformer([2, 2], 6, [2], [3], [3, 3], num_classes=4)  # noqa: E731
    net, x = seeded(build).double(), images(2, size=(13, 18)).double()
    together = lrp(net, x, composite, [1, 2])
    for i in range(2):
        alone = lrp(net, x[i : i + 1], composite, i + 1)
        torch.testing.assert_close(together.raw[i], alone.raw[0])
        torch.testing.assert_close(together.residual[i], alone.residual[0])


@every_composite
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_splitting_a_convolution_from_its_batch_norm_changes_nothing(composite, seed):
    net = network("residual", seed)
    whole = copy.deepcopy(net)
    for conv, norm in (("stem", "norm"), ("a", "an"), ("b", "bn"), ("short", "sn")):
        setattr(whole, conv, fuse_conv_bn_eval(getattr(whole, conv), getattr(whole, norm)))
        setattr(whole, norm, nn.Identity())
    x = images(2, seed, net.size).double()
    one, other = (lrp(some, x, composite, [seed % 5, 0]) for some in (net, whole))
    torch.testing.assert_close(one.raw, other.raw, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(one.residual, other.residual, rtol=1e-6, atol=1e-8)


def without_biases(net: nn.Module) -> nn.Module:
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if name.endswith(("bias", "running_mean")) or name in ("token", "position"):
            tensor.data.zero_()
    return net


@pytest.mark.parametrize("composite", ["lrp0", "epsilon-plus-flat", "epsilon-gamma-box"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 10))
def test_positive_homogeneity(composite, seed, factor):
    """Without biases a ReLU network is homogeneous, and so is its relevance: `R(λx) = λ R(x)`, the box grown along."""
    net = without_biases(network("vgg", seed))
    x = images(1, seed, net.size).double()
    one = lrp(net, x, composite, 2, epsilon=0.0)
    other = lrp(net, factor * x, composite, 2, epsilon=0.0, low=factor * LOW, high=factor * HIGH)
    torch.testing.assert_close(other.raw, factor * one.raw, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("composite", ["lrp0", "epsilon", "attnlrp", Composite(Gamma(0.25)), Composite(ZPlus(), Epsilon(0.1))])
@settings(max_examples=8, deadline=None)
@given(name=st.sampled_from(sorted(NETWORKS)), seed=st.integers(0, 10_000))
def test_nothing_goes_to_a_pixel_that_is_zero(composite, name, seed):
    net = network(name, seed)
    x = images(1, seed, net.size).double()
    off = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    x[off] = 0
    raw = lrp(net, x, composite, 1).raw[:, 0]
    assert (raw[off] == 0).all() and (raw[~off] != 0).any()


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(sorted(NETWORKS)), composite=st.sampled_from(COMPOSITES), seed=st.integers(0, 10_000))
def test_conservation_whatever_the_weights(name, composite, seed):
    net = network(name, seed)
    ex = lrp(net, images(2, seed, net.size).double(), composite, [[0, 1, 2]] * 2)
    size = ex.raw.abs().flatten(2).sum(2) + ex.residual.abs() + ex.scores.abs()
    assert ((ex.raw.flatten(2).sum(2) + ex.residual - ex.scores).abs() <= 1e-10 * size).all()


@pytest.mark.parametrize("name", ["vgg", "residual"])
def test_on_relu_networks_lrp_0_is_gradient_times_input(name):
    net = network(name)
    x = images(2, size=net.size).double()
    wanted = hp.explain(net, x, "gradient-x-input", target=[[1, 4], [0, 2]])
    torch.testing.assert_close(lrp(net, x, "lrp0", [[1, 4], [0, 2]]).raw, wanted.raw)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shrinking_epsilon_ends_in_lrp_0(name):
    net = network(name)
    x = images(1, size=net.size).double()
    wanted = lrp(net, x, "lrp0", 1).raw
    gaps = [float((lrp(net, x, "epsilon", 1, epsilon=e).raw - wanted).abs().max()) for e in (1e-2, 1e-4, 1e-6, 1e-9)]
    assert gaps[-1] < 1e-5 * float(wanted.abs().max()) and gaps[-1] < gaps[0]
    plain = Composite(Gamma(0.0), Gamma(0.0))
    torch.testing.assert_close(lrp(net, x, plain, 1).raw, wanted, rtol=1e-5, atol=1e-7)


# --- relevance anywhere -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layer"), [("vgg", "features.2"), ("vgg", "features.4"), ("inception", "stem"),
                                             ("vit, fused", "second")])  # fmt: skip
@every_composite
def test_relevance_of_a_layer(name, layer, composite):
    net = network(name)
    x = images(2, size=net.size).double()
    kept = {}
    handle = net.get_submodule(layer).register_forward_hook(lambda _m, _i, y: kept.update(shape=y.shape))
    net(x)
    handle.remove()
    ex = lrp(net, x, composite, [[0, 1], [3, 2]], layer=layer, ledger=True)
    assert ex.raw.shape == (2, 2, *kept["shape"][1:]) and ex.maps.shape == (2, 2, *net.size) and ex.layer == (layer,)
    torch.testing.assert_close(ex.raw.flatten(2).sum(2) + ex.residual, ex.scores)
    bypass = sum(row.get("bypass", 0) for row in ex.ledger if (row["image"], row["target"]) == (1, 0))
    assert (abs(bypass) > 1e-9) == name.startswith("vit")  # a transformer's residual stream runs around its norms


def test_relevance_of_a_layer_is_what_arrives_there():
    """On a chain, the naive relevance of the value itself."""
    net = network("vgg")
    x = images(1, size=net.size).double()
    ex = lrp(net, x, "epsilon-gamma-box", 2, layer="features.4")
    n, f, c = naive("epsilon-gamma-box"), net.features, net.classifier
    a = n.activation(n.affine(Value(x[0]), f[0], pixels=True, ones=ones_of(f[0])), torch.relu)
    pooled = n.max_pool(n.activation(n.affine(a, f[2]), torch.relu), 2)
    a = n.linear_map(n.activation(n.affine(pooled, f[5]), torch.relu), net.pool)
    a = n.view(a, torch.flatten, lambda r: r.view(4, 2, 1))
    top = n.affine(n.activation(n.affine(a, c[0], "linear"), torch.relu), c[3], "linear", top=True)
    top.propagate(torch.zeros(5, dtype=torch.float64).index_fill(0, torch.tensor(2), 1) * top.x)
    torch.testing.assert_close(ex.raw[0, 0], pooled.relevance, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("composite", ["lrp0", "epsilon-plus-flat"])
def test_conditional_relevance_adds_up_over_the_channels(composite):
    net = network("vgg")
    x = images(2, size=net.size).double()
    whole = lrp(net, x, composite, [1, 0])
    parts = [lrp(net, x, composite, [1, 0], through={"features.2": channels}) for channels in ([0], [1, 4], [2, 3])]
    torch.testing.assert_close(sum(part.raw for part in parts), whole.raw)
    for part in parts:
        torch.testing.assert_close(part.raw.flatten(2).sum(2) + part.residual, part.scores)
    blind = lrp(net, x, composite, [1, 0], through={"features.2": []})
    assert not blind.raw.any()
    with pytest.raises(hp.MethodError, match="which has 5"):
        lrp(net, x, composite, 1, through={"features.2": [5]})
    with pytest.raises(hp.MethodError, match="does not have"):
        lrp(net, x, composite, 1, through={"nowhere": [0]})


@pytest.mark.parametrize("composite", ["lrp0", "epsilon-plus-flat", "attnlrp"])
def test_contrast_is_a_difference_of_maps_where_rules_are_linear_in_relevance(composite):
    net = network("residual")
    x = images(2, size=net.size).double()
    each = lrp(net, x, composite, [[0, 1, 2, 3, 4]] * 2)
    against = lrp(net, x, composite, 3, contrast=1)
    torch.testing.assert_close(against.raw[:, 0], each.raw[:, 3] - each.raw[:, 1])
    rest = lrp(net, x, composite, 3, contrast="rest", ledger=True)
    torch.testing.assert_close(rest.raw[:, 0], each.raw[:, 3] - each.raw[:, [0, 1, 2, 4]].mean(1))
    for ex in (against, rest):
        torch.testing.assert_close(ex.raw.flatten(2).sum(2) + ex.residual, ex.scores)
    for wrong in (5, -1, True, "others"):
        with pytest.raises(hp.InputError, match="contrast="):
            lrp(net, x, composite, 3, contrast=wrong)


def test_bounds_and_where_they_come_from():
    net = network("vgg")
    x = images(2, size=net.size).double()
    own = hp.explain(net, x, "lrp", target=0)  # a plain module: nobody said how images enter it
    assert own.options["low"] == own.options["high"] == "each image's own range"

    class Normalised:
        mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.5)

        def __call__(self, image):
            return torch.zeros(3, *net.size)

    known = hp.explain(hp.wrap(net, preprocess=Normalised()), x, "lrp", target=0)
    assert known.options["low"] == "[-2.0, -2.0, -1.0] (preprocessing)"
    assert known.options["high"] == "[2.0, 2.0, 1.0] (preprocessing)" and not torch.allclose(known.raw, own.raw)
    wide = hp.explain(net, x, "lrp", target=0, low=-9.0, high=torch.tensor([7.0, 8.0, 9.0]).view(3, 1, 1))
    assert wide.options["low"] == "[-9.0, -9.0, -9.0] (given)" and wide.options["high"] == "[7.0, 8.0, 9.0] (given)"
    assert not torch.allclose(own.raw, wide.raw)
    for i in range(2):
        low, high = x[i].amin((1, 2)).view(3, 1, 1), x[i].amax((1, 2)).view(3, 1, 1)
        by_hand = hp.explain(net, x[i], "lrp", target=0, low=low, high=high)
        torch.testing.assert_close(by_hand.raw[0], own.raw[i])
    with pytest.raises(hp.InputError, match="low= does not broadcast"):
        hp.explain(net, x, "lrp", target=0, low=torch.zeros(4))


class Normalised(nn.Module):
    """A network that normalises its input itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.size = net, net.size
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.3], dtype=torch.float64).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.25], dtype=torch.float64).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


@pytest.mark.parametrize("composite", ["epsilon-gamma-box", "epsilon-plus-flat", Composite(pixels=ZBox())])
def test_normalising_inside_the_network_moves_the_box_along(composite):
    net = network("vgg")
    outer = Normalised(net)
    x = torch.rand(2, 3, *net.size, generator=torch.Generator().manual_seed(2)).double()
    inside = lrp(outer, x, composite, 1, low=0.0, high=1.0, ledger=True)
    outside = lrp(net, (x - outer.mean) / outer.std, composite, 1, low=-outer.mean / outer.std, high=(1 - outer.mean) / outer.std)
    torch.testing.assert_close(inside.raw, outside.raw)
    torch.testing.assert_close(inside.residual, outside.residual)
