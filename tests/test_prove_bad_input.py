"""What comes in is not always a map of a photo that a model understands: every case is named in a sentence."""

import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import heatproof as hp
from heatproof.models import Model
from heatproof.proof.curves import Deletion
from tiny import GapNet, HeadNet, images, seeded

QUICK = {"tests": [], "budget": 103}


def bumps(count=1, height=24, width=40):
    v, u = torch.arange(height)[:, None], torch.arange(width)
    return torch.stack([torch.exp(-((v - 5 - 3 * n) ** 2 + (u - 9 - 7 * n) ** 2) / 20.0) for n in range(count)])


def test_a_constant_or_negative_map_says_nothing():
    maps = torch.stack([torch.full((24, 40), 2.5), -bumps()[0] - 0.1, torch.zeros(24, 40)])
    verdict = hp.prove(above_chance(), images(3), maps, target=0, **QUICK)
    assert [row[0] for row in verdict.states] == ["says nothing"] * 3 and not verdict.supported.any()
    assert verdict.p_value.tolist() == [[1.0]] * 3 and (verdict.effect == 0).all() and (verdict.null == 0).all()
    assert verdict.sentences[0][0].startswith("says nothing: the map is constant")
    assert verdict.table and '"says nothing"' in verdict.to_json()


def above_chance():
    """Class 0 grows with any detail, so that every image scores more than its blurred copy."""

    class Detail(nn.Module):
        def forward(self, x):
            rough = (x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3))[:, None]
            return torch.cat([rough, torch.zeros_like(rough)], 1)

    return Detail()


def test_only_the_positive_part_of_a_signed_map_is_examined():
    positive = bumps()
    signed = positive - 3 * bumps(2)[1:]
    left = hp.prove(above_chance(), images(1), signed, target=0, **QUICK)
    right = hp.prove(above_chance(), images(1), signed.clamp_min(0), target=0, **QUICK)
    assert torch.equal(left.effect, right.effect) and torch.equal(left.null, right.null)


def test_maps_with_nan_cost_their_own_row():
    maps = bumps(3)
    maps[1, 3, 4], maps[2] = torch.inf, torch.nan
    verdict = hp.prove(above_chance(), images(3), maps, target=0)
    assert [row[0] for row in verdict.states][1:] == ["no verdict"] * 2 and torch.isfinite(verdict.p_value[0]).all()
    assert verdict.p_value[1:].isnan().all() and not verdict.supported[1:].any()
    assert verdict.sentences[1][0] == "no verdict: the map has NaN or infinite values."
    assert torch.equal(verdict.effect[0], hp.prove(above_chance(), images(3)[:1], maps[:1], target=0).effect[0])


@pytest.mark.parametrize("size", [(6, 10), (50, 31)])
def test_maps_of_another_size_are_resized_and_that_is_said(size):
    maps = nn.functional.interpolate(bumps()[None], list(size), mode="bilinear")[0]
    verdict = hp.prove(above_chance(), images(1), maps, target=0, **QUICK)
    assert len(verdict.notes) == 1 and "resized" in verdict.notes[0] and "note:" in repr(verdict)


def test_a_target_that_the_explanation_does_not_explain_is_an_error():
    net = hp.wrap(seeded(GapNet), labels=["ant", "bee", "cat", "dog", "eel"])
    ex = hp.explain(net, images(2), target=["bee", "cat"])
    same = hp.prove(net, images(2), ex, target=["bee", 2], **QUICK)
    assert same.targets.tolist() == [[1], [2]] and same.target_names == [["bee"], ["cat"]] and same.method == "gradcam"
    with pytest.raises(hp.InputError, match=r"is not what the explanation explains \(bee for image 0\); leave target= out"):
        hp.prove(net, images(2), ex, target="dog", **QUICK)
    with pytest.raises(hp.InputError, match="explain"):
        hp.prove(net, images(2), ex, target=[[1, 2], [2, 3]], **QUICK)


