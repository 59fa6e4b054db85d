"""Verdicts on planted worlds: the masks of the objects are true, those of other scenes are not."""

import numpy as np
import pytest
import torch

import heatproof as hp
from heatproof.models.planted import World


@pytest.fixture(scope="module")
def scenes():
    found = list(World(correlation=0.0).scenes(20, seed=1))
    masks = torch.stack([torch.from_numpy(np.asarray(scene.object_mask)).float() for scene in found])
    return [scene.image for scene in found], masks, [scene.object for scene in found]


def test_the_objects_are_supported_and_other_scenes_objects_are_not(scenes):
    images, masks, targets = scenes
    model = hp.load("planted-cnn")
    true = hp.prove(model, images, masks, target=targets, tests=[], budget=200)
    assert true.supported.double().mean() >= 0.9
    other = hp.prove(model, images, masks.roll(1, 0), target=targets, tests=[], budget=200)
    assert other.supported.double().mean() <= 0.2
