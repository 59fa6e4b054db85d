"""Verdicts: uniform on maps that know nothing, powerful on evidence that is known exactly, and plain about everything else."""

import json
import warnings

import pytest
import torch
from scipy.stats import kstest
from torch import nn

import heatproof as hp
from heatproof.proof.curves import Road
from heatproof.proof.maps import ranks
from heatproof.proof.placements import placements
from heatproof.proof.regions import PARTS, marked
from heatproof.proof.spectrum import matched_spectrum
from heatproof.proof.trial import veil
from tiny import GapNet, HeadNet, TinyViT, images, seeded

QUICK = {"tests": [], "budget": 103}


def smooth(count, height, width, sigma, seed=0):
    """Gaussian fields on a torus: maps of unknown origin, as likely here as there."""
    noise = torch.randn(count, height, width, generator=torch.Generator().manual_seed(seed))
    v, u = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)
    low = torch.exp(-2 * (torch.pi * sigma) ** 2 * (u**2 + v**2))
    return torch.fft.ifft2(torch.fft.fft2(noise) * low).real


class Detector(nn.Module):
    """Looks for a 6×6 pattern of +1 and −1: class 0 scores `f(Σ relu(match − ½))`, with every weight set by hand.

    What it looks at is known exactly: the pixels where a pattern stands, and no others.
    """

    def __init__(self, saturation=0.0):
        super().__init__()
        signs = torch.randn(6, 6, generator=torch.Generator().manual_seed(5)).sign()
        self.register_buffer("pattern", signs - signs.mean())
        self.saturation = saturation

    def forward(self, x):
        weight = (self.pattern / self.pattern.square().sum() / 3).expand(1, 3, -1, -1)
        match = nn.functional.conv2d(x, weight)
        found = (match - 0.5).relu().flatten(1).sum(1, keepdim=True) * 2
        if self.saturation:  # one of several patterns is evidence enough
            found = (self.saturation * found).tanh()
        return torch.cat([found, torch.zeros_like(found)], 1)

    def scenes(self, count, patterns, seed):
        chance = torch.Generator().manual_seed(seed)
        x = 0.15 * torch.randn(count, 1, 40, 56, generator=chance).expand(-1, 3, -1, -1)
        x, mask = x.clone(), torch.zeros(count, 40, 56)
        for n in range(count):
            for _ in range(patterns):
                top, left = (int(torch.randint(side - 5, (1,), generator=chance)) for side in (40, 56))
                x[n, :, top : top + 6, left : left + 6] = self.pattern
                mask[n, top : top + 6, left : left + 6] = 1
        return x, mask


def test_p_is_uniform_on_maps_that_know_nothing():
    x = images(2)[:1].expand(200, -1, -1, -1)
    verdict = hp.prove(seeded(HeadNet), x, smooth(200, 24, 40, 2.0), target=0, tests=[], budget=150)
    if verdict.states[0][0] == "nothing to explain":
        verdict = hp.prove(seeded(HeadNet), x, smooth(200, 24, 40, 2.0), tests=[], budget=150)
    p, copies = verdict.p_value[:, 0], verdict.null.shape[-1]
    # p takes the values 1/(K+1) … 1; half a step less is uniform on [0, 1] but for the steps
    assert kstest(p.numpy() - 0.5 / (copies + 1), "uniform").pvalue > 0.05
    assert (p <= 0.05).double().mean() < 0.1


@pytest.mark.parametrize("saturation, patterns", [(0.0, 1), (0.0, 3), (2.0, 3)])
@pytest.mark.parametrize("kind", ["mask", "soft", "noisy"])
def test_true_maps_are_supported(saturation, patterns, kind):
    net = Detector(saturation)
    x, mask = net.scenes(40, patterns, seed=7)
    if kind != "mask":
        mask = nn.functional.avg_pool2d(nn.functional.avg_pool2d(mask[:, None], 5, 1, 2), 5, 1, 2)[:, 0]
    if kind == "noisy":
        mask = mask + 0.15 * smooth(40, 40, 56, 1.0, seed=8).mul(8).clamp_min(0)
    verdict = hp.prove(net, x, mask, target=0, tests=[], budget=200)
    assert verdict.supported.double().mean() >= 0.9
    assert (verdict.p_value[verdict.supported] <= 0.05).all()


def test_misplaced_maps_are_not_supported():
    net = Detector()
    x, mask = net.scenes(40, 1, seed=9)
    verdict = hp.prove(net, x, mask.roll((17, 23), (1, 2)), target=0, **QUICK)
    assert verdict.supported.double().mean() <= 0.15


