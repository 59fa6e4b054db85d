"""textspan against brute force: every term of every head made in full, and the decomposition as the paper prints it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from test_textspan_models import WIDE, awake, of_open_clip, of_timm, wrapped
from tiny import CLASSES, SIZE, GapNet, TinyViT, images, seeded


def attend(stream: Tensor, norm: nn.LayerNorm, attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor]:
    """What each head moves from each token to each token, `(B, q, i, h, D)`, and what attention returns in all."""
    x, heads = norm(stream), attention.num_heads
    q, k, v = (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
    weights = (torch.einsum("bqhd,bihd->bhqi", q, k) * q.shape[-1] ** -0.5).softmax(-1)
    slices = attention.out_proj.weight.unflatten(1, (heads, -1))
    moved = torch.einsum("bhqi,bihd,ohd->bqiho", weights, v, slices)
    return moved, moved.sum((2, 3)) + attention.out_proj.bias


def through_norm(norm: nn.LayerNorm, stream: Tensor, part: Tensor) -> Tensor:
    """What a part of the stream `(B, ..., D)` is after the norm, whose deviation is the stream's own `(B, D)`."""
    deviation = (stream.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    deviation = deviation.view(len(stream), *[1] * (part.ndim - 2), 1)
    return norm.weight * (part - part.mean(-1, keepdim=True)) / deviation


def test_every_term_of_a_small_transformer():
    net = awake(seeded(TinyViT)).double()
    x, targets = images(3).double(), [[0, 2], [4, 1], [3, 3]]
    with torch.no_grad():
        stream = net.patch(x).flatten(2).transpose(1, 2)
        start = torch.cat([net.prefix.expand(3, -1, -1), stream], 1) + net.position
        stream, moved, mlps = start, [], []
        for block in net.blocks:
            parts, whole = attend(stream, block.norm1, block.self_attn)
            stream = stream + whole
            mlps.append(block.linear2(F.relu(block.linear1(block.norm2(stream)))))
            stream = stream + mlps[-1]
            moved.append(parts[:, 0])
        rows = net.head.weight[torch.tensor(targets)]
        last = stream[:, 0]
        terms = through_norm(net.norm, last, torch.stack(moved, 1))
        contributions = torch.einsum("blihd,btd->btlhi", terms, rows)
        written = torch.einsum("bld,btd->btl", through_norm(net.norm, last, torch.stack(mlps, 1)[:, :, 0]), rows)
        initial = torch.einsum("bd,btd->bt", through_norm(net.norm, last, start[:, 0]), rows)
    ex = hp.explain(net, x, method="textspan", target=targets)
    torch.testing.assert_close(ex.contributions, contributions, rtol=1e-9, atol=1e-12)
    found = {(row["image"], row["target"], row["place"]): row["amount"] for row in ex.ledger}
    for image in range(3):
        for target in range(2):
            assert found[image, target, "blocks.1.linear2"] == pytest.approx(float(written[image, target, 1]))
            start_amount = sum(found[image, target, place] for place in ("patch", "prefix", "position"))
            assert start_amount == pytest.approx(float(initial[image, target]))
            assert found[image, target, "head"] == pytest.approx(float(net.head.bias.detach()[targets[image][target]]))
    torch.testing.assert_close(ex.contributions.sum((2, 3, 4)) + ex.residual, ex.scores, rtol=1e-12, atol=1e-12)


def test_the_papers_decomposition_differs_by_what_it_spreads_evenly():
    """The paper deals biases and the norm's mean out in equal shares to all terms; here they stay terms of their own."""
    model = wrapped(of_open_clip())
    x, visual = images(2, size=WIDE), model.module.visual
    layers, tokens, heads = 3, 16, 4
    with torch.no_grad():
        stream, moved, biases = visual._embeds(x), [], []
        for block in visual.transformer.resblocks:
            parts, _ = attend(stream, block.ln_1, block.attn)
            moved.append(parts[:, 0])
            biases.append(block.attn.out_proj.bias)
            stream = block(stream)
        norm, last = visual.ln_post, stream[:, 0]
        terms, shares = torch.stack(moved, 1), 2 * layers + 1
        spread = torch.stack(biases)[:, None, None] / (tokens * heads) - last.mean(-1)[:, None, None, None, None] / (
            shares * tokens * heads
        )
        deviation = (last.var(-1, unbiased=False) + norm.eps).sqrt()[:, None, None, None, None]
        length = (norm(last) @ visual.proj).norm(dim=-1)[:, None, None, None, None]
        constant = norm.bias / (shares * tokens * heads)
        published = (norm.weight * (terms + spread) / deviation + constant) @ visual.proj / length
        uncentred = norm.weight * (spread + terms.mean(-1, keepdim=True)) / deviation + constant
        ours = torch.einsum("blihe,et->btlhi", published - uncentred @ visual.proj / length, model.readout.classifier)
    ex = hp.explain(model, x, method="textspan", target=[list(range(5))] * 2)
    torch.testing.assert_close(ex.contributions, ours, rtol=1e-3, atol=1e-6)


def test_the_map_of_some_layers_and_heads():
    net, x = awake(seeded(TinyViT)), images(2)
    whole = hp.explain(net, x, method="textspan")
    one = hp.explain(net, x, method="textspan", layers=[-1], heads=[0, 2])
    torch.testing.assert_close(one.contributions, whole.contributions)
    expected = whole.contributions[:, :, 1, [0, 2]].sum(2)[..., 3:].unflatten(-1, (3, 5))
    torch.testing.assert_close(one.raw, expected)
    assert one.options["layers"] == [-1] and one.maps.shape == (2, 1, *SIZE)
    halves = [hp.explain(net, x, method="textspan", layers=[n]).raw for n in range(2)]
    torch.testing.assert_close(halves[0] + halves[1], whole.raw)


def test_less_the_mean_of_all_classes():
    net, x = awake(seeded(TinyViT)), images(2)
    every = hp.explain(net, x, method="textspan", target=[list(range(CLASSES))] * 2)
    less = hp.explain(net, x, method="textspan", target=[[3, 1]] * 2, minus_mean=True)
    expected = (every.contributions - every.contributions.mean(1, keepdim=True))[:, [3, 1]]
    torch.testing.assert_close(less.contributions, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(less.contributions.sum((2, 3, 4)) + less.residual, less.scores, rtol=1e-4, atol=1e-6)
    means = [row["amount"] for row in less.ledger if row["part"] == "mean"]
    torch.testing.assert_close(torch.tensor(means).view(2, 2), every.scores.mean(1, keepdim=True).expand(2, 2))


class Odd(TinyViT):
    """The same network in other words: sequence first, writes in place, a norm and gates by hand, a mean by hand."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x.sub(0.1).div_(0.5)).flatten(2).permute(2, 0, 1)
        stream = torch.cat((self.prefix.transpose(0, 1).expand(-1, len(x), -1), tokens))
        stream += self.position.transpose(0, 1)
        for block in self.blocks:
            y = block.norm1(stream).transpose(0, 1)
            stream.add_(block.self_attn(y, y, y, need_weights=True)[0].transpose(0, 1))
            y = block.linear1(block.norm2(stream))
            y = block.linear2(y * torch.sigmoid(1.702 * y))
            y += 0.25 * stream
            stream = 1.5 * y
        centred = stream - stream.mean(-1, keepdim=True)
        normal = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) * self.norm.weight + self.norm.bias
        return self.head(normal[:3].sum(0) / 3) - 0.5


@pytest.mark.parametrize("count", [1, 5, 18])  # 18 is also the number of tokens
def test_however_it_is_written(count):
    net, x = awake(seeded(Odd)), images(count)
    ex = hp.explain(net, x, method="textspan", target=[[0, 4]] * count)
    with torch.no_grad():
        torch.testing.assert_close(ex.scores, net(x)[:, [0, 4]], rtol=1e-4, atol=1e-5)
    assert ex.contributions.shape == (count, 2, 2, 3, 18)
    torch.testing.assert_close(ex.contributions.sum((2, 3, 4)) + ex.residual, ex.scores, rtol=1e-4, atol=1e-5)
    places = {row["place"] for row in ex.ledger if row["part"] == "mlp"}
    assert places == {"blocks.0.linear2", "blocks.1.linear2"}


class Flattened(TinyViT):
    """Tokens of all images in one axis wherever a layer does not care."""

    def forward(self, x: Tensor) -> Tensor:
        stream = torch.cat([self.prefix.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2)], 1) + self.position
        for block in self.blocks:
            y = block.norm1(stream)
            stream = stream + block.self_attn(y, y, y, need_weights=False)[0]
            flat = stream.flatten(0, 1)
            flat = flat + block.linear2(F.relu(block.linear1(block.norm2(flat))))
            stream = flat.unflatten(0, (len(x), -1))
        return self.head(self.norm(stream.flatten(0, 1))).unflatten(0, (len(x), -1)).mean(1)


@pytest.mark.parametrize("count", [1, 3])
def test_images_that_do_not_lie_along_the_first_axes(count):
    net, x = awake(seeded(Flattened)), images(count)
    ex = hp.explain(net, x, method="textspan", target=[[0, 4]] * count)
    torch.testing.assert_close(ex.contributions.sum((2, 3, 4)) + ex.residual, ex.scores, rtol=1e-4, atol=1e-5)
    assert hp.textspan.ablate(net, images(3), mlps=True).after.shape == (1, 3, CLASSES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_full(dtype):
    net, x = awake(seeded(TinyViT)), images(2)
    whole, half = hp.explain(net, x, method="textspan"), hp.explain(net.to(dtype), x, method="textspan", target=None)
    assert half.contributions.dtype == torch.float32
    torch.testing.assert_close(half.contributions, whole.contributions, rtol=0.1, atol=0.05)
    torch.testing.assert_close(half.contributions.sum((2, 3, 4)) + half.residual, half.scores.float(), rtol=1e-5, atol=1e-5)
    for i in range(2):  # what the operations of the model rounded off is on the account
        rows = [row["amount"] for row in half.ledger if row["image"] == i]
        booked = [row["amount"] for row in half.ledger if row["image"] == i and row["part"] == "rounding"]
        assert len(booked) == 1 and 0 < abs(booked[0]) < 0.05 and sum(rows) == pytest.approx(float(half.residual[i, 0]), abs=1e-5)
    assert not any(row["part"] == "rounding" for row in whole.ledger)


def test_autocast_and_shared_work():
    model, x = wrapped(of_timm()), images(2, size=WIDE)
    with torch.autocast("cpu", torch.bfloat16):
        ex = hp.explain(model, x, method="textspan")
    torch.testing.assert_close(ex.contributions.sum((2, 3, 4)) + ex.residual, ex.scores.float(), rtol=1e-5, atol=1e-5)
    both = hp.explain(model, x, method=["textspan", "gradient"])
    torch.testing.assert_close(both["textspan"].raw, hp.explain(model, x, method="textspan").raw)


class Crooked(torch.autograd.Function):
    """Not linear, and past torch's dispatch."""

    @staticmethod
    def forward(ctx, x):
        return x * x.abs()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Hidden(TinyViT):
    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2)], 1)
        return self.head(Crooked.apply(self.blocks[0](tokens + self.position))[:, 0])


