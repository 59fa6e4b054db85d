"""Image files: each kind either works rightly, or ends in the right error, with a sentence that names what came."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import heatproof as hp
from heatproof import images
from wrong import BAD_FILES, HEIGHT, WIDTH, model, picture, write


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
    except hp.MethodError as error:
        assert hp.methods()[method].family == "tokens" and "vision transformer" in str(error)
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


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (3, 900), (50, 70)])
def test_a_strip_enters_as_if_all_of_it_were_resized(size: tuple[int, int]) -> None:
    preprocess = hp.load("efficientnet-lite0").preprocess
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    scale = 256 / min(image.size)
    whole = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - 224) // 2, (whole.height - 224) // 2
    seen = np.asarray(whole.crop((left, top, left + 224, top + 224)), np.float32)
    found = preprocess(image).permute(1, 2, 0).numpy() * 128 + 127
    assert np.abs(found - seen).max() <= 1.01  # rounding on the way


def test_a_strip_of_many_pixels_is_not_enlarged_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *rest: sizes.append(size) or resize(image, (8, 8), *rest))
    hp.load("efficientnet-lite0").preprocess(Image.new("RGB", (60_000, 1)))
    assert [width * height <= images.MAX_PIXELS for width, height in sizes] == [True]
