"""Bad input: each kind either works rightly, or ends in the right error, with a sentence that names what came."""

import json
import os
import pickle
import struct
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import heatproof as hp
from heatproof import images
from heatproof.models.weights import load_state, read_state

CLASSES = ("cat", "dog", "tabby", "teapot", "zebra")
WIDTH, HEIGHT = 23, 17


def small(classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    layers = OrderedDict(
        conv=nn.Conv2d(3, 6, 3, padding=1),
        act=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(6, classes),
    )
    return nn.Sequential(layers).eval()


def to_unit(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As in use: the suite's type checks would catch a wrong type before heatproof's own sentence does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def model() -> hp.Model:
    return hp.wrap(small(), preprocess=to_unit, labels=CLASSES)


def picture(seed: int = 0) -> Image.Image:
    """A smooth colour picture with no symmetry, so that a wrong rotation shows."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    red, green = 255 * rows / (HEIGHT - 1), 255 * columns / (WIDTH - 1)
    blue = 127 * (1 + np.sin(seed + rows / 3))
    return Image.fromarray(np.stack([red, green, blue], -1).round().astype(np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


# Files


def write(path: Path, kind: str) -> Path:
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no photograph")
    elif kind == "half a JPEG":
        picture().resize((200, 150)).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:1500])
    elif kind == "half a PNG":
        picture().resize((200, 150)).save(path, "PNG")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "only a header":
        picture().save(path, "PNG")
        path.write_bytes(path.read_bytes()[:40])
    elif kind == "flipped bits":
        picture().save(path, "PNG")
        data = bytearray(path.read_bytes())
        data[60:80] = bytes(255 - b for b in data[60:80])
        path.write_bytes(bytes(data))
    elif kind == "bomb":
        path.write_bytes(png_that_claims(60_000, 60_000))
    elif kind == "small bomb":  # above our limit, below the one where Pillow itself gives up
        path.write_bytes(png_that_claims(10_000, 10_000))
    elif kind == "folder":
        path.mkdir()
    else:
        assert kind == "missing"
    return path


BAD_FILES = {
    "zero bytes": ["0 bytes", "again"],
    "text": ["not an image", "expected JPEG"],
    "half a JPEG": ["truncated"],
    "half a PNG": ["truncated"],
    "only a header": ["not an image"],
    "flipped bits": ["damaged"],
    "bomb": [f"{images.MAX_PIXELS:,} pixels", "smaller"],
    "small bomb": [f"{images.MAX_PIXELS:,} pixels", "smaller"],
    "folder": ["folder", "list"],
    "missing": ["no file", "check the path"],
}


@pytest.mark.filterwarnings("error")  # Pillow's own warnings about bombs must not reach the user
@pytest.mark.parametrize("kind", BAD_FILES)
@pytest.mark.parametrize("as_text", [True, False], ids=["str", "Path"])
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, kind: str, as_text: bool) -> None:
    path = write(tmp_path / "photo of me.jpg", kind)
    source = str(path) if as_text else path
    for ask in (lambda: hp.explain(model(), source), lambda: model().scores(source), lambda: images.read_image(source)):
        with pytest.raises(hp.InputError) as caught:
            ask()
        for word in ["photo of me.jpg", *BAD_FILES[kind]]:
            assert word in str(caught.value), f"{word!r} is missing in: {caught.value}"


def test_the_pixel_limit_is_where_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    picture().save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", WIDTH * HEIGHT)
    assert images.read_image(path).size == (WIDTH, HEIGHT)
    monkeypatch.setattr(images, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    for source in (path, picture()):
        with pytest.raises(hp.InputError, match="limit"):
            images.read_image(source)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(hp.InputError, match="pixels"):
        images.read_image(write(tmp_path / "bomb.png", "small bomb"))


def pixels(source: Any) -> np.ndarray:
    return np.asarray(images.read_image(source)).astype(int)


EXIF_TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}
"""How a camera held that way stores the upright picture."""


@pytest.mark.parametrize("orientation", EXIF_TURNS)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientations_are_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = picture()
    stored = Image.fromarray(np.ascontiguousarray(EXIF_TURNS[orientation](np.asarray(upright))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    stored.save(path, exif=exif, **({"quality": 98, "subsampling": 0} if suffix == "jpg" else {}))
    read = pixels(path)
    assert read.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(read - np.asarray(upright)).max() <= (0 if suffix == "png" else 12)
    assert np.array_equal(pixels(Image.open(path)), read)


def test_grayscale_bilevel_and_one_pixel(tmp_path: Path) -> None:
    grey = picture().convert("L")
    assert np.array_equal(pixels(grey), np.repeat(np.asarray(grey)[..., None], 3, 2))
    assert set(np.unique(pixels(picture().convert("1")))) == {0, 255}
    for source in (Image.new("RGB", (1, 1), (9, 8, 7)), np.full((1, 1, 3), [9, 8, 7], np.uint8)):
        assert pixels(source).tolist() == [[[9, 8, 7]]]
        ex = hp.explain(model(), source, method="gradient")
        assert ex.maps.shape == (1, 1, 1, 1) and torch.isfinite(ex.maps).all()


@pytest.mark.parametrize("method", [row.name for row in hp.methods()])
def test_one_pixel_by_every_method(method: str) -> None:
    """No layer of a 1×1 image is a map: those that need one say so, the others answer."""
    try:
        ex = hp.explain(model(), Image.new("RGB", (1, 1), "red"), method=method)
    except hp.ModelError as error:
        assert "layer" in hp.methods()[method].needs and "no layer with spatial features at (1, 1)" in str(error)
    else:
        assert torch.isfinite(ex.maps).all()


@pytest.mark.parametrize("big_endian", [False, True])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, big_endian: bool) -> None:
    grey = np.asarray(picture().convert("L"))
    wide = grey.astype(">u2" if big_endian else "<u2") * 257
    path = tmp_path / ("deep.tif" if big_endian else "deep.png")
    Image.fromarray(wide if not big_endian else wide.astype("<u2")).save(path)
    assert Image.open(path).mode.startswith("I")
    assert np.array_equal(pixels(path)[..., 0], grey)
    assert np.array_equal(pixels(Image.fromarray(wide.astype(np.int32)))[..., 1], grey)  # mode I


def test_a_dark_16_bit_image_stays_dark() -> None:
    """Scaled by the type's range, not by the image's own: 200 of 65535 is black."""
    assert pixels(Image.fromarray(np.full((3, 4), 200, np.uint16))).max() == 1


def test_float_images() -> None:
    grey = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(pixels(Image.fromarray(grey))[..., 2], (grey * 255).round())
    for bad in (np.full((3, 4), np.nan, np.float32), np.full((3, 4), -1, np.float32), np.full((3, 4), 1e6, np.float32)):
        with pytest.raises(hp.InputError, match="grey values"):
            images.read_image(Image.fromarray(bad))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = picture().convert("RGBA")
    rgba.putpixel((2, 1), (200, 0, 0, 0))
    rgba.putpixel((3, 1), (255, 0, 0, 128))
    rgba.save(tmp_path / "a.png")
    for source in (rgba, tmp_path / "a.png", np.asarray(rgba)):
        read = pixels(source)
        assert read[1, 2].tolist() == [255, 255, 255]
        assert np.abs(read[1, 3] - [255, 127, 127]).max() <= 1
        assert read[5, 6].tolist() == list(picture().getpixel((6, 5)))
    grey = picture().convert("LA")
    grey.putpixel((2, 1), (0, 0))
    assert pixels(grey)[1, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize("transparent", [False, True])
def test_palettes(tmp_path: Path, transparent: bool) -> None:
    flat = Image.new("P", (4, 3), 1)
    flat.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    flat.putpixel((2, 1), 2)
    path = tmp_path / "palette.png"
    flat.save(path, **({"transparency": 2} if transparent else {}))
    read = pixels(path)
    assert read[0, 0].tolist() == [40, 50, 60]
    assert read[1, 2].tolist() == ([255, 255, 255] if transparent else [70, 80, 90])


def test_cmyk_and_ycbcr(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=98)
    assert Image.open(path).mode == "CMYK"
    assert np.abs(pixels(path) - [255, 0, 0]).max() <= 4
    assert np.abs(pixels(picture().convert("YCbCr")) - np.asarray(picture())).max() <= 4


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, loop=0)
    assert Image.open(path).n_frames == 3
    assert np.array_equal(pixels(path), np.asarray(frames[0]))


def test_a_users_pil_image_is_not_changed() -> None:
    palette = picture().convert("P")
    before = palette.mode, palette.tobytes()
    hp.explain(model(), palette)
    assert (palette.mode, palette.tobytes()) == before


# Arrays, tensors, lists


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), ["float32", "255"]),
        (np.zeros((4, 5, 3), np.int64), ["int64", "uint8"]),
        (np.zeros((4, 5, 2), np.uint8), ["(4, 5, 2)", "H×W×3"]),
        (np.zeros((3, 4, 5), np.uint8), ["(3, 4, 5)", "H×W×3"]),
        (np.zeros((5,), np.uint8), ["(5,)"]),
        (np.zeros((0, 5, 3), np.uint8), ["(0, 5, 3)"]),
        (np.zeros((2, 3, 4, 5, 3), np.uint8), ["(2, 3, 4, 5, 3)"]),
        (np.array([["a"]]), ["uint8"]),
    ],
)
def test_arrays(array: np.ndarray, words: list[str]) -> None:
    with pytest.raises(hp.InputError) as caught:
        hp.explain(model(), array)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: x[0, 0], ["(9, 11)", "(3,H,W)"]),
        (lambda x: x[:, :1], ["(2, 1, 9, 11)", "(B,3,H,W)"]),
        (lambda x: x[:, [0, 1, 2, 2]], ["(2, 4, 9, 11)"]),
        (lambda x: x.permute(0, 2, 3, 1), ["(2, 9, 11, 3)"]),
        (lambda x: x[None], ["(1, 2, 3, 9, 11)"]),
        (lambda x: x[:0], ["(0, 3, 9, 11)"]),
        (lambda x: x[..., :0], ["(2, 3, 9, 0)", "pixel"]),
        (lambda x: (x * 255).to(torch.uint8), ["uint8", "preprocess"]),
        (lambda x: x.long(), ["int64", "floats"]),
        (lambda x: x.bool(), ["bool"]),
        (lambda x: x.to(torch.complex64), ["complex64"]),
        (lambda x: x.index_fill(0, torch.tensor(1), torch.nan), ["NaN", "[1]"]),
        (lambda x: x.index_fill(3, torch.tensor(4), torch.inf), ["infinite", "[0, 1]"]),
        (lambda x: x.index_fill(3, torch.tensor(4), -torch.inf), ["infinite"]),
    ],
)
def test_tensors(make: Callable[[Tensor], Tensor], words: list[str]) -> None:
    x = make(torch.rand(2, 3, 9, 11))
    for ask in (lambda: hp.explain(model(), x), lambda: model().scores(x), lambda: hp.explain(None, x, method="edges")):
        with pytest.raises(hp.InputError) as caught:
            ask()
        assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("source", [[], (), None, 7, {"a": 1}, b"bytes", object(), [None], [3.5]])
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_image(source: Any) -> None:
    with pytest.raises(hp.InputError) as caught:
        hp.explain(model(), source)
    assert "no images" in str(caught.value) or "expected" in str(caught.value)


def test_images_of_different_sizes_are_named() -> None:
    with pytest.raises(hp.InputError, match=r"different sizes.*one size each"):
        hp.explain(model(), [picture(), picture().resize((9, 9))])


@pytest.mark.usefixtures("unchecked")
def test_a_preprocess_that_returns_something_else() -> None:
    for transform, word in ((lambda i: np.zeros(3), "ndarray"), (lambda i: torch.zeros(1, 4, 4), "(1, 4, 4)")):
        with pytest.raises(hp.InputError, match="preprocess") as caught:
            hp.explain(hp.wrap(small(), preprocess=transform), picture())
        assert word in str(caught.value)


def test_a_preprocess_that_raises() -> None:
    def transform(_image: Image.Image) -> Tensor:
        raise RuntimeError("out of paper")

    with pytest.raises(hp.InputError, match="out of paper"):
        hp.explain(hp.wrap(small(), preprocess=transform), picture())


def test_a_preprocess_that_makes_nan() -> None:
    with pytest.raises(hp.InputError, match="NaN"):
        hp.explain(hp.wrap(small(), preprocess=lambda i: to_unit(i) / 0 * 0), picture())


# Targets


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (5, ["5", "5 classes", "0 to 4"]),
        (-1, ["-1", "0 to 4"]),
        (10**30, ["out of range"]),
        (True, ["True", "bool"]),
        (1.0, ["1.0", "float"]),
        ([0, 1.5], ["1.5", "float"]),
        (float("nan"), ["float"]),
        ([0], ["1 targets", "2 image"]),
        ([0, 1, 2], ["3 targets", "2 image"]),
        ([], ["0 targets", "2 image"]),
        ([[0, 1], [2]], ["differ in length"]),
        ([[0], 1], ["differ in length"]),
        ([[], []], ["at least one"]),
        ([0, 9], ["9", "0 to 4"]),
        ([[0, 1], [2, "dgo"]], ["dgo", "'dog'"]),
        ("tabyb", ["tabyb", "'tabby'", "5 labels"]),
        ("", ["''"]),
        ("7", ["7", "0 to 4"]),
        ({"cat": 1}, ["dict"]),
        (b"cat", ["bytes"]),
        (object(), ["object"]),
        (np.array([0.5, 1.5]), ["float"]),
        (torch.tensor([0, 7]), ["7", "0 to 4"]),
        (torch.tensor([True, False]), ["bool"]),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_targets(target: Any, words: list[str]) -> None:
    with pytest.raises(hp.InputError) as caught:
        hp.explain(model(), torch.rand(2, 3, 9, 11), target=target)
    assert all(word in str(caught.value) for word in words), caught.value


def test_targets_that_are_right() -> None:
    x = torch.rand(2, 3, 9, 11)
    top = model().scores(x).argmax(1)[:, None]
    for target, expected in (
        (None, top),
        (3, [[3], [3]]),
        ("Tabby ", [[2], [2]]),
        ("1", [[1], [1]]),
        ([1, "dog"], [[1], [1]]),
        ((0, 4), [[0], [4]]),
        ([[0, "zebra"], [None, 2]], [[0, 4], [int(top[1]), 2]]),
        (np.array([1, 2]), [[1], [2]]),
        (np.int64(2), [[2], [2]]),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    ):
        ex = hp.explain(model(), x, target=target)
        assert torch.equal(ex.targets, torch.as_tensor(expected)), target
        assert torch.equal(ex.scores, model().scores(x).gather(1, ex.targets))


def test_labels_that_are_ambiguous_or_absent() -> None:
    twice = hp.wrap(small(), labels=("crane", "crane", "Cardigan", "cardigan", "a, b"))
    x = torch.rand(3, 9, 11)
    with pytest.raises(hp.InputError, match=r"\[0, 1\]"):
        hp.explain(twice, x, target="crane")
    assert [int(hp.explain(twice, x, target=t).targets) for t in ("Cardigan", "cardigan", "b")] == [2, 3, 4]
    with pytest.raises(hp.InputError, match=r"this model has none.*index"):
        hp.explain(small(), x, target="cat")
    with pytest.raises(hp.InputError, match="labels"):
        hp.wrap(small(), labels="cat")


def test_fewer_labels_than_classes_still_name_what_they_can() -> None:
    ex = hp.explain(hp.wrap(small(), labels=("cat",)), torch.rand(3, 9, 11), target=[[0, 3]])
    assert ex.target_names == [["cat", "class 3"]]


# Methods, options, layers


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("grad-cam", {}, ["grad-cam", "'gradcam'", "hp.methods()"]),
        ("GradCAM", {}, ["'gradcam'"]),
        ("integrated", {}, ["'integrated-gradients'"]),
        ("", {}, ["''"]),
        ([], {}, ["no method"]),
        (["gradcam", "nope"], {}, ["nope"]),
        ("gradcam", {"steps": 3}, ["gradcam", "'steps'", "Known", "layer"]),
        ("smoothgrad", {"sample": 3}, ["'sample'", "'samples'"]),
        ("edges", {"layer": "conv"}, ["edges", "layer"]),
        (["gradcam", "smoothgrad"], {"nois": 1}, ["'noise'"]),
    ],
)
def test_methods_and_options(method: Any, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(hp.MethodError) as caught:
        hp.explain(model(), torch.rand(3, 9, 11), method=method, **options)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("method", [None, 3, ["gradcam", 3], {"gradcam"}])
@pytest.mark.usefixtures("unchecked")
def test_a_method_that_is_no_name(method: Any) -> None:
    with pytest.raises(hp.MethodError):
        hp.explain(model(), torch.rand(3, 9, 11), method=method)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("integrated-gradients", {"steps": 0}),
        ("integrated-gradients", {"steps": 2.5}),
        ("integrated-gradients", {"steps": True}),
        ("integrated-gradients", {"baseline": torch.zeros(3, 2, 2)}),
        ("integrated-gradients", {"baseline": "black"}),
        ("smoothgrad", {"samples": -1}),
        ("smoothgrad", {"noise": -0.1}),
        ("smoothgrad", {"noise": float("nan")}),
        ("taylor", {"root": torch.zeros(4, 9, 11)}),
        ("scorecam", {"batch_size": 0}),
        ("ablationcam", {"batch_size": "many"}),
        ("smoothgrad", {"seed": "x"}),
        ("random", {"seed": 1.5}),
        ("smoothgrad", {"noise": "loud"}),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_option_values(method: str, options: dict[str, Any]) -> None:
    with pytest.raises((hp.InputError, hp.MethodError)) as caught:
        hp.explain(model(), torch.rand(3, 9, 11), method=method, **options)
    assert next(iter(options)) in str(caught.value)


def test_a_method_without_its_model() -> None:
    with pytest.raises(hp.MethodError, match=r"gradcam.*needs a model"):
        hp.explain(None, torch.rand(3, 9, 11), method="gradcam")
    assert hp.explain(None, torch.rand(3, 9, 11), method="center").scores is None


@pytest.mark.parametrize("wrong", ["efficientnet-lite0", 3, object()])
@pytest.mark.usefixtures("unchecked")
def test_a_model_that_is_none(wrong: Any) -> None:
    with pytest.raises(hp.ModelError, match="load"):
        hp.explain(wrong, torch.rand(3, 9, 11))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("con", ["'con'", "'conv'", "named_modules"]),
        ("", ["no layer ''"]),
        ("head", ["head", "no map", "'act'"]),
        ([], ["no layer"]),
        (["conv", "nope"], ["nope"]),
        (3, ["3"]),
        (nn.Conv2d(3, 3, 1), ["Conv2d", "not part of"]),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_layers(layer: Any, words: list[str]) -> None:
    with pytest.raises(hp.ModelError) as caught:
        hp.explain(model(), torch.rand(3, 9, 11), layer=layer)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_layer_that_never_runs() -> None:
    net = small()
    net.spare = nn.Conv2d(3, 3, 1)

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.spare = small(), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with pytest.raises(hp.ModelError, match=r"spare.*did not run"):
        hp.explain(Skips(), torch.rand(3, 9, 11), layer="spare")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("efficientnet-lite", ["'efficientnet-lite0'"]),
        ("resnet50", ["resnet50", "torchvision/NAME"]),
        ("torchvision/", ["torchvision/NAME"]),
        ("nowhere/resnet50", ["Known"]),
        ("", ["''"]),
    ],
)
def test_model_names(name: str, words: list[str]) -> None:
    with pytest.raises(hp.ModelError) as caught:
        hp.load(name)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.usefixtures("unchecked")
def test_wrap_wants_a_module() -> None:
    with pytest.raises(hp.ModelError, match=r"str.*Module"):
        hp.wrap("resnet50")
    with pytest.raises(hp.InputError, match="preprocess"):
        hp.wrap(small(), preprocess=3)
    with pytest.raises(hp.ModelError, match="text encoder"):
        hp.wrap(small(), prompts=["a cat"])


# Networks


class Says(nn.Module):
    """A network that returns what it is told to."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.form = small(), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.inner(x))


class LikeAHuggingFaceOutput(OrderedDict):
    def __getattr__(self, name: str) -> Any:
        return self[name]


@pytest.mark.parametrize(
    "form",
    [
        lambda s: (s,),
        lambda s: [s, s * 0],
        lambda s: {"logits": s},
        lambda s: {"loss": None, "logits": s, "hidden_states": (s, s)},
        lambda s: LikeAHuggingFaceOutput(hidden_states=(s * 0,), logits=s),
        lambda s: type("Output", (), {"logits": s})(),
        lambda s: (None, s),
    ],
)
def test_outputs_that_work(form: Callable[[Tensor], Any]) -> None:
    x = torch.rand(2, 3, 9, 11)
    assert torch.equal(hp.explain(Says(form), x).raw, hp.explain(small(), x).raw)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda s: None, ["NoneType", "logits"]),
        (lambda s: "cat", ["str"]),
        (lambda s: 3.5, ["float"]),
        (lambda s: {}, ["dict"]),
        (lambda s: (), ["tuple"]),
        (lambda s: s.detach().numpy(), ["ndarray"]),
        (lambda s: s[:, :, None, None].expand(-1, -1, 4, 4), ["5, 4, 4)", "(B, C)"]),
        (lambda s: s[:, 0], ["shape (", ",)", "(B, C)"]),
        (lambda s: s.sum(), ["()", "(B, C)"]),
        (lambda s: s[:1], ["(1, 5)", "2 image"]),
        (lambda s: s * torch.nan, ["NaN", "weights"]),
        (lambda s: s / 0, ["infinite"]),
        (lambda s: s.argmax(1), [",)", "(B, C)"]),
        (lambda s: s[:, :0], [", 0)", "(B, C)"]),
        (lambda s: 1 / 0, ["ZeroDivisionError"]),
    ],
)
@pytest.mark.parametrize("method", ["gradcam", "gradient", "scorecam"])
def test_outputs_that_cannot_work(form: Callable[[Tensor], Any], words: list[str], method: str) -> None:
    with pytest.raises(hp.ModelError) as caught:
        hp.explain(Says(form), torch.rand(2, 3, 9, 11), method=method)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", [row.name for row in hp.methods() if "model" in row.needs])
