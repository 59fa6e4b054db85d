"""CHILI against its formulas, written once more with NumPy and SciPy."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import median_filter

import heatproof as hp
from heatproof.models.preprocess import RAW
from heatproof.tokens.chili_weights import BINARISATIONS, head_weight, overlap
from heatproof.tokens.registers import without_registers
from tiny import CLASSES, GapNet, TinyViT, images, seeded

LABELS = ["ant", "bee", "cat", "dog", "eel"]
RELEASED = Path(os.environ.get("HEATPROOF_DATA", Path(__file__).parents[2] / "shared" / "data")) / "chili_weights"


def vit():
    return hp.wrap(seeded(TinyViT), preprocess=RAW, labels=LABELS)


def weights_for(model):
    return hp.ChiliWeights(torch.rand(2, 3, generator=torch.Generator().manual_seed(5)), {"model": model.name})


def masks(count, seed=0):
    """Rectangles, not aligned with the patches."""
    rng = np.random.default_rng(seed)
    made = np.zeros((count, 24, 40), np.uint8)
    for one in made:
        top, left = rng.integers(0, 12), rng.integers(0, 20)
        one[top : top + 10, left : left + 17] = 255
    return made


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 1000))
def test_the_median_is_that_of_scipy_with_the_border_repeated(height, width, seed):
    maps = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    expected = np.stack([[median_filter(one, size=3, mode="nearest") for one in row] for row in maps.numpy()])
    np.testing.assert_array_equal(without_registers(maps).numpy(), expected)


def test_a_single_bright_token_goes_and_an_object_stays():
    maps = torch.zeros(6, 7)
    maps[1, 1] = 100
    maps[3:6, 3:7] = 1
    clean = without_registers(maps)
    assert clean[1, 1] == 0 and (clean[4, 3:7] == 1).all() and clean.max() == 1


def test_the_score_is_object_and_context_and_register_and_the_rest():
    model, x = vit(), images(2)
    weights = weights_for(model)
    ex = hp.explain(model, x, method="chili", target=[[0, 3], [4, 1]], weights=weights)
    assert ex.contributions.shape == (2, 2, 2, 3, 18) and ex.raw.shape == (2, 2, 3, 5)
    torch.testing.assert_close(ex.contributions.flatten(2).sum(2) + ex.residual, ex.scores, rtol=1e-4, atol=1e-5)

    patches = ex.contributions[..., 3:].reshape(2, 2, 2, 3, 3, 5).numpy()
    clean = np.stack([median_filter(one, size=3, mode="nearest") for one in patches.reshape(-1, 3, 5)]).reshape(patches.shape)
    w = weights.values.numpy()[None, None, :, :, None, None]
    expected = {"object": w * clean, "context": (1 - w) * clean, "register": patches - clean}
    for part, each in expected.items():
        one = hp.explain(model, x, method="chili", target=[[0, 3], [4, 1]], weights=weights, part=part)
        np.testing.assert_allclose(one.raw.numpy(), each.sum((2, 3)), atol=1e-5)
        found = [row["amount"] for row in ex.ledger if row["part"] == part]
        np.testing.assert_allclose(np.reshape(found, (2, 2)), each.sum((2, 3, 4, 5)), atol=1e-5)
    for b in range(2):
        for t in range(2):
            total = sum(row["amount"] for row in ex.ledger if (row["image"], row["target"]) == (b, t))
            assert total == pytest.approx(ex.scores[b, t].item(), abs=1e-4)


def test_splitting_what_textspan_found_needs_no_other_forward():
    model, x = vit(), images(1)
    weights = weights_for(model)
    parts = hp.chili.split(hp.explain(model, x, method="textspan"), weights)
    for part in ("object", "context", "register"):
        torch.testing.assert_close(getattr(parts, part), hp.explain(model, x, method="chili", weights=weights, part=part).raw)
    none = hp.chili.split(hp.explain(model, x, method="chili"), None)
    assert (none.context == 0).all() and hp.explain(model, x, method="chili").options["weights"].startswith("none")


def test_weights_of_one_and_zero_are_all_and_nothing():
    model, x = vit(), images(1)
    everything = hp.explain(model, x, method="chili", weights=np.ones((2, 3))).raw
    torch.testing.assert_close(everything, hp.explain(model, x, method="chili").raw)
    assert (hp.explain(model, x, method="chili", weights=torch.zeros(2, 3)).raw == 0).all()
    by_class = np.stack([np.ones((2, 3)), np.zeros((2, 3))])
    torch.testing.assert_close(hp.explain(model, x, method="chili", weights=by_class).raw, everything / 2)


@pytest.mark.parametrize("binarise", list(BINARISATIONS))
def test_fit_is_the_mean_of_the_formula_over_the_pairs(binarise):
    model, x, marked = vit(), images(11), masks(11)
    prompts = [LABELS[n % CLASSES] if n % 2 else n % CLASSES for n in range(11)]
    found = hp.chili.fit(model, zip(x, marked, prompts, strict=True), alpha=3, binarise=binarise)
    assert found.provenance["pairs"] == 11 and found.provenance["alpha"] == 3.0 and found.provenance["model"] == "TinyViT"

    total = np.zeros((2, 3))
    for n in range(11):
        ex = hp.explain(model, x[n], method="textspan", target=prompts[n])
        share = (marked[n] > 0).reshape(3, 8, 5, 8).mean((1, 3))
        truth = share >= min(0.5, share.max())
        for layer in range(2):
            for head in range(3):
                one = ex.contributions[0, 0, layer, head, 3:].reshape(3, 5).numpy()
                one = median_filter(one, size=3, mode="nearest")
                level = {"positive": 0, "mean": one.mean(), "median": np.median(one), "half-max": 0.5 * max(one.max(), 0)}[
                    binarise
                ]
                on = one > level
                total[layer, head] += 1 - np.exp(-3 * (on & truth).sum() / max((on | truth).sum(), 1))
    np.testing.assert_allclose(found.values.numpy(), total / 11, atol=1e-5)


def test_the_weight_rises_with_the_overlap_and_stays_below_one():
    iou = torch.linspace(0, 1, 11)
    weight = head_weight(iou, 10.0)
    assert weight[0] == 0 and (weight.diff() > 0).all() and weight[-1] < 1
    assert weight.max() == pytest.approx(1 - np.exp(-10), abs=1e-6)
    on, off = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    assert overlap(on, on) == 1 and overlap(on, off) == 0 and overlap(off, off) == 0


def write_folder(folder, count=3):
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n, mask in enumerate(masks(count)):
        Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(folder / "images" / f"{n}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{n}.png")
    (folder / "targets.json").write_text(json.dumps({str(n): LABELS[n] for n in range(count)}))
    return folder


def test_a_folder_is_the_iterable_of_its_files(tmp_path):
    folder = write_folder(tmp_path)
    pairs = [(folder / "images" / f"{n}.png", Image.open(folder / "masks" / f"{n}.png"), LABELS[n]) for n in range(3)]
    found, again = hp.chili.fit(vit(), folder), hp.chili.fit(vit(), pairs)
    torch.testing.assert_close(found.values, again.values)
    tensors = [(np.asarray(Image.open(image)), torch.from_numpy(np.array(mask)), text) for image, mask, text in pairs]
    torch.testing.assert_close(hp.chili.fit(vit(), tensors).values, found.values)


def test_pairs_that_cannot_be_used_cost_themselves(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "images" / "1.png").write_bytes(b"not an image")
    Image.fromarray(np.zeros((24, 40), np.uint8)).save(folder / "masks" / "2.png")
    with pytest.warns(UserWarning, match="2 of 3 pairs were left out") as said:
        found = hp.chili.fit(vit(), folder)
    assert found.provenance["pairs"] == 1 and found.provenance["left_out"] == 2 and "Pair 1" in str(said[0].message)


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ((torch.zeros(3, 24, 40), np.zeros((24, 40)), "ant"), "the mask is empty"),
        ((torch.zeros(3, 24, 40), np.ones((24, 41)), "ant"), "24 × 41 and the image 24 × 40"),
        ((torch.zeros(3, 24, 40), np.ones((24, 40)), "wolf"), "'wolf' is not among the 5 labels"),
        ((torch.zeros(3, 24, 40), np.ones((24, 40)), None), "the prompt is None"),
        (("nowhere.png", np.ones((24, 40)), "ant"), "there is no file 'nowhere.png'"),
        ((torch.zeros(3, 24, 40), np.ones((24, 40)), 5), "target 5 is out of range"),
        ((torch.zeros(3, 24, 40), torch.ones(1, 24, 40), "ant"), "the mask is 1 × 24 × 40 and the image 24 × 40"),
        ((torch.zeros(3, 24, 40), None, "ant"), "the mask is NoneType"),
        ((torch.zeros(2, 3, 24, 40), np.ones((24, 40)), "ant"), "2 images came in one pair"),
        ("ant", "expected \\(image, mask, prompt\\)"),
    ],
)
def test_what_is_wrong_with_a_pair_is_said(pair, sentence):
    with pytest.raises(hp.InputError, match=sentence):
        hp.chili.fit(vit(), [pair])


def test_a_prompt_that_the_model_does_not_know_costs_its_pair():
    scene = next(world().scenes(1))
    model = hp.load("planted-clip").with_prompts(["snow"])
    good = [(scene.image, scene.object_mask, prompt) for prompt in ("a photo of a cow", np.int64(0))]
    bad = [(scene.image, scene.object_mask, prompt) for prompt in ("a photo of a wolf", 1)]
    with pytest.warns(UserWarning, match=r"2 of 4 pairs were left out.*Pair 1: planted-clip does not know 'wolf'"):
        found = hp.chili.fit(model, [good[0], bad[0], good[1], bad[1]])
    torch.testing.assert_close(found.values, hp.chili.fit(model, good).values)
    assert (found.provenance["pairs"], found.provenance["left_out"]) == (2, 2)


def world():
    from heatproof.models.planted import World

    return World()


def test_masks_with_transparency_are_their_colours(tmp_path):
    x, marked = images(1)[0], masks(1)[0]
    colours = np.stack([marked, marked // 2, marked * 0, marked * 0 + 255], 2)
    Image.fromarray(colours).save(tmp_path / "mask.png")
    expected = hp.chili.fit(vit(), [(x, marked, "ant")]).values
    grey = Image.fromarray(np.stack([marked, marked * 0 + 255], 2))
    assert grey.mode == "LA"
    for mask in (colours, Image.fromarray(colours), grey, tmp_path / "mask.png", torch.from_numpy(marked), marked[..., None]):
        assert torch.equal(hp.chili.fit(vit(), [(x, mask, "ant")]).values, expected)


def test_masks_go_the_way_of_their_images_through_any_preprocess():
    """Also where its normalisation is not known: a crop, then each channel on a scale of its own."""

    def crop(image):
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, 3:27, 10:50] / 255
        return (x - torch.tensor([0.9, 0.1, 0.4]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, -0.1]).view(3, 1, 1)

    rng = np.random.default_rng(0)
    photo, mask = rng.integers(0, 256, (30, 60, 3), dtype=np.uint8), np.zeros((30, 60), np.uint8)
    mask[5:20, 15:34] = 1
    model = hp.wrap(seeded(TinyViT), preprocess=crop, labels=LABELS)
    found = hp.chili.fit(model, [(photo, mask, "bee")])
    expected = hp.chili.fit(model, [(crop(photo), mask[3:27, 10:50], "bee")])
    assert torch.equal(found.values, expected.values)
    with pytest.raises(hp.InputError, match="where the model sees the image"):
        hp.chili.fit(model, [(photo, np.arange(60) < 10 * np.ones((30, 1)), "bee")])


def test_weights_that_are_nan_are_not_measured():
    model = vit()
    model.module.head.weight.data[:] = torch.nan
    with pytest.raises(hp.ModelError, match=r"NaN or infinite for image\(s\) \[0, 1\]"):
        hp.chili.fit(model, [(one, masks(1)[0], "ant") for one in images(2)])


def test_a_mask_file_of_another_size_is_left_out(tmp_path):
    folder = write_folder(tmp_path, 1)
    Image.fromarray(np.ones((30, 40), np.uint8)).save(folder / "masks" / "0.png")
    with pytest.raises(hp.InputError, match="30 × 40 and its image 24 × 40"):
        hp.chili.fit(vit(), folder)


def test_bad_arguments_are_sentences():
    model, pairs = vit(), [(images(1)[0], masks(1)[0], "ant")]
    with pytest.raises(hp.InputError, match="It is empty"):
        hp.chili.fit(model, [])
    with pytest.raises(hp.InputError, match="expected a folder, or an iterable"):
        hp.chili.fit(model, 7)
    with pytest.raises(hp.InputError, match="alpha=0"):
        hp.chili.fit(model, pairs, alpha=0)
    with pytest.raises(hp.MethodError, match=r"binarise='positiv' is not known\. Did you mean 'positive'"):
        hp.chili.fit(model, pairs, binarise="positiv")
    with pytest.raises(hp.MethodError, match="vision transformer"):
        hp.chili.fit(hp.wrap(seeded(GapNet), preprocess=RAW, labels=LABELS), pairs)
    with pytest.raises(hp.MethodError, match="12 × 12 layers and heads, this model has 2 × 3"):
        hp.explain(model, images(1), method="chili", weights=np.zeros((12, 12)))
    with pytest.raises(hp.MethodError, match="part='objects'"):
        hp.explain(model, images(1), method="chili", part="objects")
    with pytest.raises(hp.InputError, match="weights= is int"):
        hp.explain(model, images(1), method="chili", weights=3)
    with pytest.raises(hp.MethodError, match="gradient has no contributions"):
        hp.chili.split(hp.explain(model, images(1), method="gradient"), None)


def test_weights_are_saved_with_their_provenance(tmp_path):
    weights = hp.chili.fit(vit(), [(images(1)[0], masks(1)[0], "ant")])
    loaded = hp.ChiliWeights.load(weights.save(tmp_path / "weights.safetensors"))
    assert torch.equal(loaded.values, weights.values) and loaded.provenance == weights.provenance
    ex = hp.explain(vit(), images(1), method="chili", weights=str(tmp_path / "weights.safetensors"))
    assert "2 layers × 3 heads" in ex.options["weights"]
    assert hp.Explanation.load(ex.save(tmp_path / "ex.safetensors")).contributions.equal(ex.contributions)


def test_files_that_hold_no_weights_are_sentences(tmp_path):
    (tmp_path / "text.npy").write_bytes(b"text")
    np.save(tmp_path / "flat.npy", np.zeros(4))
    np.save(tmp_path / "large.npy", np.full((2, 3), 2.0))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}]), allow_pickle=True)
    (tmp_path / "text.safetensors").write_bytes(b"text")
    for name in ("text.npy", "flat.npy", "large.npy", "pickle.npy", "text.safetensors", "none.npy", "none.safetensors"):
        with pytest.raises(hp.InputError):
            hp.ChiliWeights.load(tmp_path / name)
    with pytest.raises(hp.InputError, match="cannot be written"):
        weights_for(vit()).save(tmp_path / "none" / "weights.safetensors")


@pytest.mark.skipif(not RELEASED.is_dir(), reason="the head weights that CHILI's authors released are not here")
def test_the_released_arrays_load_with_the_figures_known_of_them():
    known = {"imagenet": (106, 0.021, 0.943, 0.604), "coco": (6, 0, 0.698, 0.404), "cub": (200, 0.003, 0.492, 0.305),
             "monumai": (4, 0, 0.573, 0.246)}  # fmt: skip
    for name, (classes, low, high, mean) in known.items():
        weights = hp.ChiliWeights.load(RELEASED / f"weights_{name}_median_random_loc_all_classes.npy")
        assert weights.values.shape == (12, 12) and weights.provenance["classes"] == classes
        found = weights.values.min().item(), weights.values.max().item(), weights.values.mean().item()
        assert found == pytest.approx((low, high, mean), abs=6e-4)
