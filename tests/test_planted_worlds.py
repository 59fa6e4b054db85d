"""Planted worlds: the same scene from the same seed, twins that differ only where they should, odds that are what they say."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import heatproof as hp
from heatproof.models.planted import Scene, World

WORLD = World(distractors=2)
names = st.sampled_from(WORLD.objects)
contexts = st.sampled_from(WORLD.contexts)
seeds = st.integers(0, 2**40)


def differ(one: Scene, other: Scene) -> np.ndarray:
    return (one.image != other.image).any(-1)


def test_the_same_from_the_same_seed():
    for one, other in zip(World().scenes(5, seed=3), World().scenes(50, seed=3), strict=False):
        assert one == other
        assert np.array_equal(one.image, other.image)
    first, second = (next(iter(World().scenes(1, seed=seed))) for seed in (3, 4))
    assert not np.array_equal(first.image, second.image)
    assert World().scene(7) == World().scene(np.random.default_rng(np.random.SeedSequence(7)))
    assert len({scene.key for scene in World().scenes(200)}) == 200


def test_the_global_generator_is_left_alone():
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    _ = World().scene(1).image
    assert np.random.random() == expected


@settings(max_examples=25, deadline=None)
@given(seeds, names, contexts, names, contexts)
def test_twins_differ_only_where_they_should(seed, name, context, other, elsewhere):
    scene = WORLD.scene(seed, name, context)
    empty, swapped, moved = scene.without_object(), scene.with_object(other), scene.on(elsewhere)
    assert not (differ(scene, empty) & ~scene.object_mask).any()
    assert not (differ(scene, swapped) & ~(scene.object_mask | swapped.object_mask)).any()
    assert not (differ(scene, moved) & ~scene.context_mask).any()
    assert differ(scene, empty)[scene.object_mask].mean() > 0.8
    assert differ(scene, swapped).any() == (name != other)
    assert (differ(scene, moved)[scene.context_mask].mean() > 0.8) == (context != elsewhere)
    assert (empty.object, swapped.object, moved.object) == (None, other, name)
    assert (empty.context, swapped.context, moved.context) == (context, context, elsewhere)
    assert scene.on(elsewhere).on(context) == scene.without_object().with_object(name) == scene


@settings(max_examples=25, deadline=None)
@given(seeds, names, contexts, st.integers(0, 5), st.sampled_from([32, 64, 97]))
def test_every_pixel_is_one_thing(seed, name, context, distractors, size):
    scene = World(distractors=distractors, size=size).scene(seed, name, context)
    masks = [scene.object_mask, scene.context_mask, *scene.distractor_masks]
    assert len(masks) == 2 + distractors
    assert all(mask.shape == (size, size) and mask.dtype == bool for mask in masks)
    assert (np.sum(masks, 0) == 1).all()
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    assert 0.02 < scene.object_mask.mean() < 0.3
    assert not scene.without_object().object_mask.any()


def test_a_scene_has_the_same_places_at_every_size():
    small, large = (World(size=size).scene(11, "cow", "road") for size in (64, 256))
    shrunk = large.object_mask.reshape(64, 4, 64, 4).mean((1, 3))
    assert np.abs(shrunk - small.object_mask).mean() < 0.01
    pixels = large.image.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(pixels - small.image)[small.object_mask | small.context_mask].mean() < 12


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 1.0])
def test_objects_stand_on_their_own_context_as_often_as_said(correlation):
    world, count = World(correlation=correlation), 4000
    drawn = list(world.scenes(count, seed=5))
    at_home = np.mean([scene.context == world.own[scene.object] for scene in drawn])
    expected = correlation + (1 - correlation) / len(world.contexts)
    assert abs(at_home - expected) < 4 * np.sqrt(expected * (1 - expected) / count) + 1e-12
    for marginal in (Counter(scene.object for scene in drawn), Counter(scene.context for scene in drawn)):
        assert len(marginal) == 8
        assert all(abs(n - count / 8) < 5 * np.sqrt(count / 8) for n in marginal.values())
    back = [world.scene(seed, context="grass").object == "cow" for seed in range(1000)]
    assert abs(np.mean(back) - expected) < 4 * np.sqrt(expected * (1 - expected) / 1000) + 1e-12
    there = [world.scene(seed, object="cow").context == "grass" for seed in range(1000)]
    assert abs(np.mean(there) - expected) < 4 * np.sqrt(expected * (1 - expected) / 1000) + 1e-12


def test_place_and_size_do_not_depend_on_what_stands_there():
    world = World(correlation=1.0)
    middles = {
        name: np.mean([np.argwhere(world.scene(seed, name).object_mask).mean(0) for seed in range(150)], 0)
        for name in world.objects
    }
    for one, other in itertools.combinations(middles.values(), 2):
        assert np.abs(one - other).max() < 5  # the shapes' own centres are not exactly in the middle


def test_captions():
    scene = WORLD.scene(0, "fox", "snow")
    assert scene.caption == "a photo of a fox on snow"
    assert scene.without_object().caption == "a photo of snow"
    assert scene.with_object("moon").on("road").caption == "a photo of a moon on road"


def test_every_object_has_a_context_of_its_own():
    assert set(WORLD.own) == set(WORLD.objects)
    assert sorted(WORLD.own.values()) == sorted(WORLD.contexts)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: World(correlation=1.5), "correlation=1.5"),
        (lambda: World(correlation=float("nan")), "correlation=nan"),
        (lambda: World(distractors=-1), "distractors=-1"),
        (lambda: World(size=8), "size=8"),
        (lambda: World(size=True), "size=True"),
        (lambda: World().scene(0, "pinguin"), "Did you mean 'penguin'"),
        (lambda: World().scene(0, "cow", "gras"), "Did you mean 'grass'"),
        (lambda: World().scene(0, context="gras"), "Did you mean 'grass'"),
        (lambda: World().scene(0).on("lava"), "no 'lava'.*Known: snow, water"),
        (lambda: World().scene(0).with_object("snow"), "no 'snow'"),
        (lambda: World().scene(-1), "seed=-1"),
        (lambda: World().scenes(3, seed="a"), "seed='a'"),
    ],
)
def test_bad_input_is_a_sentence(call, says):
    with pytest.raises(hp.InputError, match=says):
        call()