def test_weights_that_are_nan(value: float, method: str) -> None:
    net = small()
    net.head.weight.data[:] = value
    with pytest.raises(hp.ModelError, match=r"NaN or infinite.*weights"):
        hp.explain(net, torch.rand(3, 9, 11), method=method)


def test_one_nan_class_does_not_hide_the_others_silently() -> None:
    net = small()
    net.head.weight.data[2] = torch.nan
    with pytest.raises(hp.ModelError, match="NaN"):
        hp.explain(net, torch.rand(3, 9, 11), target=1)


def test_a_network_that_refuses_the_size() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(hp.ModelError, match=r"RuntimeError.*\(1, 3, 9, 11\).*size"):
        hp.explain(net, torch.rand(3, 9, 11), method="gradient")


@pytest.mark.parametrize("method", ["gradcam", "gradient", "layercam", "integrated-gradients"])
def test_a_network_without_gradients_says_what_to_use(method: str) -> None:
    with pytest.raises(hp.ModelError, match="scorecam"):
        hp.explain(Says(lambda s: s.detach()), torch.rand(3, 9, 11), method=method)
    assert torch.isfinite(hp.explain(Says(lambda s: s.detach()), torch.rand(3, 9, 11), method="scorecam").maps).all()


def test_a_network_without_parameters_or_classes() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((-2, -1))

    ex = hp.explain(Mean(), torch.rand(2, 3, 9, 11), method="gradient")
    torch.testing.assert_close(ex.maps, torch.full_like(ex.maps, 1 / 99))


