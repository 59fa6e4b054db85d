"""Small networks that know how to work out their own relevance, layer by layer, and how the tests explain them."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.lrp import Epsilon, Flat, Gamma, ZBox, Zero, ZPlus
from relevance import Naive, Value
from tiny import seeded

EPSILON, GAMMA = 0.02, 0.3
LOW, HIGH = -4.0, 4.5
COMPOSITES = ("lrp0", "epsilon", "epsilon-gamma-box", "epsilon-plus-flat", "attnlrp")
EXACT = ("lrp0", "epsilon-gamma-box", "attnlrp")
"""Checked in double precision."""

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


def missing(ex: hp.Explanation) -> float:
    """The largest part of a score that is neither in the map nor in the residual."""
    total = ex.raw.double().flatten(2).sum(2) + ex.residual.double()
    return float(((total - ex.scores.double()).abs() / ex.scores.double().abs()).max())
