"""The tap: attention by what it computes, however it is written; what is none is named; the model is left as it was."""

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import heatproof as hp
from heatproof.models.shadow import shadow
from heatproof.tokens.layout import _LAYOUTS
from heatproof.tokens.tap import Tap
from tiny import GapNet, TinyViT, images, seeded
from transformers_tiny import CASES, lively

HEADS, WIDTH = 3, 12


class Block(nn.Module):
    """A block whose attention is written in one of many ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 20), nn.GELU(), nn.Linear(20, WIDTH))
        self.mix = nn.Parameter(torch.randn(HEADS, HEADS))
        self.bias = nn.Parameter(torch.randn(1, HEADS, 18, 18))
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.attend(self.norm(x)))
        return x + self.mlp(self.after(x))

    def attend(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        if self.kind == "need_weights":
            return self.mha(x, x, x)[0]
        q, k, v = self.qkv(x).view(batch, count, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        scale = q.shape[-1] ** -0.5
        back = lambda o: o.transpose(1, 2).reshape(batch, count, -1)  # noqa: E731
        if self.kind == "fused":
            return back(F.scaled_dot_product_attention(q, k, v))
        if self.kind == "fused, scale and bias":
            return back(F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias, scale=0.9))
        if self.kind == "fused, mask":
            return back(F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[0, 0] > -1))
        if self.kind == "causal":
            return back(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        if self.kind == "grouped queries":
            return back(F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True))
        if self.kind == "heads beside images":
            q, k, v = (t.reshape(batch * HEADS, count, -1) for t in (q, k, v))
            return back(torch.bmm(torch.softmax(torch.bmm(q, k.mT) * scale, -1), v).view(batch, HEADS, count, -1))
        if self.kind == "linear attention":
            return back(F.elu(q).add(1) @ (F.elu(k).add(1).mT @ v))
        weights = (q @ k.transpose(-2, -1) * scale).softmax(dim=-1)
        if self.kind == "einsum":
            return torch.einsum("bhij,bhjd->bihd", weights, v).reshape(batch, count, -1)
        if self.kind == "einsum, values otherwise":
            return torch.einsum("bhqk,bkhc->bqhc", (weights, v.transpose(1, 2))).reshape(batch, count, -1)
        if self.kind == "through other types":
            return back(torch.matmul(F.dropout(weights, 0.1, self.training).double().to(v), v))
        if self.kind == "talking heads":
            weights = torch.einsum("bhij,hg->bgij", weights, self.mix)
        if self.kind == "windows":
            q, k, v = (t.reshape(batch, HEADS, 3, 6, -1).transpose(1, 2).flatten(0, 1) for t in (q, k, v))
            o = F.scaled_dot_product_attention(q, k, v).view(batch, 3, HEADS, 6, -1)
            return o.transpose(2, 3).reshape(batch, count, -1)
        return back(weights @ v)


KNOWN = ("fused", "fused, scale and bias", "fused, mask", "causal", "grouped queries", "heads beside images", "einsum",
         "einsum, values otherwise", "through other types", "by hand", "need_weights")  # fmt: skip


def net(kind: str) -> nn.Module:
    def build() -> nn.Module:
        made = TinyViT()
        made.blocks = nn.ModuleList(Block(kind) for _ in range(2))
        return made

    return lively(build)


@pytest.mark.parametrize("kind", KNOWN)
def test_every_way_to_write_attention(kind):
    module, x = net(kind), images(2)
    with torch.no_grad():
        expected = module(x)
    tap = Tap(shadow(module), 2)
    with torch.enable_grad(), tap:
        scores = tap.module(x)
    torch.testing.assert_close(scores, expected)
    assert [a.shape for a in tap.attentions] == [(2, HEADS, 18, 18)] * 2 and not tap.unknown
    assert [a.place.split(".")[1] for a in tap.attentions] == ["0", "1"]
    for attention in tap.attentions:
        assert attention.output.is_leaf and attention.output.requires_grad
        weights = attention.weights()
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        torch.testing.assert_close(weights @ attention.value, attention.output.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(attention.weights(slice(2, 5)), weights[:, :, 2:5])


@pytest.mark.parametrize("kind", KNOWN)
def test_legrad_does_not_care_how_attention_is_written(kind):
    """`s` after a small step of one attention weight, by the definition of a derivative."""
    module, x = net(kind).double(), images(1).double()
    model = hp.wrap(module)
    ex = hp.explain(model, x, method="legrad", target=2, layers=[1])
    tap, kept = Tap(shadow(module), 1), []
    handle = tap.module.blocks[1].register_forward_hook(lambda _m, _i, z: kept.append(z))
    with torch.enable_grad(), tap:
        tap.module(x)
    handle.remove()
    attention = tap.attentions[1]
    score = tap.module.head(tap.module.norm(kept[0].mean(1)))[0, 2]
    (gradient,) = torch.autograd.grad(score, attention.output)
    heat = torch.zeros(15)
    for head in range(HEADS):
        for i in range(18):
            for j in range(15):
                heat[j] += max(0.0, float(gradient[0, head, i] @ attention.value[0, head, 3 + j])) / (HEADS * 18)
    torch.testing.assert_close(ex.raw[0, 0].float().flatten(), heat, rtol=1e-4, atol=1e-7)


def test_blocks_that_return_more_than_the_stream():
    class Pairs(TinyViT):
        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patch(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1) + self.position
            for block in self.blocks:
                tokens, _ = block(hidden_states=tokens)
            return self.head(self.norm(tokens)[:, 0])

    class Pair(Block):
        def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
            return super().forward(hidden_states), None

    plain, pairs = net("fused"), net("fused")
    pairs.__class__ = Pairs
    for block in pairs.blocks:
        block.__class__ = Pair
    for name in ("legrad", "rollout", "attention"):
        one, other = (hp.explain(module, images(2), method=name, target=3).raw for module in (plain, pairs))
        torch.testing.assert_close(one, other)
    (kept,) = _LAYOUTS[pairs].values()  # lives as long as the module: no graph may hang on it, nor a batch
    assert all(stream.numel() == 0 and not stream.requires_grad for stream, _ in kept.templates.values())
    assert len(kept.templates) == 2


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("talking heads", r"blocks\.0.*products of \(1, 3, 18, 18\) and \(3, 3\).*heads are mixed"),
        ("linear attention", "no attention that can be seen.*vision transformer.*gradcam"),
        ("windows", r"blocks\.0.*attend within groups"),
    ],
)
def test_attention_of_another_kind_is_named(kind, says):
    for name in ("legrad", "rollout", "attention"):
        with pytest.raises(hp.MethodError, match=says):
            hp.explain(net(kind), images(2), method=name)


def test_a_network_without_attention_gets_the_name_of_one_that_fits():
    with pytest.raises(hp.MethodError, match=r"GapNet.*needs a vision transformer; gradcam fits"):
        hp.explain(seeded(GapNet), images(1), method="legrad")


def test_residuals_outside_the_blocks_are_refused():
    class Outside(TinyViT):
        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patch(x).flatten(2).transpose(1, 2)
            for block in self.blocks:
                tokens = tokens + block.attend(tokens) + block.mlp(tokens)
            return self.head(self.norm(tokens).mean(1))

    module = net("fused")
    module.__class__ = Outside
    with pytest.raises(hp.MethodError, match=r"no row of modules.*one module per block"):
        hp.explain(module, images(1), method="legrad")


class Stages(TinyViT):
    """Tokens are dropped on the way, so that some blocks attend over 18 and others over 9."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1) + self.position
        for block in self.blocks:
            tokens = tokens[:, ::2] if block is self.fewer else tokens
            tokens = block(tokens)
        return self.head(self.norm(tokens)[:, 0])