def test_bottom_up_maps_take_the_target_from_the_call_and_serve_several():
    ex = hp.explain(None, images(2).sigmoid(), method="edges")
    top = hp.prove(seeded(GapNet), images(2), ex, **QUICK)
    assert torch.equal(top.targets[:, 0], seeded(GapNet)(images(2)).argmax(1))
    several = hp.prove(seeded(GapNet), images(2), ex, target=[[0, 3], [1, 1]], **QUICK)
    assert several.effect.shape == (2, 2) and several.targets.tolist() == [[0, 3], [1, 1]]
    torch.testing.assert_close(several.effect[1, 0], several.effect[1, 1])


@pytest.mark.parametrize(
    "maps, message",
    [
        (torch.zeros(3, 24, 40), "expected"),
        (torch.zeros(2, 2, 24, 40), "expected"),
        (torch.zeros(2, 1, 3, 24, 40), "expected"),
        ("gradcam", "no array of numbers"),
        (None, "no array of numbers"),
        (torch.zeros(2, 0, 40), "expected"),
    ],
)
def test_arrays_that_are_no_maps_of_these_images(maps, message):
    with pytest.raises(hp.InputError, match=message):
        hp.prove(seeded(GapNet), images(2), maps, target=0, **QUICK)


def test_maps_of_several_methods_are_proved_in_turn():
    several = hp.explain(above_chance(), images(1), method=["gradient", "edges"], target=0)
    with pytest.raises(hp.InputError, match=r"several methods came \(gradient, edges\); expected those of one"):
        hp.prove(above_chance(), images(1), several, target=0, **QUICK)


def test_any_array_will_do():
    maps = bumps(2)
    first = hp.prove(above_chance(), images(2), maps.numpy().astype(np.float64), target=0, **QUICK)
    for other in (maps[:, None].half().float(), maps.tolist(), maps[:, None].requires_grad_()):
        torch.testing.assert_close(
            hp.prove(above_chance(), images(2), other, target=0, **QUICK).effect, first.effect, rtol=1e-2, atol=1e-3
        )


def test_an_array_may_lie_in_memory_as_it_likes():
    maps = bumps(2)
    first = hp.prove(above_chance(), images(2), maps, target=0, **QUICK).effect
    locked = maps.numpy().copy()
    locked.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (
            maps.numpy()[:, ::-1].copy()[:, ::-1],
            np.asfortranarray(maps.numpy()),
            maps.numpy().astype(">f8"),
            locked,
            [one for one in maps],
            [one.numpy() for one in maps],
            maps.to_sparse(),
        ):
            assert torch.equal(hp.prove(above_chance(), images(2), other, target=0, **QUICK).effect, first)
    mask = (maps > 0.5).numpy()
    first = hp.prove(above_chance(), images(2), mask, target=0, **QUICK).effect
    for other in (mask.astype(np.uint8) * 255, mask.astype(np.int64), mask.astype(np.uint16) * 60000):
        assert torch.equal(hp.prove(above_chance(), images(2), other, target=0, **QUICK).effect, first)


@pytest.mark.parametrize(
    "maps", [bumps(2).numpy().astype(complex), bumps(2) * 1j, bumps(2).numpy().astype(object), [[1.0], [2.0, 3.0]], {"a": 1}]
)
def test_what_has_no_order_is_no_map(maps):
    with pytest.raises(hp.InputError, match="which is no array of numbers"):
        hp.prove(above_chance(), images(2), maps, target=0, **QUICK)


