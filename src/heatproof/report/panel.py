"""A contact sheet: what the model saw beside the maps of several methods, each with its target and score."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from heatproof.errors import InputError
from heatproof.explanation import Explanation

_GAP, _HEAD, _FOOT = 8, 40, 22
_INK, _PALE = (20, 20, 20), (105, 105, 105)


def panel(explanations: Mapping[str, Explanation], i: int = 0, tile: int = 224, columns: int = 6) -> Image.Image:
    """Draw image `i` and its maps side by side, one block of rows per target.

    Args:
        explanations: by method, of the same images and targets, as `explain()` returns them for a list of methods.
        i: which image.
        tile: longer side of each picture in pixels.
        columns: pictures in a row.

    Returns:
        An RGB image. Each map is on its own scale; signed maps are red for and blue against, said in the last line.

    Raises:
        InputError: no explanations, or not of the same images and targets.
    """
    each = list(explanations.values())
    shapes = {(one.maps.shape[:2], one.maps.shape[2:]) for one in each}
    if len(shapes) != 1:
        raise InputError(
            f"a panel takes explanations of the same images and targets; {len(each)} came with {len(shapes)} kinds of shape."
        )
    height, width = each[0].maps.shape[-2:]
    size = (max(1, round(width * tile / max(height, width))), max(1, round(height * tile / max(height, width))))
    cells = []
    for t in range(each[0].maps.shape[1]):
        block = [(each[0].image(i), each[0].model_name or "the image", _named(each[0], i))]
        block += [(one.overlay(i, t), one.method, _said(one, i, t)) for one in each]
        cells += [block[n : n + columns] for n in range(0, len(block), columns)]
    step = (size[0] + _GAP, size[1] + _HEAD + _GAP)
    sheet = Image.new("RGB", (max(map(len, cells)) * step[0] + _GAP, len(cells) * step[1] + _GAP + _FOOT), "white")
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(cells):
        for column, (picture, title, text) in enumerate(line):
            x, y = _GAP + column * step[0], _GAP + row * step[1]
            draw.text((x, y), _fitted(title, _font(14, True), size[0]), _INK, _font(14, True))
            draw.text((x, y + 18), _fitted(text, _font(12), size[0]), _PALE, _font(12))
            # small pictures keep their pixels' edges, large ones are averaged
            how = Image.Resampling.NEAREST if picture.width < size[0] else Image.Resampling.LANCZOS
            sheet.paste(picture.resize(size, how), (x, y + _HEAD))
    foot = _fitted(_legend(each), _font(11), sheet.width - 2 * _GAP)
    draw.text((_GAP, sheet.height - _FOOT), foot, _PALE, _font(11))
    return sheet


def _named(one: Explanation, i: int) -> str:
    name = one.names[i] if one.names else None
    return Path(name).name if name else ""


def _said(one: Explanation, i: int, t: int) -> str:
    if one.target_names is None or one.scores is None:
        return "needs no model"
    return f"{one.target_names[i][t]} · {one.scores[i, t]:.3f}"


def _legend(each: list[Explanation]) -> str:
    signed = any(one.signed for one in each)
    plain = any(not one.signed for one in each)
    parts = ["bright: the map's own highest values"] * plain + ["red: for the target, blue: against it"] * signed
    return " · ".join(parts)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Text that is cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # brings a font that has most scripts' letters

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
