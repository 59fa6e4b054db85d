"""A data set of human fixations: a folder of images and one JSON file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from heatproof.errors import InputError
from heatproof.images import SUFFIXES

NAME = "fixations.json"


@dataclass(frozen=True)
class Viewed:
    """An image and where people looked in it.

    Args:
        name: in the JSON file.
        path: of the image.
        size: rows and columns that the fixations are in; the image itself may have others.
        subjects: `(N, 2)` row and column per subject, in the order of time.
    """

    name: str
    path: Path
    size: tuple[int, int]
    subjects: Sequence[Float[np.ndarray, "_ 2"]]

    def points(self, size: tuple[int, int] | None = None) -> Float[np.ndarray, "fixations 2"]:
        """All subjects' fixations, in pixels of `size` (rows, columns); None keeps the file's own."""
        every = np.concatenate([np.empty((0, 2)), *self.subjects])
        return every if size is None else every * (np.array(size) / self.size)


def read_fixations(folder: Path) -> tuple[list[Viewed], dict[str, str]]:
    """Read a data set.

    The folder holds `fixations.json`, an object with one entry per image name,
    `{"001": {"size": [rows, columns], "fixations": [[[row, column, seconds], …] for each subject]}}`, and the images,
    `001.jpg` or another ending, beside it or in its subfolder `images`. Seconds may be left out.

    Args:
        folder: the data set's.

    Returns:
        The images in the order of the file, and a sentence for each that cannot be used.

    Raises:
        InputError: no such folder or file, no JSON, or no image that can be used.
    """
    file = Path(folder) / NAME
    if not file.is_file():
        raise InputError(f"there is no file {str(file)!r}; expected a folder with images and their fixations in {NAME}.")
    try:
        entries = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(file)!r} cannot be read as JSON ({error}).") from error
    if not isinstance(entries, dict) or not entries:
        came = "an empty object" if entries == {} else type(entries).__name__
        raise InputError(f"{str(file)!r} holds {came}; expected an object with one entry per image.")
    images = _images(Path(folder))
    viewed, failed = [], {}
    for name, entry in entries.items():
        try:
            viewed.append(_viewed(name, entry, images))
        except InputError as error:
            failed[name] = str(error)
    if not viewed:
        raise InputError(f"{str(file)!r} has no entry that can be used. The first: {next(iter(failed.values()))}")
    return viewed, failed


def _images(folder: Path) -> dict[str, Path]:
    """Image files by their name, with and without the ending; those beside the JSON file come first."""
    found: dict[str, Path] = {}
    for place in (folder, folder / "images"):
        files = sorted(place.iterdir()) if place.is_dir() else []
        for path in files:
            if path.suffix.lower() in SUFFIXES:
                found.setdefault(path.name, path)
                found.setdefault(path.stem, path)
    return found


def _viewed(name: str, entry: Any, images: dict[str, Path]) -> Viewed:
    if name not in images:
        raise InputError(f"there is no image for {name!r}; expected {name}.jpg or the like, beside {NAME} or in images/.")
    shape = entry.get("size") if isinstance(entry, dict) else None
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(side) is int and side > 0 for side in shape)):
        raise InputError(f'the entry {name!r} has no size; expected "size": [rows, columns].')
    subjects = entry.get("fixations")
    try:
        arrays = [np.array([point[:2] for point in subject], np.float64).reshape(-1, 2) for subject in subjects]
    except (TypeError, ValueError, KeyError) as error:
        wanted = '"fixations": [[[row, column, seconds], …] for each subject]'
        raise InputError(f"the fixations of {name!r} are not what was expected, {wanted} ({error}).") from error
    one = Viewed(name, images[name], (shape[0], shape[1]), arrays)
    if not np.isfinite(one.points()).all():
        raise InputError(f"the fixations of {name!r} have values that are no numbers.")
    if not ((one.points() >= 0) & (one.points() < shape)).all(1).any():
        raise InputError(f"{name!r} has no fixation inside its {shape[0]}×{shape[1]} pixels.")
    return one