@pytest.mark.parametrize(
    "tests, message",
    [
        (3, "a test came as int"),
        ([Deletion], "a test came as type|a test came as ABCMeta"),
        ("completeness", "no test of one map among its copies: elsewhere in the image it adds up to the same"),
        (["max-sensitivity"], "it makes new maps"),
    ],
)
def test_tests_that_cannot_be_run_are_named(tests, message):
    with pytest.raises(hp.MethodError, match=message):
        hp.prove(above_chance(), images(1), bumps(), tests=tests, target=0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_any_mode_and_every_test(kind):
    net = seeded(HeadNet).to(kind).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    names = ["road", "pixel-flipping", "infidelity", "sensitivity-n", "average-drop", "average-increase", "deletion", "insertion"]
    verdict = hp.prove(net, images(1).to(kind), bumps(), tests=names, budget=300)
    assert all(torch.isfinite(verdict.tests[name].values).all() for name in names)
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_no_model():
    with pytest.raises(hp.ModelError, match="model is NoneType"):
        hp.prove(None, images(1), bumps(), **QUICK)


@pytest.mark.parametrize("kind", ["constant", "lower than blurred", "the losing class"])
def test_a_score_at_chance_has_nothing_to_explain(kind):
    class Losing(nn.Module):
        def forward(self, x):
            rough = (x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3))[:, None]
            if kind == "constant":
                return torch.full((len(x), 3), 0.3)
            if kind == "the losing class":
                return torch.cat([rough, 3 * rough, 3 * rough], 1)
            return torch.cat([-rough, -9 * rough, -9 * rough], 1)

    verdict = hp.prove(Losing(), images(1), bumps(), target=0, **QUICK)
    assert verdict.states == [["nothing to explain"]] and not verdict.supported.any()
    said = verdict.sentences[0][0]
    assert said.startswith("nothing to explain: the score of 'class 0' is")
    assert ("an average class" if kind == "the losing class" else "everything removed") in said


def test_one_score_is_above_chance_where_it_is_above_the_blurred_image():
    class Single(nn.Module):
        def forward(self, x):
            return (x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3))[:, None]

    assert hp.prove(Single(), images(1), bumps(), **QUICK).states[0][0] in ("supported", "not supported")


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (1, 30)])
def test_images_smaller_than_any_region(size):
    class Mean(nn.Module):
        def forward(self, x):
            return torch.stack([x.abs().mean((1, 2, 3)), x.square().mean((1, 2, 3))], 1)

    maps = torch.arange(float(size[0] * size[1])).view(1, *size)
    verdict = hp.prove(Mean(), images(1, size=size), maps, target=0, tests=[], budget=150)
    assert 1 / (1 + verdict.null.shape[-1]) <= float(verdict.p_value) <= 1
    assert not (size == (1, 1) and verdict.supported.any())
    curves = hp.prove(Mean(), images(1, size=size), maps, target=0, tests=["deletion", "insertion", "road", "pixel-flipping"])
    assert len(curves.tests["deletion"].fractions) <= size[0] * size[1] + 1
    assert torch.isfinite(curves.tests["road"].values).all() or size == (1, 1)  # a single pixel is a constant map


