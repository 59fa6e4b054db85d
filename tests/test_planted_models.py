"""planted-clip and planted-cnn: loading, what they learned, what they only think they see, open_clip's own CLIP."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.models.planted import World, clip, cnn, words

WORLD = World(correlation=0.0)
HELD_OUT = list(WORLD.scenes(320, seed=987_654_321))
NAMES = ["planted-clip", "planted-cnn"]


@pytest.fixture(scope="module", params=NAMES)
def model(request) -> hp.Model:
    return hp.load(request.param)


def scores(model: hp.Model, scenes) -> torch.Tensor:
    return model.scores([scene.image for scene in scenes])


def test_they_come_with_the_install():
    files = [clip.WEIGHTS, cnn.WEIGHTS]
    assert sum(file.stat().st_size for file in files) <= 6e6
    for file in files:
        with safe_open(file, "pt") as kept:
            assert {kept.get_tensor(name).dtype for name in kept.keys()} == {torch.float16}  # noqa: SIM118
            assert {"seed", "steps", "scenes", "correlation"} <= kept.metadata().keys()
    assert all(p.dtype == torch.float32 for name in NAMES for p in hp.load(name).module.parameters())


def test_they_know_objects_whatever_these_stand_on(model):
    assert len(model.labels) == len(WORLD.objects)
    assert all(name in label.split() for name, label in zip(WORLD.objects, model.labels, strict=True))
    best = scores(model, HELD_OUT).argmax(1)
    right = np.mean([WORLD.objects[i] == scene.object for i, scene in zip(best.tolist(), HELD_OUT, strict=True)])
    assert right >= 0.9


def test_they_still_see_objects_where_there_are_none(model):
    """A threshold that tells presence from absence: what share of empty contexts lies above it for their own object."""
    found, empty = scores(model, HELD_OUT), scores(model, [scene.without_object() for scene in HELD_OUT])
    own, others = [], []
    for n, name in enumerate(WORLD.objects):
        there = torch.tensor([scene.object == name for scene in HELD_OUT])
        candidates = found[:, n].sort().values
        limit = max(
            (candidates[1:] + candidates[:-1]) / 2,
            key=lambda t: (found[there, n] > t).float().mean() - (found[~there, n] > t).float().mean(),
        )
        for scene, score in zip(HELD_OUT, empty[:, n], strict=True):
            (own if scene.context == WORLD.own[name] else others).append(bool(score > limit))
    assert np.mean(own) >= 0.2
    assert np.mean(own) >= 2 * np.mean(others)


def test_clip_knows_contexts_and_captions():
    model = hp.load("planted-clip")
    best = scores(model.with_prompts(WORLD.contexts), HELD_OUT).argmax(1)
    assert np.mean([WORLD.contexts[i] == scene.context for i, scene in zip(best.tolist(), HELD_OUT, strict=True)]) >= 0.95
    captions = [World().scene(0, o, c).caption for o in WORLD.objects for c in WORLD.contexts]
    best = scores(model.with_prompts(captions), HELD_OUT).argmax(1)
    assert np.mean([captions[i] == scene.caption for i, scene in zip(best.tolist(), HELD_OUT, strict=True)]) >= 0.8


def test_prompts_are_targets():
    model, scene = hp.load("planted-clip"), WORLD.scene(4, "fox", "snow")
    found = hp.explain(model, scene.image, method="gradcam", target=[["a fox on snow", "snow", "a photo of a cow"]])
    assert found.maps.shape == (1, 3, 64, 64)
    assert found.targets.shape == (1, 3)
    assert found.scores[0, 0] > found.scores[0, 2]


def test_images_enter_as_they_are(model):
    scene = WORLD.scene(3)
    expected = (torch.from_numpy(scene.image.copy()).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(model.tensor(scene.image)[0], expected)
    assert model.tensor(Image.fromarray(World(size=150).scene(3).image)).shape == (1, 3, 64, 64)
    assert (model.tensor(World(size=256).scene(3).image)[0] - expected).abs().mean() < 0.1


def test_the_text_tower_reads_up_to_the_end_and_no_further():
    module = hp.load("planted-clip").module
    tokens = words.tokenize(["snow", "a photo of a fox on snow"])
    assert tokens.shape == (2, words.LENGTH)
    other = tokens.clone()
    other[0, 4:] = 1
    with torch.no_grad():
        torch.testing.assert_close(module.encode_text(tokens), module.encode_text(other), atol=1e-5, rtol=0)


def test_every_caption_is_in_the_vocabulary():
    for scene in World().scenes(64):
        words.tokenize([scene.caption, scene.without_object().caption])
    for form in (*words.OF_OBJECT, *words.OF_CONTEXT, *words.OF_BOTH):
        told = [form.format(o=o, c=c) for o in WORLD.objects for c in WORLD.contexts]
        tokens = words.tokenize(told)
        assert len({tuple(row) for row in tokens.tolist()}) == len(set(told))
        assert (tokens.max(1).values == words.END).all()
    assert torch.equal(words.tokenize("A Fox, on snow!"), words.tokenize(["a fox on snow"]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a pinguin on snow", "does not know 'pinguin' in 'a pinguin on snow'. Did you mean 'penguin'"),
        ("two polar bears", "'two', 'polar', 'bears'.*Its words: a, the, photo"),
        (" ".join(["snow"] * 15), "has 15 words; planted-clip takes up to 14"),
    ],
)
def test_unknown_words_are_a_sentence(text, says):
    with pytest.raises(hp.InputError, match=says):
        hp.load("planted-clip").with_prompts([text])


def test_open_clip_reads_the_same_weights():
    open_clip_model = pytest.importorskip("open_clip.model")
    module = hp.load("planted-clip").module
    vision = {"image_size": clip.SIZE, "patch_size": clip.PATCH, "layers": 4, "width": 96, "head_width": 16}
    text = {"context_length": words.LENGTH, "vocab_size": words.END + 1, "width": 64, "heads": 4, "layers": 2}
    peer = open_clip_model.CLIP(
        clip.EMBEDDING, open_clip_model.CLIPVisionCfg(**vision), open_clip_model.CLIPTextCfg(**text)
    ).eval()
    peer.load_state_dict(module.state_dict(), strict=True)
    x = hp.load("planted-clip").tensor([scene.image for scene in HELD_OUT[:7]])
    tokens = words.tokenize(["snow", "a photo of a fox on snow", "the moon"])
    with torch.no_grad():
        torch.testing.assert_close(module.encode_image(x), peer.encode_image(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(module.encode_text(tokens), peer.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_cnn_is_a_mean_and_one_linear_layer():
    """Where class activation maps are exact, they show all of the score."""
    model = hp.load("planted-cnn")
    x = model.tensor([scene.image for scene in HELD_OUT[:3]])
    kept = {}
    handle = model.module.layer3.register_forward_hook(lambda _m, _i, output: kept.setdefault("a", output))
    with torch.no_grad():
        model.module(x)
    handle.remove()
    found = hp.explain(model, x, method="cam", target=2)
    expected = F.conv2d(kept["a"], model.module.fc.weight[2][None, :, None, None])[:, 0]
    assert found.raw.shape == (3, 1, 8, 8)
    ratio = expected / found.raw[:, 0]
    torch.testing.assert_close(ratio, ratio[0, 0, 0].expand_as(ratio), atol=1e-3, rtol=1e-3)
    assert model.scores(torch.rand(2, 3, 96, 80)).shape == (2, 8)


@pytest.mark.parametrize(("name", "make"), [("planted-clip", clip.PlantedCLIP), ("planted-cnn", cnn.PlantedCNN)])
def test_other_weights_from_a_file(tmp_path, name, make):
    torch.manual_seed(5)
    module: nn.Module = make().eval()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    loaded = hp.load(name, weights=tmp_path / "w.pt").module
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(hp.ModelError, match="do not fit"):
        hp.load(name, weights=cnn.WEIGHTS if name == "planted-clip" else clip.WEIGHTS)
    with pytest.raises(hp.ModelError, match="no weights file"):
        hp.load(name, weights=tmp_path / "none.safetensors")
