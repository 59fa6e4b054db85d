"""Verdicts on planted worlds: the masks of the objects are true, those of other scenes are not."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

import heatproof as hp
from heatproof.models.planted import World
from heatproof.models.planted.constructed import CONSTRUCTED


@pytest.fixture(scope="module")
def scenes():
    found = list(World(correlation=0.0).scenes(20, seed=1))
    masks = torch.stack([torch.from_numpy(np.asarray(scene.object_mask)).float() for scene in found])
    return [scene.image for scene in found], masks, [scene.object for scene in found]


def test_the_objects_are_supported_on_a_transformer(scenes):
    images, masks, targets = scenes
    model = hp.load("planted-clip").with_prompts([f"a photo of a {name}" for name in World().objects])
    prompts = [f"a photo of a {name}" for name in targets]
    true = hp.prove(model, images, masks, target=prompts, tests=[], budget=200)
    assert true.supported.double().mean() >= 0.9


def test_maps_that_are_rolled_away_know_nothing(scenes):
    images, masks, targets = scenes
    chance = torch.Generator().manual_seed(6)
    shifts = torch.randint(64, (3 * len(masks), 2), generator=chance).tolist()
    rolled = torch.stack([mask.roll(tuple(shift), (0, 1)) for mask, shift in zip(masks.repeat(3, 1, 1), shifts, strict=True)])
    verdict = hp.prove(hp.load("planted-cnn"), images * 3, rolled, target=targets * 3, tests=[], budget=103)
    p, copies = verdict.p_value[:, 0], verdict.null.shape[-1]
    assert kstest(p.numpy() - 0.5 / (copies + 1), "uniform").pvalue > 0.01 and verdict.supported.double().mean() <= 0.1


def test_the_objects_are_supported_and_other_scenes_objects_are_not(scenes):
    images, masks, targets = scenes
    model = hp.load("planted-cnn")
    true = hp.prove(model, images, masks, target=targets, tests=[], budget=200)
    assert true.supported.double().mean() >= 0.9
    other = hp.prove(model, images, masks.roll(1, 0), target=targets, tests=[], budget=200)
    assert other.supported.double().mean() <= 0.2


@pytest.mark.parametrize("name", CONSTRUCTED)
def test_the_truth_of_constructed_networks_is_supported_whatever_the_infill_leaves_of_the_score(name):
    for seed in range(4):
        case = CONSTRUCTED[name](size=(32, 48), seed=seed)
        truth = case.evidence.float() if case.worth is None else case.worth
        verdict = hp.prove(case.model, case.x, truth, target=case.target, tests=[], budget=150)
        assert verdict.supported.all(), verdict.sentences
        blank = float(verdict.scores - verdict.whole)
        told = f"of the score's {float(verdict.scores):.3g}" in verdict.sentences[0][0]
        assert told == (f"the score is no less ({blank:.3g})" in verdict.sentences[0][0]) == (not verdict.above_blank[0][0])
        away = hp.prove(case.model, case.x, (~case.evidence).float(), target=case.target, tests=[], budget=150)
        assert not away.supported.any()