def slow_effect(net, x, target, regions, fill):
    """φ, image by image: what is lost without the region, what is kept by it alone."""
    with torch.no_grad():
        score = lambda image: float(net(image[None].clone())[0, target])  # noqa: E731
        found = []
        for region in regions:
            without, alone = torch.where(region, fill, x), torch.where(region, x, fill)
            found.append((score(x) - score(without) + score(alone) - score(fill)) / 2)
    return sum(found) / len(found)


def test_effects_and_nulls_by_hand():
    net, x = seeded(HeadNet), images(2)
    maps = smooth(4, 24, 40, 2.0, seed=3).view(2, 2, 24, 40)
    verdict = hp.prove(net, x, maps, target=[[0, 3], [4, 1]], seed=5, tests=[], budget=120)
    fill = veil((24, 40))(x, torch.ones(2, 24, 40, dtype=torch.bool))
    ignorant = hp.explain(None, hp.wrap(net).preprocess.pixels(x), method=["center", "edges"])
    for b in range(2):
        for t, target in enumerate([[0, 3], [4, 1]][b]):
            regions = torch.stack([marked(maps[b, t], part) for part in PARTS])
            assert float(verdict.effect[b, t]) == pytest.approx(slow_effect(net, x[b], target, regions, fill[b]), abs=1e-5)
            places = placements(regions[-1], verdict.null.shape[-1], 5)
            for k in (0, 7, len(places) - 1):
                slow = slow_effect(net, x[b], target, places[k](regions), fill[b])
                assert float(verdict.null[b, t, k]) == pytest.approx(slow, abs=1e-5)
            for name, other in ignorant.items():
                top = ranks(other.maps[b, 0], 5) < regions.flatten(1).sum(1)[:, None, None]
                assert float(verdict.rivals[name][b, t]) == pytest.approx(slow_effect(net, x[b], target, top, fill[b]), abs=1e-5)
            everything = slow_effect(net, x[b], target, [torch.ones(24, 40, dtype=torch.bool)], fill[b])
            assert float(verdict.whole[b, t]) == pytest.approx(everything, abs=1e-5)
    counted = (1 + (verdict.null >= verdict.effect[..., None]).sum(-1)) / (1 + verdict.null.shape[-1])
    torch.testing.assert_close(verdict.p_value, counted.double())
    half = (verdict.tests["necessity"].values + verdict.tests["sufficiency"].values) / 2
    torch.testing.assert_close(half, verdict.effect)


def test_on_an_additive_model_the_effect_is_what_the_pixels_add():
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 40, 2)))
    x, maps = images(1), smooth(1, 24, 40, 2.0)
    verdict = hp.prove(net, x, maps, target=0, **QUICK)
    fill = veil((24, 40))(x, torch.ones(1, 24, 40, dtype=torch.bool))
    added = (net[1].weight[0].view(3, 24, 40) * (x - fill)[0]).sum(0).detach()
    expected = sum(float(added[marked(maps[0], part)].sum()) for part in PARTS) / len(PARTS)
    assert float(verdict.effect) == pytest.approx(expected, abs=1e-4)
    for name in ("necessity", "sufficiency"):
        assert float(verdict.tests[name].values) == pytest.approx(expected, abs=1e-4)


def test_evidence_that_exists_twice_is_half_the_score_and_not_nothing():
    net = Detector(saturation=20.0)
    x, mask = torch.zeros(1, 3, 40, 56), torch.zeros(1, 40, 56)
    for left in (6, 40):
        x[0, :, 10:16, left : left + 6] = net.pattern
    mask[0, 10:16, 6:12] = 1
    verdict = hp.prove(net, x, mask, target=0, **QUICK)
    assert float(verdict.tests["necessity"].values) == pytest.approx(0, abs=1e-3)
    assert float(verdict.effect / verdict.whole) == pytest.approx(0.5, abs=1e-3) and bool(verdict.supported)


def test_the_sentence_says_what_was_found():
    net = Detector()
    x, mask = net.scenes(1, 1, seed=3)
    verdict = hp.prove(net, x, mask, target=0, **QUICK)
    said = verdict.sentences[0][0]
    assert said.startswith("removing the marked 2 % costs 1.00 of the score; a random region of the same shape costs 0.0")
    assert "p = 0.05 (0 to 0.18 with 19 copies): supported" in said and bool(verdict.supported)
    assert verdict.table[0] | {"value": 0, "null": 0, "null_sd": 0, "p_high": 0} == {
        "image": "0", "target": "class 0", "test": "effect", "value": 0, "null": 0, "null_sd": 0, "copies": 19, "p": 0.05,
        "p_low": 0.0, "p_high": 0, "finest_p": 0.05, "higher_is_better": True,
    }  # fmt: skip
    elsewhere = hp.prove(net, x, mask.roll((20, 28), (1, 2)), target=0, **QUICK)
    assert "not supported" in elsewhere.sentences[0][0] and "costs 0.00 of the score" in elsewhere.sentences[0][0]


