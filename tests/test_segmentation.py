"""The segmentation protocol against a slow version, and the command that runs it over a folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import heatproof as hp
from heatproof.cli import main
from heatproof.masks import read_mask, read_masked
from heatproof.proof.segmentation import Segmentation
from heatproof.scale import segmentation as scale
from tiny import GapNet, TinyViT, images, seeded


def data(seed=0, count=4, shape=(7, 9)):
    chance = np.random.default_rng(seed)
    maps = chance.normal(size=(count, *shape)).round(1).astype(np.float32)
    masks = chance.random((count, *shape)) < chance.random((count, 1, 1))
    return maps, masks, chance.random((count, *shape)) < 0.1


def slowly(maps, masks, void):
    """Pixel by pixel, in the protocol's words; average precision by one threshold after the other."""
    right = total = 0
    inter, union = {0: 0, 1: 0}, {0: 0, 1: 0}
    precisions = []
    for heat, mask, skip in zip(maps, masks, void, strict=True):
        clipped = np.maximum(heat, 0)
        soft = (clipped - clipped.min()) / (clipped.max() - clipped.min())
        middle = soft.mean(dtype=np.float64)
        values, truths = [], []
        for p in np.ndindex(heat.shape):
            if skip[p]:
                continue
            predicted, true = int(soft[p] > middle), int(mask[p])
            total += 1
            right += predicted == true
            for c in (0, 1):
                inter[c] += predicted == c and true == c
                union[c] += predicted == c or true == c
            values += [soft[p], np.float32(1) - soft[p]]
            truths += [true == 1, true == 0]
        area = reached = 0
        for t in sorted(set(values), reverse=True):
            marked = [truth for value, truth in zip(values, truths, strict=True) if value >= t]
            recall = sum(marked) / sum(truths)
            area, reached = area + (recall - reached) * sum(marked) / len(marked), recall
        precisions.append(area)
    return right / total, (inter[0] / union[0] + inter[1] / union[1]) / 2, np.mean(precisions)


def test_the_protocol():
    maps, masks, void = data()
    expected = slowly(maps, masks, void)
    whole = Segmentation()
    whole.update(maps, masks, void)
    found = whole.compute()
    assert [found["pixel_accuracy"], found["miou"], found["map"]] == pytest.approx(expected, abs=1e-6)
    first, second = Segmentation(), Segmentation()
    first.update(torch.tensor(maps[:1]), torch.tensor(masks[:1]), void[:1])
    second.update(maps[1:], masks[1:], void[1:])
    assert first.merge(second).compute() == pytest.approx(found) and len(first.precisions) == 1


def test_counts_are_pooled_over_the_data_set():
    """A large object found and a small one missed: pooled foreground IoU is 12/13, the mean of the two would be ½."""
    masks = np.zeros((2, 5, 8), bool)
    masks[0, :3, :4] = masks[1, 4, 7] = True
    one = Segmentation()
    one.update(masks * [[[1.0]], [[0.0]]], masks)
    assert one.compute()["iou_foreground"] == pytest.approx(12 / 13)


def test_constant_maps_are_background_and_bad_input_is_told():
    maps, masks, void = data()
    one = Segmentation()
    one.update(np.full_like(maps, 3), masks)
    assert one.compute()["pixel_accuracy"] == pytest.approx(1 - masks.mean())
    with pytest.raises(hp.InputError, match="no image"):
        Segmentation().compute()
    for bad in [(maps[0], masks[0]), (maps, masks[1:]), (maps * np.nan, masks), (maps, masks, void | True)]:
        with pytest.raises(hp.InputError):
            Segmentation().update(*bad)


