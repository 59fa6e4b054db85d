"""`heatproof bench hallucination`: what is measured on twins, against the definitions; the command's JSON."""

import json
import re

import numpy as np
import pytest
import torch

import heatproof as hp
from heatproof.cli import main
from heatproof.models.planted import World
from heatproof.proof.bootstrap import Mean
from heatproof.scale import hallucination as scale
from heatproof.tokens.registers import without_registers


@pytest.fixture(scope="module")
def model() -> hp.Model:
    return scale.aimed(hp.load("planted-clip"))


@pytest.fixture(scope="module")
def measured(model):
    steps = []
    found, weights = scale.measure(model, scenes=16, probing=64, seed=3, step=steps.append)
    assert sum(steps) == scale.images(16, 64)
    return found, weights


def test_held_out_scenes_are_twins():
    world = World(correlation=0.0)
    held_out = scale._held_out(world, 16, 0)
    assert [name for name, _ in held_out] == list(world.objects) * 2
    for name, (bare, bare_home, there, home) in held_out:
        assert len({(twin.key, twin.world) for twin in (bare, bare_home, there, home)}) == 1
        assert (bare.object, bare_home.object, there.object, home.object) == (None, None, name, name)
        assert bare_home.context == home.context == world.own[name]
        assert bare.context == there.context != world.own[name]
    probes = {scene.key for scene in world.scenes(64, scale._seed(0, 0))}
    assert not probes & {twins[0].key for _, twins in held_out}


def test_scores_and_maps_by_their_definitions(model, measured):
    """The second object's first scene, taken apart by hand."""
    found, weights = measured
    name, twins = scale._held_out(World(correlation=0.0), 16, 3)[1]
    assert found.objects[1] == 1
    ex = hp.explain(model, [twin.image for twin in twins], "textspan", target=f"a photo of a {name}")
    a = ex.contributions[:, 0, :, :, 1:].unflatten(-1, (8, 8))
    clean = without_registers(a)
    w = weights.values[:, :, None, None]
    maps = {"raw": a, "registers_removed": clean, "object": w * clean, "heads_only": w * a}
    for kind, expected in maps.items():
        score = ex.scores[:, 0] if kind == "raw" else expected.sum((1, 2, 3, 4))
        np.testing.assert_allclose(found.scores[kind][1].ravel(), score, atol=2e-5)
        heat = torch.nn.functional.interpolate(expected.sum((1, 2))[:, None], [64, 64], mode="bilinear")[:, 0].clamp_min(0)
        overlaps = []
        for one, twin in zip(heat[2:].numpy(), twins[2:], strict=True):
            marked = one > one.mean()
            overlaps.append((marked & twin.object_mask).sum() / (marked | twin.object_mask).sum())
        assert found.overlap[kind][1] == pytest.approx(np.mean(overlaps), abs=0.02)


def test_summary_counts():
    """Two objects, two scenes each: everything by hand."""
    scores = np.array([[[0.1, 0.6], [0.8, 0.9]], [[0.2, 0.3], [0.7, 0.4]], [[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.9], [0.5, 1.0]]])
    every = dict.fromkeys(scale._ALL, scores) | {"object": scores + np.array([[0, 0], [1, 1]])}
    limits = dict.fromkeys(scale._ALL, np.array([0.5, 0.2]))
    overlap = dict.fromkeys(scale._ALL, np.array([0.1, 0.2, 0.3, 0.4]))
    table = scale.summary(scale.Planted([0, 0, 1, 1], every, limits, overlap))
    wins = [[(a > b) for a in (0.8, 0.9, 0.7, 0.4) for b in (0.1, 0.6, 0.2, 0.3)],
            [(a > b) for a in (1.0, 1.0, 0.5, 1.0) for b in (0.0, 0.0, 0.0, 0.9)]]  # fmt: skip
    assert table["raw"]["auroc"].value == pytest.approx(np.mean(wins))
    assert table["object"]["auroc"].value == 1
    assert table["object − raw"]["auroc"].value == pytest.approx(1 - np.mean(wins))
    assert table["raw"]["hallucination"].value == pytest.approx(0.5)
    assert table["raw"]["iou"].value == pytest.approx(0.25)
    margin = table["object − raw"]["iou"]
    assert (margin.value, margin.low, margin.high) == (0, 0, 0)
    document = scale.document(table, 4)
    assert list(document) == ["raw", "registers_removed", "object", "n"]
    assert document["n"] == 4
    assert all(list(document[kind]) == ["auroc", "auroc_ci", "hallucination", "iou"] for kind in scale.KINDS)
    assert scale.told(Mean(0.5, 0.25, 0.75, 4)) == "0.500 [0.250, 0.750]"


def test_thresholds_are_drawn_where_no_context_tells(model, measured):
    found, _ = measured
    for kind in scale._ALL:
        assert found.thresholds[kind].shape == (8,)
        assert found.scores[kind].shape == (16, 2, 2)
        assert np.isfinite(found.scores[kind]).all()
    assert (found.scores["raw"][:, 1] > found.thresholds["raw"][found.objects][:, None]).mean() > 0.8


def test_the_command(capsys):
    assert main(["bench", "hallucination", "--scenes", "16", "--probing", "64", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"raw", "registers_removed", "object", "n"}
    assert document["n"] == 16
    for kind in scale.KINDS:
        low, high = document[kind]["auroc_ci"]
        assert 0 <= low <= document[kind]["auroc"] <= high <= 1
        assert 0 <= document[kind]["hallucination"] <= 1
        assert 0 <= document[kind]["iou"] <= 1
    assert main(["bench", "hallucination", "--scenes", "16", "--probing", "64"]) == 0
    assert "object − raw" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "planted-cnn"], "needs a vision transformer"),
        (["--model", "efficientnet-lite0"], "no class 'penguin'.*planted-clip"),
        (["--model", "planted-clop"], "no model 'planted-clop'"),
        (["--scenes", "3"], "--scenes.*16"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(capsys, options, says):
    assert main(["bench", "hallucination", "--probing", "64", *options]) == 2
    told = capsys.readouterr().err
    assert re.search(says, told)
    assert "Traceback" not in told