# Weight files


class Bomb:
    """Leaves a file behind if anybody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ".ckpt", ""])
@pytest.mark.parametrize("writer", ["torch", "old torch", "pickle"])
def test_code_in_a_weights_file_never_runs(tmp_path: Path, suffix: str, writer: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    state = {"head.weight": torch.zeros(2, 2), "extra": Bomb(mark)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=writer == "torch")
    assert not mark.exists()
    for load in (lambda: read_state(path), lambda: hp.load("efficientnet-lite0", weights=path)):
        with pytest.raises(hp.ModelError) as caught:
            load()
        assert path.name in str(caught.value) and not mark.exists()
    if suffix != ".safetensors":
        assert "not run" in str(caught.value)
    pickle.loads(pickle.dumps(state))  # the trap does work
    assert mark.exists()


def damaged(kind: str, path: Path) -> None:
    good = {"conv.weight": torch.zeros(6, 3, 3, 3)}
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no weights here, sorry" * 9)
    elif kind == "half":
        (save_file if path.suffix == ".safetensors" else torch.save)(good, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge header":
        path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)
    elif kind == "a tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "numbers":
        torch.save([1, 2], path)
    else:
        assert kind == "missing"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "kind", ["zero bytes", "text", "half", "folder", "huge header", "missing", "no tensors", "a tensor", "numbers"]
)
def test_damaged_weights(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"best{suffix}"
    damaged(kind, path)
    for load in (lambda: read_state(path), lambda: hp.load("efficientnet-lite0", weights=path)):
        with pytest.raises(hp.ModelError) as caught:
            load()
        assert path.name in str(caught.value)


def test_weights_of_another_model_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    state = {name: tensor.clone() for name, tensor in small(7).state_dict().items()} | {"more": torch.zeros(1)}
    del state["conv.bias"]
    save_file(state, path)
    before = {name: tensor.clone() for name, tensor in small().state_dict().items()}
    net = small()
    with pytest.raises(hp.ModelError) as caught:
        load_state(net, read_state(path), path)
    for word in ("1 missing", "conv.bias", "1 unknown", "more", "2 of another shape", "head.weight", "other.safetensors"):
        assert word in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_usual_wrappings_of_weights_are_understood(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in small().state_dict().items()}
    path = tmp_path / "w.pt"
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    net = small()
    net.head.weight.data.zero_()
    load_state(net, read_state(path), path)
    assert torch.equal(net.head.weight, small().head.weight)


# Constant maps


@pytest.mark.parametrize("method", [row.name for row in hp.methods()])
def test_nothing_to_see_gives_a_constant_map_and_no_nan(method: str) -> None:
    """A network that ignores its image, and an image without contrast."""
    net = small()
    net.conv.weight.data.zero_()
    net.conv.bias.data.fill_(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ex = hp.explain(net, torch.full((2, 3, 9, 11), 0.5), method=method, target=[[0, 1]] * 2 if _asks(method) else None)
        assert torch.isfinite(ex.maps).all() and torch.isfinite(ex.raw).all()
        if method not in ("random", "center"):
            assert (ex.maps == ex.maps[:, :, :1, :1]).all()
            assert "constant" in repr(ex)
            grey = np.asarray(ex.overlay())
            assert grey.shape == (9, 11, 3) and ex._repr_png_()[:4] == b"\x89PNG" and "<img" in ex._repr_html_()


def _asks(method: str) -> bool:
    return "model" in hp.methods()[method].needs


def test_the_overlay_of_a_constant_map_says_so() -> None:
    """The picture stays grey and carries a note; a map that stands out is coloured."""
    from heatproof.overlay import overlay

    image = np.full((60, 120, 3), 128, np.uint8)
    for heat, signed in ((np.zeros((60, 120)), False), (np.full((60, 120), 3.0), True), (np.full((60, 120), np.nan), False)):
        drawn = np.asarray(overlay(image, heat, signed)).astype(int)
        assert (drawn.max(2) == drawn.min(2)).all()  # grey throughout
        assert (drawn != 128).any()  # the note
    heat = np.zeros((60, 120))
    heat[20:30] = 1
    drawn = np.asarray(overlay(image, heat, False)).astype(int)
    assert (drawn.max(2) - drawn.min(2)).max() > 50


# One bad image among many


@pytest.mark.parametrize("method", ["gradcam", "gradient-x-input", "edges"])
@pytest.mark.parametrize("bad_first", [True, False])
def test_only_the_bad_file_is_lost(tmp_path: Path, method: str, bad_first: bool) -> None:
    good = []
    for n in range(3):
        good.append(tmp_path / f"good{n}.png")
        picture(n).save(good[-1])
    bad = write(tmp_path / "bad.jpg", "text")
    files: list[Any] = [bad, *good] if bad_first else [*good[:2], bad, good[2]]
    at = files.index(bad)
    asked = None if method == "edges" else model()
    target = {} if method == "edges" else {"target": [1, 2, 3, 4]}
    with pytest.warns(UserWarning, match=rf"image {at}: .*bad\.jpg.*row is NaN"):
        ex = hp.explain(asked, files, method=method, **target)
    assert list(ex.errors) == [at] and "bad.jpg" in ex.errors[at]
    assert torch.isnan(ex.maps[at]).all() and torch.isnan(ex.raw[at]).all() and not ex.images[at].any()
    assert ex.names == tuple(map(str, files))
    if ex.targets is not None:
        assert int(ex.targets[at]) == -1 and torch.isnan(ex.scores[at]).all()
    if ex.residual is not None:
        assert torch.isnan(ex.residual[at]).all()
    for i, file in enumerate(files):
        if i != at:
            single = hp.explain(asked, file, method=method, **({"target": target["target"][i]} if target else {}))
            torch.testing.assert_close(ex.maps[i], single.maps[0])
            torch.testing.assert_close(ex.raw[i], single.raw[0])
            assert torch.equal(ex.images[i], single.images[0])
            if ex.targets is not None:
                assert torch.equal(ex.targets[i], single.targets[0])
    assert "bad.jpg" in repr(ex) and ex.overlay(at).size == (WIDTH, HEIGHT)
    path = ex.save(tmp_path / "ex.safetensors")
    again = hp.Explanation.load(path)
    assert again.errors == ex.errors and torch.equal(again.maps.isnan(), ex.maps.isnan())


def test_all_bad_is_an_error(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.jpg", "text"), write(tmp_path / "b.jpg", "zero bytes")]
    with pytest.raises(hp.InputError, match=r"a\.jpg"):
        hp.explain(model(), files)


def test_bad_arrays_and_tensors_in_a_list_cost_their_row_only() -> None:
    mixed = [picture(), np.zeros((4, 5, 2), np.uint8), torch.rand(3, HEIGHT, WIDTH), torch.rand(4, HEIGHT, WIDTH), None]
    with pytest.warns(UserWarning):
        ex = hp.explain(model(), mixed)
    assert sorted(ex.errors) == [1, 3, 4]
    assert torch.isfinite(ex.maps[[0, 2]]).all()
    torch.testing.assert_close(ex.maps[2], hp.explain(model(), mixed[2]).maps[0])


def test_a_nan_image_in_a_list_costs_its_row_only() -> None:
    mixed = [torch.rand(3, 9, 11), torch.full((3, 9, 11), torch.nan)]
    with pytest.warns(UserWarning, match="NaN"):
        ex = hp.explain(model(), mixed)
    assert list(ex.errors) == [1] and torch.isfinite(ex.maps[0]).all()


# Saving and loading


def explanation() -> hp.Explanation:
    return hp.explain(model(), torch.rand(2, 3, 9, 11), method="gradient-x-input", target=[[0, 1], [2, 3]])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("step", ["save_file", "os.replace", "os.chmod"])
@pytest.mark.parametrize("existing", [True, False])
def test_save_writes_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str, existing: bool
) -> None:
    import heatproof.explanation as room

    path = tmp_path / "ex.safetensors"
    if existing:
        path.write_bytes(b"what was there before")

    def fail(*arguments: Any, **_: Any) -> None:
        if step == "save_file":
            Path(arguments[1]).write_bytes(b"half of it")
        raise error

    ex = explanation()
    with monkeypatch.context() as patch:
        if step == "save_file":
            patch.setattr(room, "save_file", fail)
        else:
            patch.setattr(os, step.removeprefix("os."), fail)
        with pytest.raises(hp.InputError if isinstance(error, OSError) else type(error)) as caught:
            ex.save(path)
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value) and "ex.safetensors" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == (["ex.safetensors"] if existing else [])
    if existing:
        assert path.read_bytes() == b"what was there before"
    ex.save(path)
    assert torch.equal(hp.Explanation.load(path).maps, ex.maps)


def test_save_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(hp.InputError, match=r"ex\.safetensors.*another place"):
        explanation().save(tmp_path / "no" / "such" / "folder" / "ex.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(hp.InputError, match="folder"):
        explanation().save(tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"] and not list((tmp_path / "folder").iterdir())


def header_of(path: Path, **changes: Any) -> None:
    """Rewrite an explanation's header with some entries changed, or removed where they are None."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["heatproof"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header |= changes
    header = {name: value for name, value in header.items() if value != "absent"}
    save_file(tensors, path, {"heatproof": json.dumps(header)})


