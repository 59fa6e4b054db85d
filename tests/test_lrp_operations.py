"""Rarer operations, each against a plainer spelling of the same, and what has to be said of the others."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from lrp_networks import COMPOSITES, every_composite, lrp, missing
from test_lrp_writes import Spelt
from tiny import images, seeded

OTHER = torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4)
FOUR = torch.linspace(0.2, 1.1, 4, dtype=torch.float64)
MEAN, VARIANCE, SCALE, SHIFT = (torch.linspace(a, b, 4, dtype=torch.float64) for a, b in ((-1, 1), (1, 2), (0.5, 2), (1, -1)))
CUBE = torch.linspace(-1, 1, 64, dtype=torch.float64).view(4, 4, 4)


def tokens(y: Tensor) -> Tensor:
    return y.flatten(2).transpose(1, 2)


def image(t: Tensor, like: Tensor) -> Tensor:
    return t.transpose(1, 2).reshape_as(like)


def biased_attention(y: Tensor, bias, fused: bool) -> Tensor:
    t = tokens(y)
    added = bias(t @ t.transpose(1, 2)).expand(len(y), t.shape[1], t.shape[1])
    if fused:
        return image(F.scaled_dot_product_attention(t, t, t, attn_mask=added), y)
    return image((t @ t.transpose(1, 2) / 2 + added).softmax(-1) @ t, y)


def causal(y: Tensor) -> Tensor:
    t = tokens(y)
    above = torch.ones(t.shape[1], t.shape[1], dtype=torch.bool).triu(1)
    return image((t @ t.transpose(1, 2) / 2).masked_fill(above, float("-inf")).softmax(-1) @ t, y)


def windows(y: Tensor) -> Tensor:
    """A convolution over parts of the image that lie where the batch should."""
    parts = y[:, :, :4, :4].unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    parts = F.conv2d(parts, OTHER[:, :, None, None], FOUR).relu()
    return parts.unflatten(0, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def gridded(y: Tensor, moving: bool) -> Tensor:
    """A spatial transformer."""
    turned = y.mean((2, 3))[:, :2, None] * torch.ones(1, 2, 3).to(y) + torch.eye(2, 3).to(y)
    grid = F.affine_grid(turned if moving else turned.detach(), list(y.shape), align_corners=False)
    return F.grid_sample(y, grid, align_corners=False)


def cosine(y: Tensor) -> Tensor:
    z = y.roll(1, 1)
    lengths = y.detach().norm(dim=1, keepdim=True) * z.detach().norm(dim=1, keepdim=True)
    return y + (y * z).sum(1, keepdim=True) / lengths


def turned(y: Tensor) -> Tensor:
    """Rotary positions in complex numbers."""
    pairs = torch.view_as_complex(tokens(y).unflatten(2, (2, 2)).contiguous())
    return image(torch.view_as_real(pairs * torch.polar(FOUR[:2], FOUR[2:])).flatten(2), y)


def turned_by_hand(y: Tensor) -> Tensor:
    a, b = tokens(y).unflatten(2, (2, 2)).unbind(-1)
    c, s = FOUR[:2] * FOUR[2:].cos(), FOUR[:2] * FOUR[2:].sin()
    return image(torch.stack([a * c - b * s, a * s + b * c], -1).flatten(2), y)


def only_the_largest(y: Tensor) -> Tensor:
    """All but the largest value of each 2 × 2 window set to 0."""
    largest = F.max_pool2d(y, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return torch.where(y == largest, y, 0.0)


def written_into(y: Tensor) -> Tensor:
    t = F.linear(tokens(y), OTHER)  # a view, on some paths
    t.add_(FOUR)
    return image(t, y)


SPELLINGS = {
    "maximum with a constant": (
        lambda y: torch.maximum(y, FOUR.view(4, 1, 1)),
        lambda y: torch.where(y > FOUR.view(4, 1, 1), y, FOUR.view(4, 1, 1)),
    ),
    "max with a constant": (lambda y: torch.max(y, torch.full_like(y, 0.2)), lambda y: torch.where(y > 0.2, y, 0.2)),
    "min, by keyword": (lambda y: y.min(other=torch.full_like(y, 0.2)), lambda y: torch.where(y < 0.2, y, 0.2)),
    "fmax": (lambda y: torch.fmax(y, torch.full_like(y, 0.2)), lambda y: torch.where(y > 0.2, y, 0.2)),
    "clamp by tensors": (
        lambda y: torch.clamp(y, torch.full_like(y, -0.1), torch.full_like(y, 0.3)),
        lambda y: y.clamp(-0.1, 0.3),
    ),
    "clamp between positive tensors": (
        lambda y: torch.clamp(y, torch.full_like(y, 0.1), torch.full_like(y, 0.3)),
        lambda y: y.clamp(0.1, 0.3),
    ),
    "threshold": (lambda y: F.threshold(y, 0.0, 0.0), lambda y: y.relu()),
    "a spatial transformer": (lambda y: gridded(y, True), lambda y: gridded(y, False)),
    "attention with a bias that moves": (
        lambda y: biased_attention(y, lambda s: s * 0.1, True),
        lambda y: biased_attention(y, lambda s: s.detach() * 0.1, False),
    ),
    "attention with a bias that does not": (
        lambda y: biased_attention(y, lambda s: OTHER[0, 0], True),
        lambda y: biased_attention(y, lambda s: OTHER[0, 0], False),
    ),
    "attention with a mask of -inf": (
        causal,
        lambda y: image(F.scaled_dot_product_attention(*3 * [tokens(y)], is_causal=True), y),
    ),
    "a padding of -inf": (
        lambda y: F.max_pool2d(F.pad(y, (1, 1, 1, 1), value=float("-inf")), 3),
        lambda y: F.max_pool2d(y, 3, padding=1),
    ),
    "windows as a batch": (windows, lambda y: F.conv2d(y[:, :, :4, :4], OTHER[:, :, None, None], FOUR).relu()),
    "torch.batch_norm": (
        lambda y: torch.batch_norm(y, SCALE, SHIFT, MEAN, VARIANCE, False, 0.1, 1e-5, True),
        lambda y: F.batch_norm(y, MEAN, VARIANCE, SCALE, SHIFT),
    ),
    "aten.batch_norm": (
        lambda y: torch.ops.aten.batch_norm.default(y, SCALE, SHIFT, MEAN, VARIANCE, False, 0.1, 1e-5, True),
        lambda y: F.batch_norm(y, MEAN, VARIANCE, SCALE, SHIFT),
    ),
    "torch.instance_norm": (
        lambda y: torch.instance_norm(y, SCALE, SHIFT, None, None, True, 0.1, 1e-5, True),
        lambda y: F.instance_norm(y, weight=SCALE, bias=SHIFT),
    ),
    "aten.relu": (lambda y: torch.ops.aten.relu.default(y), lambda y: y.relu()),
    "add, by keyword": (lambda y: torch.add(input=y, other=FOUR.view(4, 1, 1)), lambda y: y + FOUR.view(4, 1, 1)),
    "softmax, by keyword": (lambda y: y * torch.softmax(input=y, dim=1), lambda y: y * y.softmax(1)),
    "matmul, by keyword": (
        lambda y: torch.matmul(input=tokens(y), other=OTHER).transpose(1, 2).reshape_as(y),
        lambda y: image(tokens(y) @ OTHER, y),
    ),
    "tensordot": (lambda y: image(torch.tensordot(tokens(y), OTHER, dims=([2], [0])), y), lambda y: image(tokens(y) @ OTHER, y)),
    "inner": (lambda y: image(torch.inner(tokens(y), OTHER), y), lambda y: image(tokens(y) @ OTHER.T, y)),
    "var_mean": (
        lambda y: (lambda v, m: (y - m) / (v + 0.1).sqrt())(*torch.var_mean(y, 1, keepdim=True)),
        lambda y: (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True) + 0.1).sqrt(),
    ),
    "std_mean": (
        lambda y: (lambda s, m: (y - m) / (s + 0.1))(*torch.std_mean(y, 1, keepdim=True)),
        lambda y: (y - y.mean(1, keepdim=True)) / (y.std(1, keepdim=True) + 0.1),
    ),
    "a negative power": (
        lambda y: y * (y.square().mean(1, keepdim=True) + 0.1) ** -0.5,
        lambda y: y * (y.square().mean(1, keepdim=True) + 0.1).rsqrt(),
    ),
    "division that rounds": (lambda y: y + torch.div(y, 0.1, rounding_mode="floor"), lambda y: y + (y / 0.1).detach().floor()),
    "a linear layer with one output": (
        lambda y: F.linear(tokens(y), FOUR)[:, None].expand(-1, 4, -1).reshape_as(y),
        lambda y: (F.linear(tokens(y), FOUR[None])).transpose(1, 2).expand(-1, 4, -1).reshape_as(y),
    ),
    "bilinear": (
        lambda y: image(F.bilinear(tokens(y), tokens(y), CUBE, FOUR), y),
        lambda y: image(torch.einsum("bni,oij,bnj->bno", tokens(y), CUBE, tokens(y)) + FOUR, y),
    ),
    "cosine_similarity": (lambda y: y + F.cosine_similarity(y, y.roll(1, 1), dim=1)[:, None], cosine),
    "complex numbers": (turned, turned_by_hand),
    "index_put": (
        lambda y: y.index_put((torch.arange(len(y)), torch.tensor(1)), y[:, 0]),
        lambda y: torch.cat([y[:, :1], y[:, :1], y[:, 2:]], 1),
    ),
    "scatter_reduce": (
        lambda y: torch.zeros_like(y).scatter_reduce(1, torch.arange(4).flip(0).view(1, 4, 1, 1).expand_as(y), y, "sum"),
        lambda y: y.flip(1),
    ),
    "max_unpool2d": (
        lambda y: F.max_unpool2d(*F.max_pool2d(y[:, :, :4, :4], 2, return_indices=True), 2),
        lambda y: only_the_largest(y[:, :, :4, :4]),
    ),
    "cummax": (lambda y: y.cummax(2)[0], lambda y: torch.stack([y[:, :, : n + 1].amax(2) for n in range(y.shape[2])], 2)),
    "take": (lambda y: y.take(torch.arange(y.numel()).view_as(y).flip(1)), lambda y: y.flip(1)),
    "lp_pool2d": (lambda y: F.lp_pool2d(y.relu(), 2, 2), lambda y: F.avg_pool2d(y.relu().square(), 2).mul(4).sqrt()),
    "writing into the output of a layer": (written_into, lambda y: image(F.linear(tokens(y), OTHER) + FOUR, y)),
}


@pytest.mark.parametrize("composite", ["lrp0", "epsilon-gamma-box", "attnlrp"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_an_operation_is_the_same_as_what_it_stands_for(name, composite):
    rare, plain = (seeded(lambda s=s: Spelt(s)) for s in SPELLINGS[name])
    x = images(2, size=(7, 8)).double()
    one, other = (lrp(net, x, composite, [1, 2], ledger=True) for net in (rare, plain))
    torch.testing.assert_close(one.scores, rare(x).gather(1, one.targets).detach())
    torch.testing.assert_close(one.scores, other.scores)
    assert one.residual.shape == one.scores.shape and missing(one) < 1e-8
    if not (composite == "attnlrp" and name.startswith("attention")):
        torch.testing.assert_close(one.raw, other.raw, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(one.residual, other.residual, rtol=1e-6, atol=1e-9)


def test_attention_with_a_bias_that_moves_hands_relevance_down_to_it():
    fused, by_hand = (seeded(lambda f=f: Spelt(lambda y: biased_attention(y, lambda s: s * 0.1, f))) for f in (True, False))
    x = images(2, size=(7, 8)).double()
    one, other = (lrp(net, x, "attnlrp", [1, 2]) for net in (fused, by_hand))
    # by hand the bias takes its share of the sum of logits, fused likewise
    torch.testing.assert_close(one.raw, other.raw, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(one.residual, other.residual, rtol=1e-6, atol=1e-9)


class Qkv(nn.Module):
    """Queries, keys and values before the batch, which here has as many images as there are of them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 18, bias=False), nn.Linear(6, 5)
        self.bias = nn.Parameter(torch.randn(3, 1, 2, 1, 3))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        t = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(t).unflatten(2, (3, 2, 3)).permute(2, 0, 3, 1, 4) + self.bias
        return self.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))