def test_a_rival_that_does_as_well_is_named():
    class Middle(nn.Module):
        def forward(self, x):
            return torch.cat([x[:, :, 9:15, 14:26].mean((1, 2, 3))[:, None], x.new_zeros(len(x), 1)], 1)

    x = torch.zeros(1, 3, 24, 40)
    x[:, :, 8:16, 12:28] = 1
    heat = torch.zeros(1, 24, 40)
    heat[:, 9:15, 14:26] = 1
    assert "center" not in hp.prove(Middle(), x, heat, target=0, **QUICK).sentences[0][0]
    said = hp.prove(Middle(), x, heat.roll((6, 6), (1, 2)), target=0, **QUICK).sentences[0][0]
    assert "as much is lost by following center" in said and "ignore" in said


def test_the_named_tests_their_curves_and_their_nulls():
    net, x = seeded(HeadNet), images(2)
    ex = hp.explain(net, x, method="gradcam")
    verdict = hp.prove(net, x, ex)
    assert list(verdict.tests) == ["necessity", "sufficiency", "texture", "deletion", "insertion"]
    for name, falls in (("deletion", True), ("insertion", False)):
        one = verdict.tests[name]
        assert one.higher_is_better != falls and one.values.shape == (2, 1) and one.nulls.shape[-1] >= 3
        assert one.curves.shape == (2, 1, len(one.fractions)) and one.null_curves.shape == (*one.nulls.shape, len(one.fractions))
        assert float(one.curves[0, 0, 0 if falls else -1]) == pytest.approx(net(x).softmax(1).max(1).values[0].item(), abs=1e-5)
        assert ((one.p_value >= 1 / (1 + one.nulls.shape[-1])) & (one.p_value <= 1)).all()
    assert verdict.forwards <= 2 * 400
    other = hp.prove(net, x, ex, tests=["pixel-flipping", Road(fractions=(0.2, 0.5))], budget=300)
    assert {"pixel-flipping", "road"} <= set(other.tests) and other.tests["road"].curves.shape == (2, 1, 2)
    with pytest.raises(hp.MethodError, match="Did you mean 'deletion'"):
        hp.prove(net, x, ex, tests="deletoin")


@pytest.mark.parametrize("budget", [103, 250, 400, 1000])
def test_the_budget_is_kept_and_buys_a_finer_p(budget):
    net, x = seeded(GapNet), images(1)
    verdict = hp.prove(net, x, smooth(1, 24, 40, 2.0), tests=[], budget=budget)
    assert 0.9 * budget < verdict.forwards <= budget
    low, high = verdict.p_interval[0, 0].tolist()
    assert (verdict.null.shape[-1] > budget / 6 and low <= float(verdict.p_value) <= high) or verdict.p_value == 1


@pytest.mark.parametrize("budget", [135, 400])
def test_tests_that_share_their_forwards_have_a_null_at_any_budget(budget):
    names = ["infidelity", "sensitivity-n", "road", "deletion"]
    verdict = hp.prove(seeded(HeadNet), images(1), smooth(1, 24, 40, 2.0), tests=names, budget=budget)
    for name in names[:2]:
        one = verdict.tests[name]
        assert one.nulls.shape[-1] >= 19 and torch.isfinite(one.nulls).all() and 1 / 40 <= float(one.p_value) <= 1
    assert (verdict.tests["road"].fractions.numel() < 9) and verdict.tests["road"].nulls.shape[-1] >= (budget == 400)
    road = hp.prove(seeded(HeadNet), images(1), smooth(1, 24, 40, 2.0), tests="road").tests["road"]
    assert road.fractions.numel() >= 5 and road.nulls.shape[-1] >= 4 and float(road.fractions[-1]) == pytest.approx(0.9)
    alone = hp.prove(seeded(HeadNet), images(1), smooth(1, 24, 40, 2.0), tests=["infidelity"], budget=400)
    assert alone.tests["infidelity"].nulls.shape[-1] == 39 and 0.9 * 400 < alone.forwards <= 400


