"""The other interventions against slow versions from their formulas."""

import numpy as np
import pytest
import torch
from torch import nn

import heatproof as hp
import tiny
from heatproof.proof.battery import OF_METHODS, TESTS, build, markdown
from heatproof.proof.completeness import Completeness
from heatproof.proof.faithfulness import Infidelity, SensitivityN
from heatproof.proof.infill import infill
from heatproof.proof.interventions import Test as Intervention
from heatproof.proof.masking import AverageDrop, AverageIncrease, win
from heatproof.proof.stability import MaxSensitivity
from heatproof.proof.subject import Subject
from heatproof.proof.tokens import TokenDropping, find_place

HEIGHT, WIDTH = tiny.SIZE


def subject(net=tiny.HeadNet, targets=((1, 4), (2, 0)), **options) -> Subject:
    return Subject(hp.wrap(tiny.seeded(net)), tiny.images(len(targets)), torch.tensor(targets), **options)


def random_maps(shape, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def score(net, x, target: int) -> float:
    with torch.no_grad():
        return float(net(x[None])[0, target])


@pytest.mark.parametrize("scale", [True, False])
def test_infidelity_square_by_square(scale):
    net, asked = tiny.seeded(tiny.HeadNet), subject()
    maps, test = random_maps((2, 2, 2)) / 100, Infidelity(samples=19, side=7, scale=scale, infill="blur", seed=2)
    maps[0, 0, 1] = -maps[0, 0, 0]
    result = test(asked, maps)
    side, corners = test.corners(tiny.SIZE)
    assert side == 7 and (corners >= 0).all() and (corners + 7 <= torch.tensor(tiny.SIZE)).all()
    for b, t, m in np.ndindex(2, 2, 2):
        said, lost = [], []
        for top, left in corners.tolist():
            mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
            mask[0, top : top + 7, left : left + 7] = True
            target, edited = int(asked.targets[b, t]), infill("blur")(asked.x[b : b + 1], mask)[0]
            said.append(float(maps[b, t, m][mask[0]].sum()))
            lost.append(score(net, asked.x[b], target) - score(net, edited, target))
        said, lost = np.array(said), np.array(lost)
        beta = max(0.0, (said * lost).sum() / (said**2).sum()) if scale else 1.0
        assert float(result.values[b, t, m]) == pytest.approx(((beta * said - lost) ** 2).mean(), rel=1e-3, abs=1e-9)
    assert asked.forwards == 2 + test.cost(asked, 2) == 2 + 2 * 19  # however many maps and targets


class Additive(nn.Module):
    """`s_c = Σ_i w_ci x_i`: what each pixel is worth is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, *tiny.SIZE) / 10)

    def forward(self, x):
        return torch.einsum("bkhw,ckhw->bc", x, self.weight)


def additive() -> tuple[Subject, torch.Tensor]:
    """An additive model, and maps: the true worths, noise, and the worths' negative."""
    asked = subject(Additive, ((2, 0), (1, 3)))
    weight = tiny.seeded(Additive).weight.detach()
    worth = (asked.x[:, None] * weight[asked.targets]).sum(2)
    return asked, torch.stack([worth, random_maps((2, 2)), -worth], 2)


def test_additive_model_gets_the_exact_answers():
    asked, maps = additive()
    exact = Infidelity(scale=False)(asked, maps).values
    assert float(exact[:, :, 0].max()) < 1e-8 < float(exact[:, :, 1:].min())
    fitted = Infidelity()(asked, 7 * maps).values  # any unit
    assert float(fitted[:, :, 0].max()) < 1e-8
    zeros = Infidelity()(asked, torch.zeros_like(maps)).values
    torch.testing.assert_close(fitted[:, :, 2], zeros[:, :, 2])  # the wrong sign is worth nothing
    correlation = SensitivityN(side=5)(asked, maps)
    torch.testing.assert_close(correlation.curves[:, :, 0], torch.ones_like(correlation.curves[:, :, 0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(correlation.values[:, :, 2], -correlation.values[:, :, 0], atol=1e-4, rtol=0)
    assert float(correlation.values[:, :, 1].abs().max()) < 0.5
    for empty in (None, "zero"):  # an empty image scores nothing here
        gaps = Completeness(empty)(asked, maps).values
        assert float(gaps[:, :, 0].max()) < 1e-4
        torch.testing.assert_close(gaps[:, :, 2], torch.full_like(gaps[:, :, 2], 2.0), atol=1e-4, rtol=0)


def test_sensitivity_n_set_by_set():
    net, asked = tiny.seeded(tiny.HeadNet), subject()
    maps, test = random_maps((2, 2, 2)), SensitivityN(fractions=(0.2, 0.5), samples=6, side=7)
    result, sets = test(asked, maps), test.sets(tiny.SIZE)
    assert sets.shape == (2, 6, 4, 6) and sets.sum((2, 3)).unique(dim=1).flatten().tolist() == [5, 12]
    for b, t, m in np.ndindex(2, 2, 2):
        target = int(asked.targets[b, t])
        for n in range(2):
            said, lost = [], []
            for chosen in sets[n]:
                mask = torch.tensor([[bool(chosen[i // 7, j // 7]) for j in range(WIDTH)] for i in range(HEIGHT)])
                said.append(float(maps[b, t, m][mask].sum()))
                lost.append(score(net, asked.x[b], target) - score(net, asked.x[b] * ~mask, target))
            assert float(result.curves[b, t, m, n]) == pytest.approx(np.corrcoef(said, lost)[0, 1], abs=1e-3)
    torch.testing.assert_close(result.values, result.curves.mean(-1))
    assert asked.forwards == 2 + test.cost(asked, 2)
    assert float(test(asked, torch.ones(2, 2, 1, HEIGHT, WIDTH)).values.abs().max()) <= 1


def test_completeness_counts_the_residual():
    asked = subject()
    maps = random_maps((2, 2, 1))
    residual = asked.scores[:, :, None] - maps.sum((-2, -1))
    assert float(Completeness()(asked, maps, residual).values.max()) < 1e-3
    gap = Completeness("black")(asked, maps).values
    black = infill("black")(asked.x, torch.ones(2, HEIGHT, WIDTH, dtype=torch.bool))
    change = asked.scores - tiny.seeded(tiny.HeadNet)(black).detach().gather(1, asked.targets)
    torch.testing.assert_close(gap, ((maps.sum((-2, -1)) - change[:, :, None]) / change[:, :, None]).abs(), rtol=1e-3, atol=1e-4)
    assert asked.forwards == 4


def test_average_drop_and_increase_one_by_one():
    net, asked = tiny.seeded(tiny.HeadNet).requires_grad_(False), subject()
    maps = torch.cat([random_maps((2, 2, 2)), torch.full((2, 2, 1, HEIGHT, WIDTH), 3.0)], 2)
    drops, rises = AverageDrop()(asked, maps).values, AverageIncrease("mean")(asked, maps).values
    for b, t, m in np.ndindex(2, 2, 3):
        one, x, target = maps[b, t, m], asked.x[b], int(asked.targets[b, t])
        mask = (one - one.min()) / (one.max() - one.min()) if m < 2 else torch.zeros_like(one)
        whole = float(net(x[None]).softmax(1)[0, target])
        dark = float(net((x * mask)[None]).softmax(1)[0, target])
        grey = float(net((x * mask + (1 - mask) * x.mean((1, 2), keepdim=True))[None]).softmax(1)[0, target])
        assert float(drops[b, t, m]) == pytest.approx(max(0.0, whole - dark) / whole, abs=1e-4)
        assert float(rises[b, t, m]) == float(grey > whole)
    assert win(torch.tensor([0.1, 0.5, 0.2, 0.3]), torch.tensor([0.2, 0.4, 0.2, 0.9])) == 0.5
    with pytest.raises(hp.InputError, match="cannot be mixed"):
        AverageDrop("linear")


def test_max_sensitivity_of_a_linear_method():
    asked = subject(targets=((1,), (2,)))
    seen = []

    def explain(x, rows):
        seen.append(x)
        return x.sum(1, keepdim=True)

    test = MaxSensitivity(radius=0.1, samples=4, seed=5)
    values = test(asked, explain).values
    assert values.shape == (2, 1, 1) and len(seen) == 5 and test.cost(asked) == 10
    noises = torch.stack(seen[1:]) - seen[0]
    assert float(noises.abs().max()) <= 0.1 + 1e-6 and float(noises.abs().max()) > 0.099
    for b in range(2):
        slow = max(float((noise[b].sum(0)).norm() / seen[0][b].sum(0).norm()) for noise in noises)
        assert float(values[b, 0, 0]) == pytest.approx(slow, rel=1e-4)
    nothing = MaxSensitivity()(asked, lambda x, rows: torch.zeros(len(x), 1, 3, 3)).values
    assert float(nothing.max()) == 0
    with pytest.raises(hp.InputError, match="expected a tensor of maps"):
        MaxSensitivity()(asked, lambda x, rows: x[0])


def test_max_sensitivity_of_a_method_of_ours():
    asked = subject(targets=((1, 0), (2, 3)))
    model = hp.wrap(tiny.seeded(tiny.HeadNet))

    def explain(x, rows):
        return hp.explain(model, x, method="gradient", target=asked.targets[rows].tolist()).maps

    values = MaxSensitivity(samples=3)(asked, explain).values
    assert values.shape == (2, 2, 1) and (values > 0).all() and (values < 2).all()


def vit_without(net: tiny.TinyViT, x: torch.Tensor, kept: list[int]) -> torch.Tensor:
    """The forward of the tiny transformer, written out, on some of its patches."""
    tokens = net.patch(x[None]).flatten(2).transpose(1, 2)
    tokens = torch.cat([net.prefix, tokens], 1) + net.position
    tokens = tokens[:, [0, 1, 2, *(3 + k for k in kept)]]
    for block in net.blocks:
        tokens = block(tokens)
    return net.head(net.norm(tokens)[:, 0])[0].detach()


def test_token_dropping_against_a_forward_with_fewer_tokens():
    net, asked = tiny.seeded(tiny.TinyViT), subject(tiny.TinyViT)
    maps, test = random_maps((2, 2, 3)), TokenDropping(fractions=(0.2, 0.6))
    before = asked.forwards
    result = test(asked, maps)
    assert asked.forwards == before + test.cost(asked, 3) and result.fractions.tolist() == pytest.approx([0, 0.2, 0.6])
    for b, t, m in np.ndindex(2, 2, 3):
        worth = [float(maps[b, t, m, i : i + 8, j : j + 8].mean()) for i in range(0, 24, 8) for j in range(0, 40, 8)]
        order, target = sorted(range(15), key=lambda k: -worth[k]), int(asked.targets[b, t])
        for s, count in enumerate((0, 3, 9)):
            most = vit_without(net, asked.x[b], sorted(order[count:])).softmax(0)[target]
            least = vit_without(net, asked.x[b], sorted(order[: 15 - count])).softmax(0)[target]
            assert float(result.parts["most"][b, t, m, s]) == pytest.approx(float(most), abs=1e-5)
            assert float(result.parts["least"][b, t, m, s]) == pytest.approx(float(least), abs=1e-5)
    half = (result.parts["least"] - result.parts["most"]) / 2
    area = (0.2 * (half[..., 0] + half[..., 1]) / 2 + 0.4 * (half[..., 1] + half[..., 2]) / 2) / 0.6
    torch.testing.assert_close(result.values, area, atol=1e-6, rtol=1e-4)
    assert not any(m._forward_pre_hooks for m in asked.module.modules())


class Relative(tiny.TinyViT):
    """Positions that the blocks add themselves: tokens are no set."""

    def forward(self, x):
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2)], 1)
        for block in self.blocks:
            tokens = block(tokens + self.position)
        return self.head(self.norm(tokens)[:, 0])


def test_tokens_that_are_no_set_are_not_dropped():
    for net in (tiny.GapNet, Relative):
        with pytest.raises(hp.MethodError, match="use road or deletion"):
            TokenDropping()(subject(net), random_maps((2, 2, 1)))


@pytest.mark.parametrize("library", ["timm", "transformers", "torchvision", "open_clip"])
def test_the_place_where_tokens_leave_is_found(library):
    pytest.importorskip(library)
    target = torch.tensor([[0]])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(1, 3, 32, 48)
        if library == "timm":
            import timm

            options = dict(img_size=(32, 48), patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=4)
            model = hp.wrap(timm.models.VisionTransformer(**options, reg_tokens=2).eval())
        elif library == "transformers":
            from transformers import DeiTConfig, DeiTForImageClassification

            sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48)
            model = hp.wrap(DeiTForImageClassification(DeiTConfig(image_size=(32, 48), patch_size=8, **sizes)).eval())
        elif library == "torchvision":
            from torchvision.models import VisionTransformer

            net, x = VisionTransformer(32, 8, 2, 3, 24, 48, num_classes=4), x[..., :32]
            nn.init.normal_(net.heads.head.weight)
            model = hp.wrap(net.eval())
        else:
            import open_clip

            vision = dict(image_size=(32, 48), layers=2, width=24, head_width=8, patch_size=8)
            text = dict(context_length=8, vocab_size=49408, width=16, heads=2, layers=1)
            net = open_clip.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text).eval()
            model = hp.wrap(net, tokenizer=open_clip.SimpleTokenizer(context_length=8), prompts=["a cat", "snow", "a red ball"])
    asked = Subject(model, x, target)
    place = find_place(asked)
    assert place.site.height == 4 and place.site.width == x.shape[-1] // 8
    assert place.site.prefix == {"timm": 3, "transformers": 2}.get(library, 1)
    result = TokenDropping((0.5,))(asked, torch.randn(1, 1, 2, *x.shape[-2:], generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(result.values).all() and result.values.abs().max() > 0


def test_every_test_is_in_the_table_and_keeps_its_promises():
    asked = subject(tiny.TinyViT)
    maps = random_maps((2, 2, 2))
    before = [p.clone() for p in asked.model.module.parameters()]
    for name, kind in TESTS.items():
        test = kind()
        assert isinstance(test, Intervention) and test.name == name and hash(test) == hash(kind())
        if hasattr(test, "steps"):
            test = kind(steps=6)
        start = asked.forwards
        result = test(asked, maps)
        assert asked.forwards - start == test.cost(asked, 2), name
        assert result.values.shape == (2, 2, 2) and torch.isfinite(result.values).all()
        assert result.higher_is_better is test.higher_is_better
        if result.curves is not None:
            assert result.curves.shape == (2, 2, 2, len(result.fractions))
        for said in ("Misleads", "Paper:", "`values`", "\n    `"):
            assert said in kind.__doc__, (name, said)
        torch.testing.assert_close(kind(**vars(test))(asked, maps).values, result.values, atol=1e-5, rtol=1e-4)
        # a map does not notice the others
        torch.testing.assert_close(test(asked, maps[:, :, 1:]).values[:, :, 0], result.values[:, :, 1], atol=1e-4, rtol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, asked.model.module.parameters(), strict=True))
    assert list(build(["road", Infidelity(samples=3)])) == ["road", "infidelity"]
    with pytest.raises(hp.MethodError, match="Did you mean 'deletion'"):
        build(["deletoin"])
    assert all(f"| `{name}` |" in markdown() for name in TESTS | OF_METHODS)


def test_progress_counts_every_image():
    counts = []
    asked = subject(progress=counts.append, batch_size=5)
    SensitivityN(fractions=(0.3,), samples=9, side=6)(asked, random_maps((2, 2, 1)))
    assert sum(counts) == asked.forwards == 20 and max(counts) == 5


def test_too_small_images_say_so():
    for test in (Infidelity(side=25), SensitivityN(side=64)):
        with pytest.raises(hp.InputError, match="smaller"):
            test(subject(), random_maps((2, 2, 1)))
