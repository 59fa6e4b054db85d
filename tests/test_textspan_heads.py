"""label_heads against a naive reading of the algorithm, mean-ablation against the sum it stands for."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

import heatproof as hp
from heatproof.models.loading import as_model
from heatproof.tokens.label_heads import span_texts
from heatproof.tokens.spans import spans
from test_textspan_models import WIDE, of_open_clip, of_timm, wrapped
from tiny import GapNet, images, seeded


def naive_span(head: np.ndarray, texts: np.ndarray, top: int, rank: int) -> tuple[list[int], list[float]]:
    """The algorithm as the paper prints it, with every matrix in full."""
    _, _, rows = np.linalg.svd(head, full_matrices=False)
    inside = rows[:rank].T @ rows[:rank]
    words, rest = texts @ inside, head - head.mean(0)
    total, chosen, explained = (rest**2).sum(), [], []
    for _ in range(top):
        best = int((rest @ words.T).std(0).argmax())
        direction = words[best] / np.linalg.norm(words[best])
        rest = rest - np.outer(rest @ direction, direction)
        words = words - np.outer(words @ direction, direction)
        chosen.append(best)
        explained.append(1 - (rest**2).sum() / total)
    return chosen, explained


@pytest.mark.parametrize("rank", [3, 6, 80])
def test_the_greedy_choice_is_the_papers(rank):
    generator = np.random.default_rng(rank)
    scales = np.geomspace(3, 0.1, 9)
    head, texts = generator.normal(1, 1, (40, 9)) * scales, generator.normal(0, 1, (30, 9))
    chosen, explained = span_texts(torch.tensor(head), torch.tensor(texts), top=3, rank=rank)
    wanted, share = naive_span(head, texts, 3, rank)
    assert chosen == wanted
    np.testing.assert_allclose(explained, share, rtol=1e-6, atol=1e-9)


def test_a_head_of_two_directions_is_spanned_by_two_texts_and_longer_ones_win():
    texts = torch.eye(5)[[0, 1, 2, 2]] * torch.tensor([[1.0], [1.0], [1.0], [1.5]])
    head = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) @ torch.stack([2 * texts[2], 0.5 * texts[0]])
    chosen, explained = span_texts(head, texts, top=4)
    assert chosen == [3, 0] and explained[1] == pytest.approx(1) and explained[0] < explained[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dimensions_that_a_head_cannot_write_to_do_not_count(dtype):
    """Ten of sixteen: the other singular vectors are whatever rounding makes of them."""
    generator = np.random.default_rng(0)
    head = generator.normal(0.2, 1, (40, 10)) @ generator.normal(0, 1, (10, 16))
    texts = generator.normal(0, 1, (60, 16))
    chosen, explained = span_texts(torch.tensor(head).to(dtype), torch.tensor(texts).to(dtype), top=6, rank=80)
    wanted, share = naive_span(head, texts, 6, 10)
    assert chosen == wanted
    np.testing.assert_allclose(explained, share, rtol=1e-4)


@pytest.fixture(scope="module")
def clip():
    return wrapped(of_open_clip(quick=True))


def test_heads_add_up_to_the_embedding_of_each_image(clip):
    x = images(5, size=WIDE)
    parts = list(spans(clip, x, batch_size=2, first=True, mlps=True))
    heads = torch.cat([part.heads for part in parts])
    ex = hp.explain(clip, x, method="textspan", target=[[0, 2]] * 5)
    by_text = torch.einsum("blhe,bet->btlh", heads, clip.readout.classifier[:, ex.targets].permute(1, 0, 2))
    torch.testing.assert_close(by_text, ex.contributions.sum(-1), rtol=1e-3, atol=1e-5)
    first = torch.einsum(
        "blhe,bet->btlh", torch.cat([p.first for p in parts]), clip.readout.classifier[:, ex.targets].permute(1, 0, 2)
    )
    torch.testing.assert_close(first, ex.contributions[..., 0], rtol=1e-3, atol=1e-5)
    mlps = torch.cat([part.mlps for part in parts]) @ clip.readout.classifier[:, 0]
    listed = [
        [row["amount"] for row in ex.ledger if row["part"] == "mlp" and (row["image"], row["target"]) == (i, 0)] for i in range(5)
    ]
    torch.testing.assert_close(mlps, torch.tensor(listed), rtol=1e-3, atol=1e-5)


def test_labels_are_those_of_the_naive_algorithm_on_the_naive_heads(clip):
    x, texts = images(12, size=WIDE), [f"{'very ' * n}red" for n in range(9)]
    labels = hp.textspan.label_heads(clip, x, texts, layers=[1, -1], top=2)
    assert len(labels) == 8 and {row.layer for row in labels.rows} == {1, 2}
    words = clip.with_prompts(texts).readout.classifier.T
    with torch.no_grad():
        head = torch.cat([part.heads for part in spans(clip, x)])[:, 2, 1]
    chosen, explained = naive_span(head.double().numpy(), words.double().numpy(), 2, 80)
    row = labels[2, 1]
    assert row.texts == tuple(texts[i] for i in chosen)
    np.testing.assert_allclose(row.explained, explained, rtol=1e-3)
    assert "| 2 | 1 |" in labels.table and labels.table == repr(labels)
    with pytest.raises(hp.InputError, match=r"layers \[1, 2\] were labelled"):
        labels[0, 0]


def test_the_text_bank_is_a_few_thousand_lines_each_once():
    bank = hp.textspan.descriptions()
    assert 3000 <= len(bank) <= 5000 and len(set(map(str.lower, bank))) == len(bank)
    assert all(text == text.strip() and 2 <= len(text) <= 80 for text in bank)


def test_ablating_takes_out_what_differs_from_the_mean(clip):
    x = images(6, size=WIDE)
    ex = hp.explain(clip, x, method="textspan", target=[list(range(5))] * 6)
    parts = ex.contributions.sum(-1)
    done = hp.textspan.ablate(clip, x, heads=[(0, 1), (-1, 2)], layers=[1], truth=[0, 1, 2, 3, 4, 0])
    taken = parts[:, :, 0, 1] + parts[:, :, 2, 2] + parts[:, :, 1].sum(-1)
    torch.testing.assert_close(done.before, ex.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(done.after[0], ex.scores - taken + taken.mean(0), rtol=1e-3, atol=1e-5)
    assert done.names == ("head (0, 1) + head (2, 2) + attention layer 1",)
    arrays = hp.textspan.ablate(clip, x, heads=np.array([(0, 1), (-1, 2)]), layers=torch.tensor([1]))
    assert arrays.names == done.names and torch.equal(arrays.after, done.after)
    right = ex.scores.argmax(1) == torch.tensor([0, 1, 2, 3, 4, 0])
    assert done.accuracy[0] == pytest.approx(float(right.float().mean())) and "| nothing | 100% |" in done.table


def test_what_is_left_of_all_parts_are_biases_and_constants():
    model = wrapped(of_timm())
    x = images(4, size=WIDE)
    done = hp.textspan.ablate(model, x, mlps=True, cumulative=True)
    ex = hp.explain(model, x, method="textspan", target=[list(range(5))] * 4)
    rest = torch.zeros(4, 5)
    for row in ex.ledger:
        rest[row["image"], row["target"]] += row["amount"] * (row["part"] != "mlp")
    assert done.after.shape == (3, 4, 5) and done.names[1] == "attention layers 0 to 1 + MLPs"
    torch.testing.assert_close(done.after[-1], done.before.mean(0) + rest - rest.mean(0), rtol=1e-3, atol=1e-5)
    assert done.accuracy is None and len(done.agreement) == 3
    own = ex.contributions[..., 0].sum((2, 3))
    alone = hp.textspan.ablate(model, x, class_attention=True)
    torch.testing.assert_close(alone.after[0], ex.scores - own + own.mean(0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_ablation_in_other_precisions(clip, dtype):
    x = images(4, size=WIDE)
    other = dataclasses.replace(clip, module=copy.deepcopy(clip.module).to(dtype))
    expected, found = (hp.textspan.ablate(model, x, mlps=True, layers=[1]) for model in (clip, other))
    torch.testing.assert_close(found.before.float(), expected.before, rtol=0.05, atol=0.02)
    torch.testing.assert_close(found.after.float(), expected.after, rtol=0.05, atol=0.02)


def spoilt(model):
    module = copy.deepcopy(model.module)
    module.visual.proj.data[:] = torch.nan
    return dataclasses.replace(model, module=module)


def test_one_text_and_a_plain_module(clip):
    x = images(3, size=WIDE)
    one = hp.textspan.label_heads(clip, x, "red", layers=[0])
    assert one.rows == hp.textspan.label_heads(clip, x, ["red"], layers=[0]).rows and one[0, 0].texts == ("red",)
    net = of_timm()()
    plain, held = (hp.textspan.ablate(model, x, layers=[0]) for model in (net, hp.wrap(net)))
    assert torch.equal(plain.after, held.after)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (hp.ModelError, "no text encoder", lambda m, x: hp.textspan.label_heads(hp.wrap(seeded(GapNet)), x, ["red"])),
        (hp.InputError, "names no text", lambda m, x: hp.textspan.label_heads(m, x, [])),
        (hp.ModelError, "model is str; expected what", lambda m, x: as_model("planted-clip")),
        (hp.InputError, "top=0", lambda m, x: hp.textspan.label_heads(m, x, ["red"], top=0)),
        (hp.InputError, "rank=-2", lambda m, x: hp.textspan.label_heads(m, x, ["red"], rank=-2)),
        (hp.ModelError, "NaN or infinite", lambda m, x: hp.textspan.label_heads(spoilt(m), x, ["red"])),
        (hp.ModelError, "no prompts yet", lambda m, x: hp.textspan.ablate(m.module, x, layers=[0])),
        (hp.InputError, "there is but one", lambda m, x: hp.textspan.label_heads(m, x[:1], ["red", "blue"])),
        (hp.MethodError, "expected indices from 0 to 2", lambda m, x: hp.textspan.label_heads(m, x, ["red"], layers=[3])),
        (hp.MethodError, "nothing to ablate", lambda m, x: hp.textspan.ablate(m, x)),
        (hp.MethodError, "pairs", lambda m, x: hp.textspan.ablate(m, x, heads=[3])),
        (hp.MethodError, "indices from 0 to 3", lambda m, x: hp.textspan.ablate(m, x, heads=[(0, 9)])),
        (hp.MethodError, "leave heads=", lambda m, x: hp.textspan.ablate(m, x, layers=[0], cumulative=True)),
        (hp.InputError, "3 entries for 2", lambda m, x: hp.textspan.ablate(m, x, layers=[0], truth=[0, 1, 2])),
        (hp.InputError, "truth holds 'red'", lambda m, x: hp.textspan.ablate(m, x, layers=[0], truth=["red", "blue"])),
        (hp.InputError, "truth holds 7.*0 to 4", lambda m, x: hp.textspan.ablate(m, x, layers=[0], truth=np.array([0, 7]))),
        (hp.InputError, "but one", lambda m, x: hp.textspan.ablate(m, x[:1], layers=[0])),
        (hp.MethodError, "vision transformer", lambda m, x: hp.textspan.ablate(hp.wrap(seeded(GapNet)), x, layers=[0])),
    ],
)
def test_bad_input_is_a_sentence(clip, error, match, call):
    with pytest.raises(error, match=match):
        call(clip, images(2, size=WIDE))
