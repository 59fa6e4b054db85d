"""The page of a proof: verdicts, curves, sanity checks and effects of one image, and the command that writes it."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import heatproof as hp
from heatproof.cli import main
from heatproof.dossier import dossier
from heatproof.models.preprocess import RAW
from tiny import GapNet, HeadNet, images, seeded

LABELS = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture(scope="module")
def proved():
    model = hp.wrap(seeded(HeadNet), preprocess=RAW, labels=LABELS)
    x = images(2).sigmoid()
    explanations = hp.explain(model, x, method=["gradcam", "edges"], target=[[0, 1], [2, 3]])
    verdicts = {
        name: hp.prove(model, x, one, budget=200, target=None if one.targets is not None else [[0, 1], [2, 3]])
        for name, one in explanations.items()
    }
    return model, x, explanations, verdicts


def document(html):
    return json.loads(re.search(r'<script type="application/json" id="heatproof">(.*?)</script>', html, re.DOTALL).group(1))


def test_every_verdict_is_on_the_page_and_in_its_json(proved):
    model, x, explanations, verdicts = proved
    html = dossier(model, x[1], explanations, verdicts, 1, stages=2, seeds=2).html
    found = document(html)
    assert set(found["verdicts"]) == {"gradcam", "edges"} and len(html) < 3e6
    for one in found["maps"]:
        said = verdicts[one["method"]].sentences[1][one["t"]]
        assert one["verdict"].casefold() == said.casefold()
        assert one["supported"] in (bool(verdicts[one["method"]].supported[1, one["t"]]), None)
    assert found["verdicts"]["gradcam"]["p_value"][1] == pytest.approx(verdicts["gradcam"].p_value[1].tolist())
    # a map that ignores the model is the same whatever the model forgets
    assert set(found["sanity"]) == {"gradcam", "edges"} and "1.00 of the map's rank order" in found["sanity"]["edges"]
    assert html.count("Every point is a region") == 4 and html.count("Deletion:") == 4
    stage = found["sanity_curves"]["gradcam"][1]
    assert stage["stage"] == 2 and stage["layers"] and -1 <= stage["ssim"][0] <= 1
    copies = verdicts["edges"].null.shape[-1]
    assert f"seed 0, 200 forwards per map, {copies} copies" in html and "top-down in 2 stages, seeds 0, 1" in html


def test_without_stages_there_are_no_sanity_checks(proved):
    model, x, explanations, verdicts = proved
    html = dossier(model, x[0], explanations, {"gradcam": verdicts["gradcam"]}, stages=0).html
    found = document(html)
    assert found["sanity"] == {} and "The model forgets" not in html
    assert [one["verdict"] is None for one in found["maps"]] == [False, False, True, True]


def test_an_image_that_could_not_be_read_has_no_page(proved, tmp_path):
    model, _, _, _ = proved
    Image.fromarray(np.zeros((24, 40, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("text")
    with pytest.warns(UserWarning, match="Its row is NaN"):
        explanations = hp.explain(model, [str(tmp_path / "a.png"), str(tmp_path / "b.png")], method=["gradcam"])
    with pytest.raises(hp.InputError, match=r"b\.png"):
        dossier(model, tmp_path / "a.png", explanations, {}, 1)


def test_the_model_is_untouched(proved):
    model, x, explanations, verdicts = proved
    before = model.scores(x)
    dossier(model, x[0], explanations, verdicts, stages=1, seeds=1)
    assert model.scores(x).equal(before) and not model.module.training


def test_constant_maps_say_nothing():
    model = hp.wrap(seeded(GapNet), preprocess=RAW, labels=LABELS)
    x = images(1).sigmoid()
    explanations = hp.explain(model, x, method=["gradcam"])
    blank = {"gradcam": hp.Explanation(**{**vars(explanations["gradcam"]), "maps": explanations["gradcam"].maps * 0})}
    html = dossier(model, x[0], blank, {"gradcam": hp.prove(model, x, blank["gradcam"], budget=150)}, stages=0).html
    assert document(html)["maps"][0]["supported"] in (False, None) and "constant, says nothing" in html


def test_the_command_writes_a_page_of_one_image(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    arguments = ["prove", "--method", "edges", "--test", "deletion", "--budget", "123", "-o", str(tmp_path / "page.html")]
    assert main([*arguments, str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 2
    assert "a page is about one image and 2 came" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "a.png"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["verdicts"]["edges"]
    assert document((tmp_path / "page.html").read_text())["verdicts"]["edges"]["p_value"] == told["p_value"]