@pytest.fixture
def folder(tmp_path):
    """Three photos of one white square each, of different sizes, with masks and targets."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for n, (height, width) in enumerate([(60, 80), (50, 50), (90, 40)]):
        image = np.random.default_rng(n).integers(0, 60, size=(height, width, 3)).astype(np.uint8)
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : height // 2, width // 4 : width // 2] = 255
        image[mask > 0] = 255
        Image.fromarray(image).save(tmp_path / "images" / f"{n}.jpg")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{n}.png")
    (tmp_path / "targets.json").write_text(json.dumps({"0": "tabby", "1.jpg": 7}))
    return tmp_path


def test_the_command(folder, capsys):
    arguments = ["bench", "segmentation", str(folder), "--method", "gradcam,region-contrast", "-o", str(folder / "out")]
    assert main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "out" / "segmentation.json").read_text())["summary"] == said["summary"]
    table = {row["method"]: row for row in said["summary"]}
    assert set(table) == {"gradcam", "region-contrast", "center"} and said["model"] == "efficientnet-lite0"
    assert next(iter(table)) == "region-contrast" and table["region-contrast"]["pointing"]["value"] == 1
    assert said["images"]["0"]["target"] == "tabby" and said["images"]["1"]["target"] == "cock"

    model = hp.load("efficientnet-lite0")
    whole = Segmentation()
    for one, target in zip(read_masked(folder)[0], ["tabby", 7, None], strict=True):
        photo = Image.open(one.path).resize((224, 224), Image.Resampling.BILINEAR)
        x = (torch.tensor(np.asarray(photo).copy()).permute(2, 0, 1).float() / 255 - 127 / 255) / (128 / 255)
        heat = hp.explain(model, x, method="gradcam", target=target).maps[0]
        whole.update(heat, np.asarray(Image.open(one.mask).resize((224, 224), Image.Resampling.NEAREST))[None])
    assert {key: table["gradcam"][key] for key in whole.compute()} == pytest.approx(whole.compute(), abs=5e-3)

    (folder / "images" / "1.jpg").write_bytes(b"no image")
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert "mIoU" in out and "2 images" in out and "1.jpg" in err and "Traceback" not in err


def test_without_a_model_images_keep_their_sizes(folder):
    rows = list(scale.score_images(read_masked(folder)[0], None, ["edges", "center"]))
    assert [row.error for row in rows] == [None] * 3 and rows[0].target is None
    assert rows[2].segmentations["edges"].counts.sum() == 90 * 40
    assert scale.told(scale.summary(rows)["center"]["miou"]).startswith("0.")


def test_any_model_and_one_bad_image_costs_its_own_row(folder):
    (folder / "targets.json").write_text(json.dumps({"0": 99, "1": "nonsense", "3": 2}))
    found, failed = read_masked(folder)
    assert len(found) == 3 and set(failed) == {"3"}
    preprocess = hp.models.preprocess.resize_crop(40, 24, (0.5,) * 3, (0.2,) * 3)
    model = hp.wrap(seeded(GapNet), preprocess=preprocess, labels=list("abcde"))
    rows = list(scale.score_images(found, model, ["gradcam"]))
    assert "out of range" in rows[0].error and "nonsense" in rows[1].error and rows[2].error is None
    assert rows[2].segmentations["gradcam"].counts.sum() == 24 * 24
    with pytest.raises(hp.MethodError):
        list(scale.score_images(found, model, ["gradcam"], options={"stepz": 2}))
    with pytest.raises(hp.ModelError, match="layer"):
        list(scale.score_images(found[2:], model, ["gradcam"], layer="nowhere"))
    with pytest.raises(hp.ModelError, match="normalisation"):
        list(scale.score_images(found, hp.wrap(seeded(TinyViT), preprocess=lambda image: images(1)[0]), ["gradcam"]))


def test_masks_of_every_kind(tmp_path):
    values = np.array([[0, 1, 255], [0, 7, 0]], np.uint8)
    palette = Image.fromarray(values).convert("P")
    palette.putpalette([0, 0, 0] * 256)  # colours that say nothing
    colours = np.stack([values * 0, values, values * 0], 2)
    for n, mask in enumerate([Image.fromarray(values), palette, Image.fromarray(colours), Image.fromarray(values > 0)]):
        mask.save(tmp_path / f"{n}.png")
        expected = np.array([[0, 1, 1], [0, 1, 0]])
        assert np.array_equal(read_mask(tmp_path / f"{n}.png", (2, 3)), expected)
        assert np.array_equal(read_mask(tmp_path / f"{n}.png", (4, 3)), expected.repeat(2, 0))
    assert read_mask(tmp_path / "1.png", (2, 3), void=255).tolist() == [[0, 1, 2], [0, 1, 0]]
    (tmp_path / "9.png").write_bytes(b"")
    with pytest.raises(hp.InputError, match="cannot be read"):
        read_mask(tmp_path / "9.png", (2, 3))


def test_bad_folders_and_usage(folder, tmp_path, capsys):
    assert main(["bench", "segmentation", str(folder / "nowhere")]) == 2
    assert "images/" in capsys.readouterr().err
    assert main(["bench", "segmentation", str(folder), "--method", "gradcan"]) == 2
    assert main(["bench", "segmentation", str(folder), "--method", ","]) == 2
    assert main(["bench", "segmentation", str(folder), "--model", "nonsense"]) == 2
    for text, said in {"[": "JSON", "[]": "list", '{"0": []}': "label"}.items():
        (folder / "targets.json").write_text(text)
        if text != '{"0": []}':
            with pytest.raises(hp.InputError, match=said):
                read_masked(folder)
        else:
            assert said in read_masked(folder)[1]["0"]
    for path in (folder / "masks").iterdir():
        path.unlink()
    (folder / "targets.json").unlink()
    with pytest.raises(hp.InputError, match="has no image with a mask"):
        read_masked(folder)