def test_at_the_default_budget_every_p_can_reach_what_is_called_supported():
    verdict = hp.prove(seeded(HeadNet), images(1), smooth(1, 24, 40, 2.0))
    assert set(verdict.tests) == {"necessity", "sufficiency", "texture", "deletion", "insertion"}
    for one in verdict.tests.values():
        assert 1 / (1 + int(torch.isfinite(one.nulls[0, 0]).sum())) <= 0.05
    assert verdict.forwards <= 400 and all(row["finest_p"] <= 0.05 for row in verdict.table)
    for name in ("deletion", "insertion", "pixel-flipping", "average-drop", "infidelity", "sensitivity-n"):
        alone = hp.prove(seeded(HeadNet), images(1), smooth(1, 24, 40, 2.0), tests=name)
        assert alone.tests[name].nulls.shape[-1] >= 19 and alone.forwards <= 400


def test_fewer_squares_are_larger_ones_that_cover_as_much():
    from heatproof.proof.curves import PixelFlipping
    from heatproof.proof.plan import fitted
    from heatproof.proof.subject import Subject

    subject = Subject(hp.wrap(seeded(GapNet)), torch.rand(1, 3, 120, 180), torch.tensor([[0]]))
    flipping, copies = fitted(PixelFlipping(), True, subject, 60, 99)
    assert flipping.regions == 3 and flipping.repeats == 1 and copies == 19
    assert flipping.regions * flipping.side**2 == pytest.approx(100 * 9**2, rel=0.1)


def test_a_large_budget_draws_no_more_random_maps_at_once(monkeypatch):
    import heatproof.proof.trial as trial

    drawn = []

    def spy(map, count, seed):
        drawn.append((count, seed))
        return matched_spectrum(map, count, seed)

    monkeypatch.setattr(trial, "matched_spectrum", spy)
    verdict = hp.prove(seeded(GapNet), images(1), smooth(1, 24, 40, 2.0), tests=[], budget=1500, seed=7)
    assert max(count for count, _ in drawn) == 16 and len({seed for _, seed in drawn}) == len(drawn) > 1
    nulls = verdict.tests["texture"].nulls[0, 0]
    assert sum(count for count, _ in drawn) == len(nulls) == len(nulls.unique())


@pytest.mark.parametrize("budget", [0, -5, True, 102])
def test_a_budget_that_p_cannot_be_had_for(budget):
    with pytest.raises(hp.InputError, match="budget="):
        hp.prove(seeded(GapNet), images(1), smooth(1, 24, 40, 2.0), tests=[], budget=budget)


def test_the_same_seed_the_same_verdict_whatever_else_is_in_the_batch():
    net, x, maps = seeded(TinyViT), images(3), smooth(3, 24, 40, 2.0)
    state = torch.get_rng_state()
    together = hp.prove(net, x, maps, target=[0, 1, 2], seed=4, **QUICK)
    alone = hp.prove(net, x[1:2], maps[1:2], target=1, seed=4, **QUICK)
    torch.testing.assert_close(together.null[1], alone.null[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(hp.prove(net, x, maps, target=[0, 1, 2], seed=4, **QUICK).null, together.null)
    assert not torch.equal(hp.prove(net, x, maps, target=[0, 1, 2], seed=5, **QUICK).null, together.null)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_users_model_is_not_touched():
    net = seeded(GapNet).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hp.prove(net, images(1), smooth(1, 24, 40, 2.0), **QUICK)
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_saved_and_loaded_it_is_the_same(tmp_path):
    net, x = seeded(GapNet), images(2)
    maps = smooth(2, 24, 40, 2.0)
    maps[1] = torch.nan
    verdict = hp.prove(net, x, maps)
    again = hp.Verdict.load(verdict.save(tmp_path / "one.safetensors"))
    assert repr(again) == repr(verdict) and again.to_json() == verdict.to_json()
    assert torch.equal(again.null[0], verdict.null[0]) and list(again.tests) == list(verdict.tests)
    document = json.loads(verdict.save(tmp_path / "one.json").read_text("utf-8"))
    assert document["p_value"] == [[float(verdict.p_value[0, 0])], [None]] and document["states"][1] == ["no verdict"]
    with pytest.raises(hp.InputError, match="choose another place"):
        verdict.save(tmp_path / "nowhere" / "one.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(hp.InputError, match="cannot be read as a verdict"):
        hp.Verdict.load(tmp_path / "bad.safetensors")
    with pytest.raises(hp.InputError, match="is not a verdict"):
        hp.Verdict.load(hp.explain(net, x).save(tmp_path / "ex.safetensors"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.safetensors", "ex.safetensors", "one.json", "one.safetensors"]