class Blunt(TinyViT):
    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2)], 1)
        return self.head(torch.tanh(self.blocks[0](tokens + self.position))[:, 0])


def swin():
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 8, [1, 1], [2, 4], [4, 4], num_classes=5)


@pytest.mark.parametrize(
    ("error", "match", "build", "size", "options"),
    [
        (hp.MethodError, "vision transformer with a residual stream", GapNet, SIZE, {}),
        (hp.MethodError, "no attention writes to this score .* 'head'", Blunt, SIZE, {}),
        (hp.MethodError, "hides from torch's dispatch", Hidden, SIZE, {}),
        (hp.MethodError, "textspan needs|do not attend alike", swin, (32, 64), {}),
        (hp.MethodError, "layers=2; expected indices from 0 to 1", TinyViT, SIZE, {"layers": 2}),
        (hp.MethodError, "heads='all'; expected indices from 0 to 2", TinyViT, SIZE, {"heads": "all"}),
        (hp.MethodError, "layers=\\[\\]", TinyViT, SIZE, {"layers": []}),
        (hp.ModelError, "no prompts yet", of_open_clip(), WIDE, {}),
    ],
)
def test_what_cannot_be_is_a_sentence(error, match, build, size, options):
    with pytest.raises(error, match=match):
        hp.explain(awake(seeded(build)), images(2, size=size), method="textspan", **options)


def test_one_prompt_has_no_mean():
    model = wrapped(of_open_clip()).with_prompts(["cat"])
    with pytest.raises(hp.MethodError, match="name at least two"):
        hp.explain(model, images(1, size=WIDE), method="textspan", minus_mean=True)