@pytest.mark.parametrize(("fewer", "place"), [(1, r"blocks\.0"), (2, r"blocks\.2")])
def test_several_grids_are_refused(fewer, place):
    module = net("fused")
    module.blocks.append(Block("fused"))
    module.__class__, module.fewer = Stages, module.blocks[fewer]
    for name in ("legrad", "rollout", "attention"):
        with pytest.raises(hp.MethodError, match=rf"in another way, over (18|9), in '{place}'"):
            hp.explain(module, images(1), method=name)


class Again(TinyViT):
    """A pooler that lies in no module of its own."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        heads = tokens.unflatten(2, (3, -1)).transpose(1, 2)
        return self.head(self.norm(F.scaled_dot_product_attention(heads[:, :, :1], heads, heads).transpose(1, 2).flatten(1)))


def test_a_pooler_without_a_module_is_named():
    module = net("fused")
    module.__class__ = Again
    for name in ("legrad", "rollout", "attention"):
        with pytest.raises(hp.MethodError, match="reads the tokens of the last block is in no module"):
            hp.explain(module, images(1), method=name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": [2]}, "from 0 to 1"),
        ({"layers": []}, "expected indices"),
        ({"layers": ["blocks.0"]}, "expected indices"),
        ({"layers": [True]}, "expected indices"),
        ({"pooling": "max"}, "'mean' or 'class'"),
        ({"correction": True}, "attentional pooler"),
    ],
)
def test_options_that_cannot_be(options, says):
    with pytest.raises(hp.MethodError, match=says):
        hp.explain(seeded(TinyViT), images(1), method="legrad", **options)
    with pytest.raises(hp.MethodError, match="no class token"):
        hp.explain(seeded(lambda: TinyViT(prefix=0)), images(1), method="legrad", pooling="class")


@pytest.mark.parametrize("layers", [np.arange(2), [np.int64(1), 0], torch.tensor([0, -1]), range(2), (-2, -1, 0)])
def test_layers_in_all_forms(layers):
    names = ["legrad", "rollout", "attention", "textspan"]
    every, given = (hp.explain(seeded(TinyViT), images(1), names, layers=asked) for asked in ([0, 1], layers))
    for name in names:
        torch.testing.assert_close(given[name].raw, every[name].raw)


class Recomputed(TinyViT):
    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1) + self.position
        for block in self.blocks:
            tokens = checkpoint(block, tokens, use_reentrant=False)
        return self.head(self.norm(tokens)[:, 0])


def test_checkpoints_of_the_users_own_are_a_sentence():
    with pytest.raises(hp.ModelError, match=r"calls torch\.utils\.checkpoint.*switch that off"):
        hp.explain(seeded(Recomputed), images(1), method="legrad")


def test_one_forward_of_the_whole_model_and_one_that_learns_its_layout():
    module, runs = seeded(TinyViT), []
    module.blocks[0].mlp = nn.Identity()
    module.blocks[0].linear1.register_forward_hook(lambda _m, _i, y: runs.append(len(y)))
    names = ["legrad", "rollout", "attention"]
    hp.explain(module, images(3), method=names)
    assert runs == [1, 3]
    hp.explain(module, images(2), method=names, target=[[0, 1, 2]] * 2)
    assert runs == [1, 3, 2]


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_the_model_is_left_as_it_was(build):
    case = build()
    module, model, x = case.module, case.model(), case.images(1)
    before = {name: (value, value._version) for name, value in module.state_dict(keep_vars=True).items()}
    marks = [(set(vars(m)), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()]
    expected = model.scores(x)
    options = {"method": ["legrad", "rollout", "attention"], "target": [[0, 1]]}
    first = hp.explain(model, x, **options)
    found: list[dict] = []
    threads = [threading.Thread(target=lambda: found.append(hp.explain(model, x, **options))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and all(torch.equal(one[name].raw, first[name].raw) for one in found for name in first)
    after = module.state_dict(keep_vars=True)
    assert all(after[name] is value and value._version == version for name, (value, version) in before.items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert marks == [(set(vars(m)), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()]
    assert torch.equal(model.scores(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_draws_nearly_the_same(dtype):
    module, x = lively(TinyViT), images(2)
    expected = hp.explain(module, x, method=["legrad", "rollout"], target=1)
    found = hp.explain(module.to(dtype), x, method=["legrad", "rollout"], target=1)
    for name, ex in found.items():
        pair = torch.stack([ex.raw.flatten().float(), expected[name].raw.flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.99, name


def test_under_autocast():
    module, x = lively(TinyViT), images(2)
    expected = hp.explain(module, x, method="legrad", target=1).raw
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hp.explain(module, x, method="legrad", target=1).raw
    assert torch.corrcoef(torch.stack([found.flatten().float(), expected.flatten()]))[0, 1] > 0.99
