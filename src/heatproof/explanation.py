"""`Explanation`: maps with their provenance. A frozen value that can be looked at, saved and loaded."""

import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from heatproof.errors import InputError
from heatproof.overlay import overlay
from heatproof.storage import load_tensors, save_tensors

_WHAT = "an explanation"
_TENSORS = ("maps", "raw", "images", "scores", "targets", "residual", "contributions", "scanpath")
_SHOWN = 12


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Maps of B images and T targets each, and where they come from.

    Args:
        maps: `(B, T, H, W)` float32 at the size of the model's input, in the method's own unit, not stretched. The
            rows of an image that could not be read are NaN, and `errors` says why.
        raw: at the method's native resolution: `(B, T, h, w)`, or `(B, T, 3, H, W)` for methods that attribute to
            the input's channels.
        images: `(B, H, W, 3)` uint8, what the model saw.
        signed: whether negative values mean evidence against.
        method: its name.
        options: of the method, all of them.
        scores: `(B, T)` explained scores, None without a model.
        targets: `(B, T)` class indices, None without a model; −1 for an image that could not be read.
        target_names: their names, B lists of T.
        residual: `(B, T)` score minus everything the method accounted for, None for methods that do not decompose.
        ledger: rows of what adds up to the residual: of lrp (on request) operation by operation, of textspan everything
            besides attention (`place`, `op`, `part`, `amount`).
        contributions: `(B, T, L, H, N)` of textspan and chili: what each token, through each head of each attention layer
            that writes to the score, adds to it; prefix tokens (class, registers) first.
        scanpath: `(B, n, 3)` predicted fixations on request: row, column (pixels of the map) and seconds.
        layer: names of the layers that were read.
        model_name: name of the model, None without one.
        versions: of the libraries that made it.
        names: file name of each image, None where there was no file.
        errors: a sentence for each image that failed, by its index.
    """

    maps: Float[Tensor, "batch targets height width"]
    raw: Float[Tensor, "batch targets ..."]
    images: UInt8[Tensor, "batch height width 3"]
    signed: bool
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    scores: Float[Tensor, "batch targets"] | None = None
    targets: Int[Tensor, "batch targets"] | None = None
    target_names: list[list[str]] | None = None
    residual: Float[Tensor, "batch targets"] | None = None
    ledger: list[dict[str, Any]] | None = None
    contributions: Float[Tensor, "batch targets layers heads tokens"] | None = None
    scanpath: Float[Tensor, "batch fixations 3"] | None = None
    layer: tuple[str, ...] = ()
    model_name: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    names: tuple[str | None, ...] = ()
    errors: dict[int, str] = field(default_factory=dict)

    @property
    def map(self) -> Float[Tensor, "height width"]:
        """The single `H × W` map.

        Raises:
            InputError: there are several; index `.maps[i, t]` instead.
        """
        if self.maps.shape[:2] != (1, 1):
            count, targets = self.maps.shape[:2]
            raise InputError(f"this explanation has {count} image(s) × {targets} target(s); take one with .maps[i, t].")
        return self.maps[0, 0]

    def overlay(self, i: int = 0, t: int = 0) -> Image.Image:
        """Map `t` of image `i` over what the model saw: diverging and zero-centred if signed, else perceptually uniform.

        Raises:
            InputError: no such image or target.
        """
        self._check(i, t)
        return overlay(self.images[i].numpy(), self.maps[i, t].numpy(), self.signed)

    def image(self, i: int = 0) -> Image.Image:
        """What the model saw of image `i`."""
        self._check(i, 0)
        return Image.fromarray(self.images[i].numpy())

    def title(self, i: int = 0, t: int = 0) -> str:
        """One line: method, target and score."""
        self._check(i, t)
        if self.target_names is None or self.scores is None:
            return self.method
        return f"{self.method} · {self.target_names[i][t]} · {self.scores[i, t]:.3f}"

    def _check(self, i: int, t: int) -> None:
        count, targets = self.maps.shape[:2]
        if not (-count <= i < count and -targets <= t < targets):
            raise InputError(f"there is no map ({i}, {t}); this explanation has {count} image(s) × {targets} target(s).")

    def save(self, path: str | os.PathLike) -> Path:
        """Write everything to one safetensors file with a JSON header: whole or not at all, and no pickle.

        Returns:
            The path.

        Raises:
            InputError: the folder does not exist or cannot be written.
        """
        tensors = {name: getattr(self, name) for name in _TENSORS}
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TENSORS}
        return save_tensors(path, _WHAT, tensors, rest)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Explanation":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, damaged, or not an explanation.
        """
        tensors, header = load_tensors(path, _WHAT)
        try:
            header["errors"] = {int(index): text for index, text in header["errors"].items()}
            header["layer"], header["names"] = tuple(header["layer"]), tuple(header["names"])
            found = cls(**tensors | header)
            batch, _, height, width = found.maps.shape
            if found.images.shape != (batch, height, width, 3):
                raise ValueError(f"images of shape {tuple(found.images.shape)} for maps of shape {tuple(found.maps.shape)}")
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{str(path)!r} lacks parts of an explanation ({error}); save it again.") from error
        return found

    def __repr__(self) -> str:
        count, targets, height, width = self.maps.shape
        lines = [f"Explanation: {self.method}, {count} image(s) × {targets} target(s), {height}×{width}"]
        if self.model_name:
            where = f", layer {', '.join(self.layer)}" if self.layer else ""
            lines.append(f"  model: {self.model_name}{where}")
        if self.options:
            lines.append("  options: " + ", ".join(f"{k}={v!r}" for k, v in self.options.items()))
        for i, t in self._first(4):
            heat = self.maps[i, t]
            low, high = heat.min(), heat.max()
            said = f"{low:.4g} to {high:.4g}" if low != high else f"constant {low:.4g}, says nothing"
            lines.append(f"  [{i}, {t}] {self.errors.get(i) or f'{self.title(i, t)} · {said}'}")
        if count * targets > 4:
            lines.append(f"  … and {count * targets - 4} more")
        return "\n".join(lines)

    def _first(self, limit: int) -> Iterator[tuple[int, int]]:
        count, targets = self.maps.shape[:2]
        return ((n // targets, n % targets) for n in range(min(limit, count * targets)))

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        tiles = [self.overlay(i, t) for i, t in self._first(_SHOWN)]
        height, width = self.maps.shape[-2:]
        columns = min(len(tiles), 4)
        sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
        for n, tile in enumerate(tiles):
            sheet.paste(tile, (n % columns * width, n // columns * height))
        sheet.save(buffer, "PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        figures = []
        for i, t in self._first(_SHOWN):
            buffer = io.BytesIO()
            self.overlay(i, t).save(buffer, "PNG")
            data = base64.b64encode(buffer.getvalue()).decode()
            text = escape(self.errors.get(i) or self.title(i, t))
            figures.append(
                f'<figure style="display:inline-block;margin:4px"><img alt="{text}" src="data:image/png;base64,{data}">'
                f'<figcaption style="font:12px sans-serif">{text}</figcaption></figure>'
            )
        hidden = self.maps.shape[0] * self.maps.shape[1] - len(figures)
        return "".join(figures) + (f"<p>… and {hidden} more</p>" if hidden else "")


def pixels_to_tensor(pixels: np.ndarray) -> UInt8[Tensor, "batch height width 3"]:
    """A uint8 array of images as the tensor that `Explanation.images` is."""
    return torch.from_numpy(np.ascontiguousarray(pixels))
