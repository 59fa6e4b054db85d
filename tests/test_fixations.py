"""Scores against human fixations: solved by hand, and against slow versions of what the benchmark's code does."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import heatproof as hp
from heatproof.cli import main
from heatproof.proof import fixations as F
from heatproof.proof.bootstrap import Mean, bootstrap_mean
from heatproof.proof.fixation_data import read_fixations
from heatproof.scale import fixations as scale

HUMAN = os.environ.get("HEATPROOF_FIXATIONS", "")
"""A folder of images and human fixations, as docs/fixations.md describes it."""


def case(seed=0, shape=(11, 17), count=9, levels=None):
    """A map with structure, points that agree with it somewhat, one pixel fixated twice, one point outside."""
    chance = np.random.default_rng(seed)
    heat = chance.random(shape)
    if levels:
        heat = np.floor(heat * levels)
    order = np.argsort(-(heat + chance.random(shape)), axis=None)[:count]
    points = np.stack(np.unravel_index(order, shape), 1) + chance.random((count, 2))
    return heat, np.concatenate([points, np.floor(points[:1]) + 0.5, [[-3.0, 2.0]]])


def fixated(points, shape):
    result = np.zeros(shape, bool)
    for r, c in points:
        if 0 <= r < shape[0] and 0 <= c < shape[1]:
            result[int(r), int(c)] = True
    return result


def judd_by_thresholds(heat, hit):
    """One threshold per fixated pixel, from the highest down; trapezoids."""
    values = sorted(heat[hit], reverse=True)
    n, total = len(values), heat.size
    tp, fp = [0.0], [0.0]
    for rank, t in enumerate(values, 1):
        above = int((heat >= t).sum())
        tp.append(rank / n)
        fp.append((above - rank) / (total - n))
    tp.append(1.0)
    fp.append(1.0)
    return sum((fp[k + 1] - fp[k]) * (tp[k + 1] + tp[k]) / 2 for k in range(len(tp) - 1))


@pytest.mark.parametrize("seed", range(5))
def test_auc_judd_by_thresholds(seed):
    heat, points = case(seed)
    assert F.auc_judd(heat, points) == pytest.approx(judd_by_thresholds(heat, fixated(points, heat.shape)), abs=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_auc_judd_is_the_mean_over_jitters(levels):
    heat, points = case(3, levels=levels)
    hit, chance = fixated(points, heat.shape), np.random.default_rng(0)
    jittered = [judd_by_thresholds(heat + 1e-7 * chance.random(heat.shape), hit) for _ in range(3000)]
    assert F.auc_judd(heat, points) == pytest.approx(np.mean(jittered), abs=4 * np.std(jittered) / 3000**0.5 + 1e-9)


def test_auc_judd_by_hand():
    """Values 4 3 2 1, fixated the first and third: from (0, ½) to (½, 1) a trapezoid of 3/8, then ½."""
    heat = np.array([[4.0, 3, 2, 1]])
    assert F.auc_judd(heat, [[0, 0], [0, 2]]) == pytest.approx(3 / 8 + 1 / 2)
    assert F.auc_judd(heat, [[0, 0]]) == 1 and F.auc_judd(heat, [[0.9, 3.9]]) == pytest.approx(1 / 2)
    with pytest.raises(hp.InputError, match="every pixel"):
        F.auc_judd(heat, [[0, k] for k in range(4)])


@pytest.mark.parametrize("levels", [None, 3])
def test_auc_uniform_by_pairs(levels):
    heat, points = case(1, levels=levels)
    inside = [(int(r), int(c)) for r, c in points if r >= 0]
    wins = [(heat[p] > v) + 0.5 * (heat[p] == v) for p in inside for v in heat.ravel()]
    assert F.auc_uniform(heat, points) == pytest.approx(np.mean(wins))
    assert F.auc_uniform(np.zeros((4, 5)), [[1, 1]]) == 0.5


def stepped_by_loops(positive, negative, step):
    thresholds, k = [], 0
    while k * step <= max(max(positive), max(negative)) + 1e-12:
        thresholds.insert(0, k * step)
        k += 1
    curve = [(0.0, 0.0)]
    for t in thresholds:
        curve.append((np.mean([v >= t - 1e-12 for v in negative]), np.mean([v >= t - 1e-12 for v in positive])))
    curve.append((1.0, 1.0))
    return sum((b[0] - a[0]) * (b[1] + a[1]) / 2 for a, b in itertools.pairwise(curve))


@pytest.mark.parametrize("step", [0.1, 0.25])
def test_auc_borji_by_loops(step):
    heat, points = case(2)
    hit = fixated(points, heat.shape)
    flat = ((heat - heat.min()) / (heat.max() - heat.min())).ravel()
    chance, splits = np.random.default_rng(5), []
    for _ in range(20):
        splits.append(stepped_by_loops(flat[hit.ravel()], flat[chance.integers(flat.size, size=hit.sum())], step))
    assert F.auc_borji(heat, points, splits=20, seed=5, step=step) == pytest.approx(np.mean(splits))


def test_auc_borji_tends_to_the_uniform_one_and_coarse_steps_underestimate():
    heat, points = case(4)
    once = np.unique(np.floor(points), axis=0)
    assert F.auc_borji(heat, points, splits=3000) == pytest.approx(F.auc_uniform(heat, once), abs=0.01)
    assert F.auc_borji(heat**40, points, step=0.1) < F.auc_borji(heat**40, points)
    assert F.auc_borji(heat, points, seed=1) == F.auc_borji(heat, points, seed=1) != F.auc_borji(heat, points, seed=2)


def test_auc_shuffled_by_pairs_and_by_draws():
    heat, points = case(6)
    others = np.random.default_rng(0).random((40, 2)) * heat.shape
    hit = fixated(points, heat.shape)
    elsewhere = [heat[int(r), int(c)] for r, c in others]
    wins = [(p > v) + 0.5 * (p == v) for p in heat[hit] for v in elsewhere]
    assert F.auc_shuffled(heat, points, others) == pytest.approx(np.mean(wins))
    assert F.auc_shuffled(heat, points, others, splits=3000) == pytest.approx(np.mean(wins), abs=0.02)
    assert F.auc_shuffled(F.centre_prior(heat.shape), points, points[:9]) == pytest.approx(0.5)


def test_nss_by_hand():
    """1 2 3 4: mean 5/2, variance 5/3 with one degree of freedom less."""
    heat = np.array([[1.0, 2], [3, 4]])
    assert F.nss(heat, [[1, 1]]) == pytest.approx(1.5 / (5 / 3) ** 0.5)
    assert F.nss(heat, [[1, 1], [1.5, 1.5], [0, 0]]) == pytest.approx(0)  # a pixel counts once
    assert F.nss(np.ones((3, 3)), [[1, 1]]) == 0
    assert F.nss(heat * 7 - 3, [[1, 0]]) == pytest.approx(F.nss(heat, [[1, 0]]))


def test_cc_is_numpys_and_zero_for_a_constant_map():
    p, q = case(0)[0], case(1)[0]
    assert F.cc(p, q) == pytest.approx(np.corrcoef(p.ravel(), q.ravel())[0, 1])
    assert F.cc(p, 3 * p + 1) == pytest.approx(1) and F.cc(p, -p) == pytest.approx(-1) and F.cc(p, np.ones_like(p)) == 0


def test_sim_by_hand():
    """Stretched: (0 1 1) and (1 1 0), so halves; they share the middle one."""
    assert F.sim(np.array([[2.0, 5, 5]]), np.array([[1.0, 1, 0]])) == pytest.approx(0.5)
    p = case(0)[0]
    assert F.sim(p, 2 * p + 5) == pytest.approx(1)
    assert F.sim(np.zeros((1, 4)), np.array([[1.0, 0, 0, 0]])) == pytest.approx(0.25)


def test_kl_by_hand():
    """Q = ½ ½, P = ¼ ¾."""
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert F.kl(np.array([[1.0, 3]]), np.array([[2.0, 2]])) == pytest.approx(expected)
    assert F.kl(np.array([[1.0, 3]]), np.array([[1.0, 3]])) == pytest.approx(0, abs=1e-12)
    assert F.kl(np.array([[0.0, 1]]), np.array([[1.0, 0]])) == pytest.approx(np.log(1 / 2.2204e-16))
    with pytest.raises(hp.InputError, match="negative"):
        F.kl(np.array([[-1.0, 3]]), np.array([[1.0, 3]]))


def test_information_gain_by_hand():
    """P = 0 ¼ ¾ against B = ½ 0 ½ at the last pixel: log2(3/2)."""
    heat, prior = np.array([[1.0, 2, 4]]), np.array([[1.0, 0, 1]])
    assert F.information_gain(heat, [[0, 2]], prior) == pytest.approx(np.log2(1.5))
    assert F.information_gain(heat, [[0, 0]], prior) == pytest.approx(np.log2(2.2204e-16) + 1)
    mixed = np.log2(0.1 / 3) - np.log2(0.9 / 2 + 0.1 / 3)
    assert F.information_gain(heat, [[0, 0]], prior, floor=0.1) == pytest.approx(mixed)
    assert F.information_gain(prior, [[0, 2], [0, 1]], prior) == 0
    with pytest.raises(hp.InputError, match="floor=2"):
        F.information_gain(heat, [[0, 0]], prior, floor=2)


def test_density_by_loops():
    points = np.array([[3.2, 4.9], [3.2, 4.9], [10.0, 0.0], [99.0, 0.0]])
    found = F.fixation_density(points, (12, 15), sigma=1.5)
    expected = np.zeros((12, 15))
    for r, c in [(3, 4), (3, 4), (10, 0)]:
        # cut at four sigma, as the filter does
        for y in range(max(0, r - 6), min(12, r + 7)):
            for x in range(max(0, c - 6), min(15, c + 7)):
                expected[y, x] += np.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * 1.5**2))
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-9)
    assert found.sum() == pytest.approx(1)
    wide = F.fixation_density([[5, 500]], (11, 1024))  # one degree is 35 of 1024 pixels
    assert wide[5, 535] / wide[5, 500] == pytest.approx(np.exp(-0.5), rel=1e-3)


def test_the_centre_prior_is_the_baselines():
    ours = hp.explain(None, torch.zeros(3, 13, 20), method="center").map
    np.testing.assert_allclose(F.centre_prior((13, 20)), ours.numpy(), rtol=1e-5)


def test_tensors_and_what_cannot_be_scored():
    heat, points = case(0)
    tensor = torch.from_numpy(heat).float().requires_grad_()
    assert F.auc_judd(tensor, points) == pytest.approx(F.auc_judd(heat.astype(np.float32), points))
    for bad in (heat[0], np.full_like(heat, np.nan), np.zeros((0, 4))):
        with pytest.raises(hp.InputError, match="expected \\(H, W\\)"):
            F.nss(bad, points)
    with pytest.raises(hp.InputError, match="none of the 1 points is inside the map of 11×17"):
        F.nss(heat, [[40, 2]])
    with pytest.raises(hp.InputError, match="expected \\(N, 2\\)"):
        F.nss(heat, [1, 2])
    with pytest.raises(hp.InputError, match="expected one size"):
        F.cc(heat, heat[1:])
    with pytest.raises(hp.InputError, match="splits=0"):
        F.auc_borji(heat, points, splits=0)
    with pytest.raises(hp.InputError, match="step=0"):
        F.auc_borji(heat, points, step=0)


def test_bootstrap():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap_mean(values)
    assert found.value == pytest.approx(values.mean()) and found.count == 400
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert found == bootstrap_mean(values) and found != bootstrap_mean(values, seed=1)
    assert bootstrap_mean(np.array([2.0, np.nan])) == Mean(2, 2, 2, 1)
    assert np.isnan(bootstrap_mean(np.array([np.nan])).value)


@pytest.fixture
def folder(tmp_path):
    """Three small images in which people look at the white spot, and entries that cannot be used."""
    chance = np.random.default_rng(0)
    entries = {}
    (tmp_path / "images").mkdir()
    for n, (r, c) in enumerate([(10, 12), (30, 40), (22, 25)]):
        image = chance.integers(0, 60, size=(44, 60, 3)).astype(np.uint8)
        image[r - 4 : r + 4, c - 4 : c + 4] = 255
        Image.fromarray(image).save(tmp_path / "images" / f"{n}.png")
        # fixations are at half the images' size
        subject = [[(r + a) / 2, (c + b) / 2, 0.2] for a, b in chance.normal(0, 2, (6, 2))]
        entries[str(n)] = {"size": [22, 30], "fixations": [subject, []]}
    (tmp_path / "fixations.json").write_text(json.dumps(entries))
    return tmp_path


def test_the_format_is_read_and_damage_costs_its_own_row(folder):
    data, failed = read_fixations(folder)
    assert not failed and [one.name for one in data] == ["0", "1", "2"]
    assert data[0].points().shape == (6, 2) and data[0].size == (22, 30)
    np.testing.assert_allclose(data[0].points((44, 60)), 2 * data[0].points())
    entries = json.loads((folder / "fixations.json").read_text())
    good = entries["0"]["fixations"]
    entries |= {
        "missing": entries["0"],
        "1": {"size": [22], "fixations": good},
        "2": {"size": [22, 30], "fixations": [[["a", 2]]]},
    }
    (folder / "fixations.json").write_text(json.dumps(entries))
    data, failed = read_fixations(folder)
    assert [one.name for one in data] == ["0"] and set(failed) == {"missing", "1", "2"}
    assert "no image" in failed["missing"] and "no size" in failed["1"] and "fixations" in failed["2"]
    for text, said in {"[]": "list", "{}": "empty", "{": "JSON", '{"0": 3}': "no entry that can be used"}.items():
        (folder / "fixations.json").write_text(text)
        with pytest.raises(hp.InputError, match=said):
            read_fixations(folder)
    with pytest.raises(hp.InputError, match="no file"):
        read_fixations(folder / "images")


def test_the_command(folder, capsys):
    arguments = ["bench", "fixations", str(folder), "--method", "region-contrast,random", "-o"]
    assert main([*arguments, str(folder / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "out" / "scores.json").read_text())["summary"] == said["summary"]
    table = {row["map"]: row for row in said["summary"]}
    assert next(iter(table)) in ("region-contrast", "region-contrast × centre") and len(table) == 5  # the centre comes along
    assert table["region-contrast"]["auc_judd"]["value"] > 0.9 > table["random"]["auc_judd"]["value"]
    mine = hp.explain(None, folder / "images" / "1.png", method="region-contrast").map
    points = read_fixations(folder)[0][1].points((44, 60))
    assert said["images"]["1"]["region-contrast"]["nss"] == pytest.approx(F.nss(mine, points))
    assert table["center"]["information_gain"]["value"] == pytest.approx(0, abs=1e-6)
    with Image.open(said["chart"]) as picture:
        assert picture.size[0] > 600

    (folder / "images" / "1.png").write_bytes(b"no image")
    assert main([*arguments, str(folder / "out")]) == 1
    out, err = capsys.readouterr()
    assert "AUC-Judd" in out and "2 images" in out and "1.png" in err and "Traceback" not in err


def test_blur_smooths_every_map_but_the_centre(folder):
    from scipy.ndimage import gaussian_filter

    data, _ = read_fixations(folder)
    rows = [list(scale.score_images(data, scale.by_methods(["edges", "center"]), blur)) for blur in (0.0, 2.0)]
    assert rows[0][1].scores["center"] == rows[1][1].scores["center"]
    heat = hp.explain(None, folder / "images" / "1.png", method="edges").map.numpy().astype(float)
    smooth = gaussian_filter(heat, 2 * 35 / 1024 * 60, mode="nearest")
    points = data[1].points((44, 60))
    assert rows[0][1].scores["edges"]["nss"] == pytest.approx(F.nss(heat, points))
    assert rows[1][1].scores["edges"]["nss"] == pytest.approx(F.nss(smooth, points))
    expected = F.auc_judd((smooth - smooth.min()) * F.centre_prior((44, 60)), points)
    assert rows[1][1].scores["edges × centre"]["auc_judd"] == pytest.approx(expected)
    with pytest.raises(hp.InputError, match="blur=-1"):
        list(scale.score_images(data, scale.by_methods(["edges"]), -1.0))


def test_bad_usage_of_the_command(folder, capsys):
    assert main(["bench", "fixations", str(folder), "--method", "gradcam"]) == 2
    assert "needs a model" in capsys.readouterr().err
    assert main(["bench", "fixations", str(folder / "nowhere")]) == 2
    assert "fixations.json" in capsys.readouterr().err


@pytest.mark.skipif(not HUMAN, reason="HEATPROOF_FIXATIONS names no folder of human fixations")
def test_a_centre_prior_is_as_good_as_reported():
    data, failed = read_fixations(Path(HUMAN))
    assert len(data) == 100 and not failed
    scores = np.array([[f(F.centre_prior(d.size), d.points()) for f in (F.auc_judd, F.nss)] for d in data]).mean(0)
    np.testing.assert_allclose(scores, (0.764, 1.02), atol=0.05)  # on other images of the same collection