@every_composite
def test_as_many_images_as_queries_keys_and_values(composite):
    net, x = seeded(Qkv), images(3, size=(8, 12)).double()
    ex = lrp(net, x, composite, 1, ledger=True)
    assert missing(ex) < 1e-8
    for i in range(3):
        torch.testing.assert_close(ex.residual[i], lrp(net, x[i : i + 1], composite, 1).residual[0])


@pytest.mark.parametrize("composite", COMPOSITES)
def test_an_exported_network_is_explained_as_the_one_it_came_from(composite):
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(80, 5)))
    net[1].running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    x = images(2, size=(7, 6))
    graph = torch.export.export(net, (x,)).module()
    one, other = (lrp(some, x, composite, 1) for some in (net, graph))
    torch.testing.assert_close(one.raw, other.raw)
    torch.testing.assert_close(one.residual, other.residual)


# --- what has to be said ------------------------------------------------------------------------------------------


def test_a_scripted_module_is_named_not_run_into():
    inner = torch.jit.script(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()))
    net = nn.Sequential(nn.Conv2d(3, 3, 1), inner, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(hp.MethodError, match=r"no rule for the operation .* scripted function"):
        hp.explain(net, images(1), "lrp")
    assert any(row["rule"] == "none" for row in hp.lrp.coverage(net, images(1)))


def test_what_lrp_holds_constant_is_named_where_nothing_else_is_left():
    net = seeded(lambda: Spelt(lambda y: 1 / (y.abs() + 1)))
    with pytest.raises(
        hp.MethodError, match=r"do not depend differentiably .*lrp holds 'div' in the model's own forward constant"
    ):
        hp.explain(net, images(1, size=(7, 6)), "lrp")


def test_a_write_that_no_backward_can_pass_is_a_sentence():
    net = seeded(lambda: Spelt(lambda y: y.sub_(F.avg_pool2d(y, 3, 1, 1))))
    with pytest.raises(hp.MethodError, match="writes in place"):
        hp.explain(net, images(1, size=(7, 6)), "lrp")


def test_an_operation_that_hides_before_a_module_is_named_in_the_module_around_it():
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(5, 5, 1)

        def forward(self, y: Tensor) -> Tensor:
            return self.conv(torch.vmap(lambda t: t * 2)(y))

    net = nn.Sequential(nn.Conv2d(3, 5, 3), Around(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(hp.MethodError, match="in module '1';"):
        hp.explain(net, images(1), "lrp")


def test_half_precision_gives_relevance_in_float32():
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 5))).bfloat16()
    ex = hp.explain(net, images(2, size=(7, 6)), "lrp", composite="epsilon")
    assert ex.raw.dtype == ex.residual.dtype == torch.float32 and missing(ex) < 0.02
