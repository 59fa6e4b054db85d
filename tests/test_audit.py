"""Cards on planted truth: what is known of a method shows on its card."""

import json

import pytest
import torch

import heatproof as hp
from heatproof.cli import main
from heatproof.models.planted.constructed import CONSTRUCTED
from heatproof.proof.card import Card, markdown
from heatproof.proof.judges import JUDGES, SAID


@pytest.fixture(scope="module")
def gradcam():
    return hp.audit("gradcam", scenes=6)


def test_what_is_known_of_gradcam(gradcam):
    assert "saturated" in gradcam.misses and "suppressor" in gradcam.finds and "redundant" in gradcam.misses
    assert gradcam.depends_on_model and gradcam.deterministic and gradcam.residual is None
    assert gradcam.localisation["energy"].value > gradcam.localisation["center energy"].value
    assert 0 < gradcam.cost < 20 and gradcam.scenes == 6 and gradcam.model == "planted-cnn"


def test_integrated_gradients_see_what_is_saturated_and_account_for_the_score():
    card = hp.audit("integrated-gradients", scenes=4, steps=16)
    assert "saturated" in card.finds and card.misses == ["redundant"]
    assert card.unbalanced < 1e-3 and card.cost > 8


def test_maps_that_ignore_the_model_do_not_depend_on_it():
    card = hp.audit("center", scenes=6)
    assert card.kept is None and card.depends_on_model is None and card.localisation["energy"].value > 0
    assert "no" not in card.notes and card.honest is not None


def test_a_token_method_is_tried_on_a_transformer():
    card = hp.audit("textspan", scenes=4)
    assert card.model == "planted-clip" and card.cases == {} and card.unbalanced < 1e-3 and card.residual > 0
    record = card.record()
    assert record["cases"] is None and record["residual"] == card.residual


def test_a_method_that_does_not_apply_says_so():
    card = hp.audit("cam", scenes=4)
    assert all(case.passed is None for case in card.cases.values()) and card.finds == card.misses == []
    assert "does not apply" in card.cases["additive"].sentence and card.localisation["energy"].value > 0


@pytest.mark.parametrize("name", list(CONSTRUCTED))
def test_the_judges_acquit_the_truth_and_condemn_its_opposite(name):
    """The truth as a map: evidence, each part alike; in the additive case what each pixel is worth."""
    case = CONSTRUCTED[name](size=(32, 48), seed=3)
    truth = case.evidence.float() if case.worth is None else case.worth
    assert JUDGES[name](truth, case) >= SAID[name][1]
    wrong = (~case.evidence).float() if case.worth is None else -case.worth
    assert JUDGES[name](wrong, case) < SAID[name][1]
    assert JUDGES[name](torch.zeros(32, 48), case) < SAID[name][1]


def test_the_card_is_one_json_document_and_sentences(gradcam):
    found = json.loads(gradcam.to_json())
    assert found["finds"] == gradcam.finds and found["localisation"]["energy"]["count"] == 6
    said = repr(gradcam)
    assert "gradcam (cam), tried on planted-cnn." in said and "Wrong: saturated" in said and "forwards." in said


def test_the_table_has_a_row_per_card(gradcam):
    text = markdown([gradcam, Card("other", "none", "nothing", 4)])
    lines = text.splitlines()
    assert lines[0].startswith("| method | family | cases |") and len(lines) == 4
    assert lines[2].startswith("| gradcam | cam | ") and "–" in lines[3] and len({line.count("|") for line in lines}) == 1


def test_the_same_seed_is_the_same_card(gradcam):
    again = json.loads(hp.audit("gradcam", scenes=6).to_json())
    first = json.loads(gradcam.to_json())
    for card in (first, again):
        del card["cost"], card["sentences"]  # the time is not the same
    assert first == again


def test_bad_arguments_are_sentences(capsys):
    with pytest.raises(hp.MethodError, match="there is no method 'gradcm'"):
        hp.audit("gradcm")
    with pytest.raises(hp.InputError, match="scenes=3"):
        hp.audit("gradcam", scenes=3)
    with pytest.raises(hp.MethodError, match="gradcam has no option 'steps'"):
        hp.audit("gradcam", steps=3)
    assert main(["audit"]) == 2 and "no method was named" in capsys.readouterr().err
    assert main(["audit", "gradcm"]) == 2 and "gradcam" in capsys.readouterr().err


def test_the_command_prints_tables_and_json(capsys):
    assert main(["audit", "edges,center", "--scenes", "4", "--markdown"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:]] == ["edges", "center"]
    assert main(["audit", "center", "--scenes", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["method"] == "center"