def harm(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "half":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "text":
        path.write_text("hello" * 50)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"maps": 1}))
    elif kind == "other safetensors":
        save_file({"maps": torch.zeros(2)}, path)
    elif kind == "broken JSON":
        save_file({"maps": torch.zeros(2)}, path, {"heatproof": "{"})
    elif kind == "list header":
        save_file({"maps": torch.zeros(2)}, path, {"heatproof": "[1]"})
    elif kind == "no tensors":
        save_file({}, path, {"heatproof": json.dumps({"schema": 1})})
    elif kind == "newer schema":
        header_of(path, schema=99)
    elif kind == "unknown field":
        header_of(path, surprise=1)
    elif kind == "no errors field":
        header_of(path, errors="absent")
    elif kind == "no method":
        header_of(path, method="absent")
    elif kind == "errors of a wrong kind":
        header_of(path, errors=[1, 2])
    elif kind == "maps of another shape":
        torn = explanation()
        object.__setattr__(torn, "maps", torn.maps[..., :3].clone())
        torn.save(path)
    elif kind == "layer of a wrong kind":
        header_of(path, layer=3)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        assert kind == "missing"
        path.unlink()


@pytest.mark.parametrize(
    "kind",
    ["zero bytes", "half", "text", "pickle", "other safetensors", "broken JSON", "list header", "no tensors", "newer schema",
     "unknown field", "no errors field", "no method", "errors of a wrong kind", "layer of a wrong kind",
     "maps of another shape", "folder", "missing"],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_damaged_explanations(tmp_path: Path, kind: str) -> None:
    path = explanation().save(tmp_path / "ex.safetensors")
    harm(path, kind)
    with pytest.raises(hp.InputError, match=r"ex\.safetensors"):
        hp.Explanation.load(path)


def test_maps_that_are_not_there() -> None:
    ex = explanation()
    with pytest.raises(hp.InputError, match=r"2 image\(s\) × 2 target\(s\)"):
        _ = ex.map
    for i, t in ((2, 0), (0, 2), (-3, 0)):
        with pytest.raises(hp.InputError, match="no map"):
            ex.overlay(i, t)


@pytest.mark.parametrize("name", ["n" * 300 + ".png", "nul\0.png"])
def test_a_name_that_no_file_can_have_is_a_sentence(name):
    with pytest.raises(hp.InputError, match="check the path"):
        hp.explain(None, name, method="center")
