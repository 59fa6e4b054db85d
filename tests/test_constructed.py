"""The constructed networks keep what they say of themselves, and the scatter shows where derivative and intervention part."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import heatproof as hp
import tiny
from heatproof.models.planted.constructed import CONSTRUCTED, GAIN
from heatproof.proof.infill import Black, infill
from heatproof.proof.scatter import rank_correlation, scatter, superpixels
from heatproof.proof.subject import Subject
from heatproof.report.scatter import draw_scatter


@pytest.fixture(params=[((32, 48), 0), ((40, 24), 3), ((24, 24), 8)], ids=str)
def case(request):
    size, seed = request.param
    return lambda name: CONSTRUCTED[name](size=size, seed=seed)


def score_without(one, *masks: torch.Tensor) -> float:
    x = one.x.clone()
    for mask in masks:
        x[:, :, mask] = 0
    return float(one.model.scores(x)[0, one.target])


def gradient(one) -> torch.Tensor:
    return hp.explain(one.model, one.x, method="gradient", target=one.target).raw[0, 0].abs().amax(0)


@pytest.mark.parametrize("name", sorted(CONSTRUCTED))
def test_all_of_the_score_is_in_the_evidence(case, name):
    one = case(name)
    whole = float(one.model.scores(one.x)[0, 0])
    assert whole == pytest.approx(GAIN, rel=0.3) and float(one.model.scores(one.x)[0, 1]) == GAIN / 2
    assert score_without(one, one.evidence) < 0.02 * GAIN
    background = ~one.evidence & ~torch.stack([one.evidence, *one.others.values()]).any(0)
    assert score_without(one, background) == pytest.approx(whole, abs=1e-4)
    assert 0 < int(one.evidence.sum()) < one.evidence.numel() / 4 and one.evidence.shape == one.x.shape[-2:]
    again = CONSTRUCTED[name](size=tuple(one.x.shape[-2:]), seed=77)
    assert not torch.equal(again.evidence, one.evidence)


def test_saturated_neuron_has_no_gradient_and_all_of_the_effect(case):
    one = case("saturated")
    assert float(gradient(one).abs().max()) == 0
    assert score_without(one, one.evidence) == pytest.approx(0, abs=1e-4)


def test_spurious_pixel_has_the_steepest_gradient_and_next_to_no_effect(case):
    one = case("spurious")
    slope, pixel = gradient(one), one.others["spurious"]
    one_of_the_evidence = float(slope[one.evidence].max())
    assert float(slope[pixel]) == pytest.approx(24 * one_of_the_evidence, rel=1e-3)
    whole = float(one.model.scores(one.x)[0, 0])
    single = torch.zeros_like(pixel)
    single[tuple(one.evidence.nonzero()[0])] = True
    worth = whole - score_without(one, single)
    for value in torch.linspace(0, 1, 21):
        x = one.x.clone()
        x[0, 2, pixel] = value
        assert abs(whole - float(one.model.scores(x)[0, 0])) < 0.25 * worth


def test_redundant_evidence_costs_nothing_alone(case):
    one = case("redundant")
    red, green = one.others["red"], one.others["green"]
    for single in (red, green):
        assert score_without(one, single) == pytest.approx(GAIN, abs=1e-3)
    assert score_without(one, red, green) == pytest.approx(0, abs=1e-4)
    slope = gradient(one)
    assert (float(slope[red].max()) == 0) != (float(slope[green].max()) == 0)


def test_suppressor_raises_the_score_when_it_goes(case):
    one = case("suppressor")
    assert score_without(one, one.others["suppressor"]) > GAIN + 1
    shares = hp.explain(one.model, one.x, method="gradient-x-input", target=0).maps[0, 0]
    assert float(shares[one.others["suppressor"]].max()) <= 0 < float(shares[one.evidence].min())


def test_additive_model_is_worth_what_it_says(case):
    one = case("additive")
    whole = float(one.model.scores(one.x)[0, 0])
    assert float(one.worth.sum()) == pytest.approx(whole, abs=1e-4)
    for row, column in ((0, 0), one.evidence.nonzero()[3].tolist(), one.others["against"].nonzero()[5].tolist()):
        single = torch.zeros_like(one.evidence)
        single[row, column] = True
        assert whole - score_without(one, single) == pytest.approx(float(one.worth[row, column]), abs=1e-4)
    shares = hp.explain(one.model, one.x, method="gradient-x-input", target=0)
    torch.testing.assert_close(shares.maps[0, 0], one.worth, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", ["gradcam", "layercam", "scorecam", "lrp", "integrated-gradients", "spectral-residual"])
def test_every_family_runs_on_them(method):
    for make in CONSTRUCTED.values():
        one = make()
        maps = hp.explain(one.model, one.x, method=method, target=one.target).maps
        assert maps.shape == (1, 1, 32, 48) and torch.isfinite(maps).all()


def test_scatter_region_by_region():
    net = tiny.seeded(tiny.HeadNet).requires_grad_(False)
    asked = Subject(hp.wrap(net), tiny.images(2), torch.tensor([[1, 4], [2, 0]]), batch_size=7)
    maps = torch.randn(2, 2, *tiny.SIZE, generator=torch.Generator().manual_seed(3))
    found = scatter(asked, maps, 9, "mean")
    assert found.effect.shape == (2, 2, 15) and asked.forwards == 2 + 30
    for b, t in np.ndindex(2, 2):
        for region in range(15):
            mask = torch.zeros(*tiny.SIZE, dtype=torch.bool)
            top, left = region // 5 * 9, region % 5 * 9
            mask[top : top + 9, left : left + 9] = True
            assert torch.equal(found.regions[b] == region, mask)
            edited = infill("mean")(asked.x[b : b + 1], mask[None])
            loss = float(asked.scores[b, t] - net(edited)[0, asked.targets[b, t]])
            assert float(found.effect[b, t, region]) == pytest.approx(loss, abs=1e-5)
            assert float(found.sensitivity[b, t, region]) == pytest.approx(float(maps[b, t][mask].abs().sum()), rel=1e-4)
        slow = spearmanr(found.sensitivity[b, t], found.effect[b, t].abs()).statistic
        assert float(found.correlation[b, t]) == pytest.approx(slow, abs=1e-5)
    steep = scatter(asked, None, 9).sensitivity
    gradients = hp.explain(asked.model, asked.x, method="gradient", target=asked.targets.tolist()).raw.abs().sum(2)
    torch.testing.assert_close(steep, scatter(asked, gradients, 9).sensitivity, rtol=1e-4, atol=1e-6)


def test_scatter_takes_regions_of_any_kind():
    asked = Subject(hp.wrap(tiny.seeded(tiny.HeadNet)), tiny.images(2), torch.tensor([[1], [2]]))
    labels = torch.zeros(2, *tiny.SIZE, dtype=torch.long)
    labels[0, :, 20:], labels[1, :, 10:20], labels[1, :, 20:] = 5, 2, 9
    found = scatter(asked, None, labels)
    assert found.effect.shape == (2, 1, 3)
    assert found.effect[0, 0].isnan().tolist() == [False, False, True] == found.sensitivity[0, 0].isnan().tolist()
    assert not found.effect[1].isnan().any() and torch.isfinite(found.correlation).all()
    pixels = torch.zeros(1, 3, 40, 60)
    pixels[..., 30:] = 1
    regions = superpixels(pixels, 12)
    assert not set(regions[0, :, :29].flatten().tolist()) & set(regions[0, :, 31:].flatten().tolist())
    assert scatter(asked, None, "superpixels").effect.shape[2] > 10
    for wrong in ("pixels", labels.float(), labels[:, :5], 0):
        with pytest.raises(hp.InputError, match="expected"):
            scatter(asked, None, wrong)
    assert float(rank_correlation(torch.ones(5), torch.arange(5.0))) == 0


def test_scatter_tells_the_lectures_cases_apart(tmp_path):
    panels = {}
    for name, make in CONSTRUCTED.items():
        one = make((48, 64), seed=2)
        found = scatter(Subject(one.model, one.x, torch.tensor([[0]])), None, 4, Black())
        panels[name] = (found.sensitivity[0, 0], found.effect[0, 0], float(found.correlation[0, 0]))
    sensitivity, effect, correlation = panels["saturated"]
    assert float(sensitivity.max()) == 0 == correlation and float(effect.max()) > 0.05 * GAIN
    sensitivity, effect, _ = panels["spurious"]
    # a cell with a quarter of the steepest gradients or more, and the effect of a hundredth of the strongest cell
    odd = (sensitivity >= 0.25 * sensitivity.max()) & (effect.abs() < 0.02 * effect.max())
    assert int(odd.sum()) == 1
    assert float(panels["suppressor"][1].min()) < -0.1
    path = draw_scatter(panels, tmp_path / "scatter.png", "gradient against intervention")
    assert path.stat().st_size > 10_000
    with pytest.raises(hp.InputError, match="another place"):
        draw_scatter(panels, tmp_path / "none" / "scatter.png")
    with pytest.raises(hp.InputError, match="another ending"):
        draw_scatter(panels, tmp_path / "scatter.doc")
