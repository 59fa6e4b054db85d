"""From what a user calls a target to class indices `(B, T)`."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from heatproof.errors import InputError, nearest


def strings_in(target: Any) -> list[str]:
    """Every label or prompt in a target, in order, once."""
    if isinstance(target, str):
        return [target]
    if isinstance(target, list | tuple):
        return list(dict.fromkeys(text for item in target for text in strings_in(item)))
    return []


def find_label(text: str, labels: Sequence[str] | None) -> int:
    """Index of a label by its name, its synonym, or its number written out.

    Raises:
        InputError: there are no labels, none matches, or several do.
    """
    if labels is None:
        if text.isdecimal():
            return int(text)
        raise InputError(f"target {text!r} is a label, but this model has none; pass a class index, or labels= to wrap().")
    wanted = text.strip().lower()
    hits = [i for i, label in enumerate(labels) if label == text]  # Cardigan is a dog, cardigan a jacket
    hits = hits or [i for i, label in enumerate(labels) if label.lower() == wanted]
    hits = hits or [i for i, label in enumerate(labels) if wanted in (part.strip().lower() for part in label.split(","))]
    if len(hits) == 1:
        return hits[0]
    if hits:
        raise InputError(f"target {text!r} is the name of classes {hits}; pass one of these indices.")
    if text.isdecimal():
        return int(text)
    raise InputError(f"target {text!r} is not among the {len(labels)} labels.{nearest(text, labels)}")


def check_targets(target: Any, count: int) -> None:
    """Say at once if a target cannot fit `count` images.

    Raises:
        InputError: wrong length, unequal rows, or something that is no target.
    """
    target = _plain(target)
    if not isinstance(target, list):
        _check_one(target)
        return
    if len(target) != count:
        raise InputError(
            f"{len(target)} targets came for {count} image(s); expected one per image, or a list of lists with several per "
            f"image{' (one image: [[…]])' if count == 1 else ''}."
        )
    rows = [row for row in target if isinstance(row, list)]
    if rows and (len(rows) != len(target) or len({len(row) for row in rows}) != 1 or not rows[0]):
        raise InputError("the lists of targets differ in length; expected the same number of targets, at least one, per image.")
    for item in (one for row in target for one in (row if isinstance(row, list) else [row])):
        _check_one(item)


def resolve_targets(
    target: Any, scores: Float[Tensor, "batch classes"], labels: Sequence[str] | None, rows: Sequence[int]
) -> Int[Tensor, "batch targets"]:
    """Class indices for a batch.

    Args:
        target: None for the top score, an index, a label, a list with one per image, or a list of lists.
        scores: of the images in this batch.
        labels: names of the classes.
        rows: which images of the whole call are in this batch.

    Returns:
        Indices in `[0, C)`, the same number T for each image.

    Raises:
        InputError: an index out of range, or a label that does not exist.
    """
    target = _plain(target)
    classes = scores.shape[1]
    if target is None:
        return scores.argmax(1, keepdim=True)

    def index(item: Any) -> int:
        found = find_label(item, labels) if isinstance(item, str) else int(item)
        if not 0 <= found < classes:
            raise InputError(f"target {item!r} is out of range; this model has {classes} classes, 0 to {classes - 1}.")
        return found

    chosen = [target[row] for row in rows] if isinstance(target, list) else [target] * len(rows)
    found = [
        [int(scores[i].argmax()) if one is None else index(one) for one in (row if isinstance(row, list) else [row])]
        for i, row in enumerate(chosen)
    ]
    return torch.tensor(found, dtype=torch.long, device=scores.device)


def _plain(target: Any) -> Any:
    """Tensors and arrays of indices to nested lists, tuples to lists."""
    if hasattr(target, "tolist"):
        target = target.tolist()
    return [_plain(item) for item in target] if isinstance(target, list | tuple) else target


def _check_one(item: Any) -> None:
    if item is not None and (isinstance(item, bool) or not isinstance(item, int | str)):
        raise InputError(f"target {item!r} is {type(item).__name__}; expected a class index, a label or prompt, or None.")
