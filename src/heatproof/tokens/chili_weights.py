"""How much each attention head looks at objects: the weights of CHILI, and the file they live in."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from heatproof.errors import InputError, MethodError, nearest
from heatproof.storage import load_tensors, save_tensors

_WHAT = "a file of head weights"

BINARISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "positive": lambda maps: maps > 0,
    "mean": lambda maps: maps > maps.mean((-2, -1), keepdim=True),
    "median": lambda maps: maps > maps.flatten(-2).median(-1).values[..., None, None],
    "half-max": lambda maps: maps > 0.5 * maps.amax((-2, -1), keepdim=True).clamp_min(0),
}
"""`h_m`: which patches of a head's filtered map count as marked. The authors' released weights fit "positive"."""


def binarised(maps: Float[Tensor, "*batch h w"], how: str) -> Bool[Tensor, "*batch h w"]:
    """The patches that a map marks.

    Raises:
        MethodError: no such way to mark.
    """
    if how not in BINARISATIONS:
        raise MethodError(f"binarise={how!r} is not known.{nearest(how, BINARISATIONS)} Known: {', '.join(BINARISATIONS)}.")
    return BINARISATIONS[how](maps)


def overlap(marked: Bool[Tensor, "*batch h w"], truth: Bool[Tensor, "*#batch h w"]) -> Float[Tensor, "*batch"]:
    """Intersection over union of what is marked and what is true; 0 where nothing is in either."""
    both = (marked & truth).flatten(-2).sum(-1)
    either = (marked | truth).flatten(-2).sum(-1)
    return both / either.clamp_min(1)


def head_weight(iou: Tensor, alpha: float) -> Tensor:
    """`1 − exp(−α · IoU)` in [0, 1): 0 for a head that misses the object, nearly 1 for one that finds it."""
    return 1 - torch.exp(-alpha * iou)


@dataclass(frozen=True, eq=False)
class ChiliWeights:
    """Head weights of one model, with where they come from.

    `w_{l,h} = E_probe[1 − exp(−α · IoU(h_m(f_m(A_{l,h})), G))]`

    Args:
        values: `(L, H)` in [0, 1]: first layer first.
        provenance: model, number of pairs, alpha, binarisation and versions, as plain values.
    """

    values: Float[Tensor, "layers heads"]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = self.values
        if values.ndim != 2 or 0 in values.shape or not bool(((values >= 0) & (values <= 1)).all()):
            raise InputError(f"head weights of shape {tuple(values.shape)} came; expected (layers, heads) with values in [0, 1].")

    def __repr__(self) -> str:
        layers, heads = self.values.shape
        said = ", ".join(f"{key}={value}" for key, value in self.provenance.items())
        return f"ChiliWeights({layers} layers × {heads} heads, mean {self.values.mean():.3f}; {said})"

    def save(self, path: str | os.PathLike) -> Path:
        """Write one safetensors file with the provenance in its header.

        Returns:
            The path.

        Raises:
            InputError: the file cannot be written.
        """
        return save_tensors(path, _WHAT, {"values": self.values}, {"provenance": self.provenance})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ChiliWeights":
        """Read what `save` wrote, or the arrays that CHILI's authors released.

        Args:
            path: a safetensors file, or a `.npy` file with an array `(layers, heads)` or `(classes, layers, heads)`;
                of the latter the mean over the classes is taken, as the authors' code does.

        Returns:
            The weights.

        Raises:
            InputError: the file is missing, damaged, or holds something else.
        """
        path = Path(path)
        return cls._from_array(path) if path.suffix == ".npy" else cls._from_safetensors(path)

    @classmethod
    def _from_array(cls, path: Path) -> "ChiliWeights":
        try:
            array = np.load(path, allow_pickle=False)  # a pickle could run code
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{str(path)!r} cannot be read as an array of head weights ({error}).") from error
        if array.ndim not in (2, 3) or not np.issubdtype(array.dtype, np.floating):
            raise InputError(
                f"{str(path)!r} holds an array of shape {array.shape} and type {array.dtype}; expected floats of shape "
                "(layers, heads) or (classes, layers, heads)."
            )
        values = array if array.ndim == 2 else array.mean(0)
        provenance = {"file": path.name} | ({"classes": len(array)} if array.ndim == 3 else {})
        return cls(torch.from_numpy(np.ascontiguousarray(values)).float(), provenance)

    @classmethod
    def _from_safetensors(cls, path: Path) -> "ChiliWeights":
        tensors, header = load_tensors(path, _WHAT)
        try:
            return cls(tensors["values"], dict(header["provenance"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{str(path)!r} cannot be read as head weights ({error}).") from error


def as_weights(given: Any) -> ChiliWeights:
    """Head weights as they are, from a file, or from an array `(L, H)` or `(classes, L, H)`, of which the mean is taken.

    Raises:
        InputError: something else, or a file that cannot be read.
    """
    if isinstance(given, ChiliWeights):
        return given
    if isinstance(given, str | os.PathLike):
        return ChiliWeights.load(given)
    if isinstance(given, np.ndarray | Tensor):
        values = torch.as_tensor(given).float()
        return ChiliWeights(values.mean(0) if values.ndim == 3 else values)
    raise InputError(
        f"weights= is {type(given).__name__}; expected what hp.chili.fit(…) returns, a file, or an array (layers, heads)."
    )


def described(weights: ChiliWeights) -> dict[str, Any]:
    """As the provenance of an explanation keeps it."""
    return asdict(weights) | {"values": weights.values.tolist()}