def test_an_image_that_cannot_be_read_costs_its_own_row(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "c.png"):
        Image.fromarray(rng.integers(0, 255, (24, 40, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"not an image")
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    model = hp.wrap(seeded(GapNet), preprocess=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    with pytest.warns(UserWarning, match="NaN"):
        ex = hp.explain(model, paths)
    verdict = hp.prove(model, paths, ex)
    assert verdict.states[1] == ["no verdict"] and "not an image" in verdict.sentences[1][0]
    assert verdict.target_names[1] == ["unreadable"] and verdict.targets[1] == -1
    alone = hp.prove(model, paths[2], hp.explain(model, paths[2]))
    torch.testing.assert_close(verdict.null[2], alone.null[0], rtol=1e-4, atol=1e-6)
    with pytest.raises(hp.InputError, match="not an image"):
        hp.prove(model, paths[1], torch.zeros(1, 24, 40), **QUICK)
    mended = hp.prove(model, [paths[0], paths[0], paths[2]], ex, **QUICK)
    assert mended.states[1] == ["no verdict"]


def test_other_images_or_another_model_than_the_maps_were_made_from_are_noted():
    ex = hp.explain(seeded(GapNet), images(2))
    assert not hp.prove(seeded(GapNet), images(2), ex, **QUICK).notes
    assert "was it made from these images" in hp.prove(seeded(GapNet), 5 * images(2, seed=9), ex, **QUICK).notes[0]
    assert "GapNet, and HeadNet is asked" in hp.prove(seeded(HeadNet), images(2), ex, **QUICK).notes[0]
    with pytest.raises(hp.InputError, match="expected"):
        hp.prove(seeded(GapNet), images(1), ex, **QUICK)


class Interrupting(GapNet):
    """Ctrl-C after so many images."""

    left = 10**9

    def forward(self, x):
        Interrupting.left -= len(x)
        if Interrupting.left < 0:
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.mark.parametrize("after", [40, 100, 230])
def test_an_interrupted_run_keeps_what_it_has(after, monkeypatch):
    import heatproof.proof.subject as subject

    monkeypatch.setattr(subject, "batch_limit", lambda *_: 8)
    net = seeded(Interrupting)
    whole = hp.prove(net, images(1), bumps(), budget=300)
    Interrupting.left = after
    try:
        verdict = hp.prove(net, images(1), bumps(), budget=300)
    finally:
        Interrupting.left = 10**9
    run = torch.isfinite(verdict.null[0, 0])
    assert verdict.partial and "interrupted" in repr(verdict) and torch.equal(verdict.effect, whole.effect)
    assert torch.equal(verdict.null[0, 0, run], whole.null[0, 0, run])
    if after < 230:
        assert 0 < run.sum() < len(run) and "deletion" not in verdict.tests
        expected = (1 + (verdict.null[0, 0, run] >= verdict.effect[0, 0]).sum()) / (1 + run.sum())
        assert float(verdict.p_value) == pytest.approx(float(expected))
        if verdict.states[0][0] != "nothing to explain":
            assert f"partial: {int(run.sum())} of {len(run)} copies" in verdict.sentences[0][0]
    Interrupting.left = 5
    with pytest.raises(KeyboardInterrupt):
        hp.prove(net, images(1), bumps(), budget=300)
    Interrupting.left = 10**9


def test_images_that_were_not_reached_say_so(monkeypatch):
    monkeypatch.setattr(sys.modules["heatproof.explain"], "batch_limit", lambda *_: 1)
    net = seeded(Interrupting)
    Interrupting.left = 160
    try:
        verdict = hp.prove(net, images(3), bumps(3), **QUICK)
    finally:
        Interrupting.left = 10**9
    assert verdict.partial and torch.isfinite(verdict.effect[0]).all() and verdict.effect[2].isnan().all()
    assert verdict.sentences[2][0] == "no verdict: the run was interrupted before this image."


def test_prompts_are_found_by_name():
    from heatproof.models.readout import Similarity

    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = nn.Conv2d(3, 6, 4, 4), nn.Embedding(64, 6)

        def encode_image(self, x):
            return self.image(x).relu().mean((2, 3))

        def encode_text(self, tokens):
            return self.text(tokens).mean(1)

    model = hp.wrap(seeded(Towers), tokenizer=lambda texts: torch.tensor([[ord(text[0]) % 64, len(text)] for text in texts]))
    assert isinstance(model, Model) and isinstance(model.readout, Similarity)
    ex = hp.explain(model, images(1), method="gradient", target=[["a cat", "the dog"]])
    verdict = hp.prove(model, images(1), ex, **QUICK)
    assert verdict.target_names == [["a cat", "the dog"]] and not verdict.notes
    torch.testing.assert_close(verdict.scores.float(), ex.scores)
    other = hp.prove(model.with_prompts(["snow", "the dog"]), images(1), ex, **QUICK)
    torch.testing.assert_close(other.effect, verdict.effect)
    # both are the first prompt of a model without any, and yet not the same
    one = hp.explain(model, images(1), method="gradient", target="a cat")
    assert hp.prove(model, images(1), one, target="a cat", **QUICK).target_names == [["a cat"]]
    with pytest.raises(hp.InputError, match=r"is not what the explanation explains \(a cat for image 0\)"):
        hp.prove(model, images(1), one, target="the dog", **QUICK)
