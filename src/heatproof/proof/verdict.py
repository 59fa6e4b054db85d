"""`Verdict`: what the interventions say of each map, with the chance that a map which knows nothing would do as well."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from heatproof.errors import InputError
from heatproof.proof.chance import LEVEL, interval, p_value
from heatproof.proof.sentences import sentence
from heatproof.storage import load_tensors, save_tensors, written_whole

_WHAT = "a verdict"


@dataclass(frozen=True, eq=False)
class Tested:
    """One test of every map, beside the same test of its null copies.

    Args:
        values: `(B, T)` float64, in the test's own unit.
        nulls: `(B, T, K)` the same for copies of the map elsewhere.
        higher_is_better: whether a larger number speaks for the map.
        fractions: `(S,)` shares of the image at which curves were read, None for a test without curves.
        curves: `(B, T, S)`.
        null_curves: `(B, T, K, S)`.
    """

    values: Float[Tensor, "batch targets"]
    nulls: Float[Tensor, "batch targets copies"]
    higher_is_better: bool = True
    fractions: Float[Tensor, " steps"] | None = None
    curves: Float[Tensor, "batch targets steps"] | None = None
    null_curves: Float[Tensor, "batch targets copies steps"] | None = None

    @cached_property
    def p_value(self) -> Float[Tensor, "batch targets"]:
        """Exact permutation rank of each value among its nulls."""
        return p_value(self.values, self.nulls, self.higher_is_better)

    @cached_property
    def p_interval(self) -> Float[Tensor, "batch targets 2"]:
        """95 % interval of the p that unlimited copies would give."""
        return interval(self.values, self.nulls, self.higher_is_better)


_TESTED = ("values", "nulls", "fractions", "curves", "null_curves")
_TENSORS = ("effect", "null", "shares", "whole", "scores", "average_scores", "targets")
_ROUNDING = 1e-5
"""Share of a score within which float32 may put it anywhere."""


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """What interventions say of B × T maps.

    Args:
        effect: `(B, T)` float64, score lost when what the map points at is removed: the mean of the loss while the rest
            of the image is there and while it is not. NaN where there is no map.
        null: `(B, T, K)` the same for K copies of the map elsewhere; NaN for copies that were not reached.
        shares: `(B, T, 2)` of the image that the map marks: the core, and the wider region.
        whole: `(B, T)` score of the image minus its score with everything removed.
        scores: `(B, T)` of the images.
        average_scores: `(B, T)` of an average class, −∞ where there is only one.
        targets: `(B, T)` class indices, −1 for an image that could not be read.
        target_names: their names, B lists of T.
        errors: B lists of T: why there is no verdict, or None.
        silent: B lists of T: whether a map says nothing, being constant or nowhere positive.
        rivals: `(B, T)` effects of maps that ignore the model, marking as many pixels, by name.
        tests: every single test by name.
        names: file name of each image, None where there was no file.
        method: that made the maps, None if it is not known.
        model_name: of the model.
        versions: of the libraries involved.
        notes: what a reader should know.
        seed: of the copies.
        budget: forwards per map that were allowed.
        forwards: images that went through the model, in all.
        partial: whether the run was interrupted.
    """

    effect: Float[Tensor, "batch targets"]
    null: Float[Tensor, "batch targets copies"]
    shares: Float[Tensor, "batch targets parts"]
    whole: Float[Tensor, "batch targets"]
    scores: Float[Tensor, "batch targets"]
    average_scores: Float[Tensor, "batch targets"]
    targets: Int[Tensor, "batch targets"]
    target_names: list[list[str]]
    errors: list[list[str | None]]
    silent: list[list[bool]]
    rivals: dict[str, Tensor] = field(default_factory=dict)
    tests: dict[str, Tested] = field(default_factory=dict)
    names: tuple[str | None, ...] = ()
    method: str | None = None
    model_name: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seed: int = 0
    budget: int = 0
    forwards: int = 0
    partial: bool = False

    @cached_property
    def p_value(self) -> Float[Tensor, "batch targets"]:
        """`(1 + #{null ≥ effect}) / (K + 1)`, float64; NaN where there is no map."""
        return p_value(self.effect, self.null)

    @cached_property
    def p_interval(self) -> Float[Tensor, "batch targets 2"]:
        """95 % interval of the p that unlimited copies would give (Clopper–Pearson)."""
        return interval(self.effect, self.null)

    @cached_property
    def states(self) -> list[list[str]]:
        """Of each map one of `supported`, `not supported`, `says nothing`, `nothing to explain`, `no verdict`."""
        return [[self._state(b, t) for t in range(self.effect.shape[1])] for b in range(len(self.effect))]

    def _state(self, b: int, t: int) -> str:
        if self.errors[b][t] is not None:
            return "no verdict"
        costs = not self.silent[b][t] and bool(self.p_value[b, t] <= LEVEL and self.effect[b, t] > 0)
        if not (self.above_average[b][t] and (self.above_blank[b][t] or costs)):
            return "nothing to explain"
        if self.silent[b][t]:
            return "says nothing"
        return "supported" if costs else "not supported"

    @cached_property
    def above_average(self) -> list[list[bool]]:
        """B lists of T: whether the score is more than that of an average class."""
        return self._more_than(self.average_scores)

    @cached_property
    def above_blank(self) -> list[list[bool]]:
        """B lists of T: whether the score is more than that of the image with everything removed."""
        return self._more_than(self.scores - self.whole)

    def _more_than(self, other: Tensor) -> list[list[bool]]:
        scale = torch.maximum(self.scores.abs(), torch.where(other.isinf(), 0, other).abs())
        return (self.scores - other > _ROUNDING * scale).tolist()

    @property
    def unread(self) -> dict[str, str]:
        """Why an image has no verdict at all (not read, or not reached), by its name, or its number where it has none."""
        lost = (self.targets[:, 0] < 0).nonzero().flatten().tolist()
        return {(self.names[b] if self.names else None) or str(b): self.errors[b][0] or "" for b in lost}

    @cached_property
    def supported(self) -> Bool[Tensor, "batch targets"]:
        """Whether removing what the map points at costs more of the score than chance would (p ≤ 0.05)."""
        return torch.tensor([[state == "supported" for state in row] for row in self.states])

    @cached_property
    def sentences(self) -> list[list[str]]:
        """The verdict on each map in plain words."""
        return [[sentence(self, b, t) for t in range(self.effect.shape[1])] for b in range(len(self.effect))]

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """A row for every map and test: value, mean and deviation of the null, p, its interval, and the finest p possible."""
        rows = []
        headline = Tested(self.effect, self.null)
        for b, t in self._each():
            for name, one in {"effect": headline, **self.tests}.items():
                nulls = one.nulls[b, t][torch.isfinite(one.nulls[b, t])]
                rows.append(
                    {
                        "image": self.names[b] if self.names and self.names[b] else str(b),
                        "target": self.target_names[b][t],
                        "test": name,
                        "value": float(one.values[b, t]),
                        "null": float(nulls.mean()) if len(nulls) else math.nan,
                        "null_sd": float(nulls.std()) if len(nulls) > 1 else math.nan,
                        "copies": len(nulls),
                        "p": float(one.p_value[b, t]),
                        "p_low": float(one.p_interval[b, t, 0]),
                        "p_high": float(one.p_interval[b, t, 1]),
                        "finest_p": 1 / (1 + len(nulls)),
                        "higher_is_better": one.higher_is_better,
                    }
                )
        return rows

    def _each(self) -> Iterator[tuple[int, int]]:
        return ((b, t) for b in range(len(self.effect)) for t in range(self.effect.shape[1]))

    def to_json(self) -> str:
        """Everything as one JSON document: what is stored, and p-values, states, sentences and table besides."""
        tensors, header = self._parts()
        document: dict[str, Any] = {name: tensor.tolist() for name, tensor in tensors.items() if "/" not in name}
        document |= {key: value for key, value in header.items() if key not in ("higher", "rivals", "tests")}
        document["rivals"] = {name: tensor.tolist() for name, tensor in self.rivals.items()}
        document["tests"] = {
            name: {part: tensor.tolist() for part in _TESTED if (tensor := getattr(one, part)) is not None}
            | {"higher_is_better": one.higher_is_better, "p_value": one.p_value.tolist()}
            for name, one in self.tests.items()
        }
        document |= {"p_value": self.p_value.tolist(), "p_interval": self.p_interval.tolist(), "states": self.states}
        document |= {"supported": self.supported.tolist(), "sentences": self.sentences, "table": self.table}
        return json.dumps(_finite(document))

    def save(self, path: str | os.PathLike) -> Path:
        """Write everything to one file, whole or not at all: JSON if its name ends in `.json`, else safetensors.

        Only safetensors can be read back with `load`; there is no pickle in it.

        Returns:
            The path.

        Raises:
            InputError: the folder does not exist or cannot be written.
        """
        if Path(path).suffix.lower() != ".json":
            return save_tensors(path, _WHAT, *self._parts())
        with written_whole(path, _WHAT) as temporary:
            temporary.write_text(self.to_json(), "utf-8")
        return Path(path)

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors |= {f"rivals/{name}": tensor for name, tensor in self.rivals.items()}
        for name, one in self.tests.items():
            tensors |= {f"tests/{name}/{part}": tensor for part in _TESTED if (tensor := getattr(one, part)) is not None}
        header = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*_TENSORS, "rivals", "tests")}
        names: dict[str, Any] = {
            "rivals": list(self.rivals),
            "tests": {name: one.higher_is_better for name, one in self.tests.items()},
        }
        return tensors, header | names

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Verdict":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, damaged, or not a verdict.
        """
        tensors, header = load_tensors(path, _WHAT)
        try:
            return cls(**_assembled(tensors, header))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{str(path)!r} lacks parts of a verdict ({error}); save it again.") from error

    def __repr__(self) -> str:
        count, targets, copies = self.null.shape
        who = f" of {self.method}" if self.method else ""
        lines = [f"Verdict{who} on {self.model_name}: {count} image(s) × {targets} target(s), {copies} copies per map"]
        lines += [f"  partial: the run was interrupted after {self.forwards} forwards"] * self.partial
        shown = list(self._each())[:8]
        lines += [f"  [{b}, {t}] {self.target_names[b][t]}: {self.sentences[b][t]}" for b, t in shown]
        lines += [f"  … and {count * targets - 8} more"] * (count * targets > 8)
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _assembled(tensors: Mapping[str, Tensor], header: dict[str, Any]) -> dict[str, Any]:
    """The parts of a verdict from what a file holds."""
    rivals, tests = header.pop("rivals"), header.pop("tests")
    header["names"], header["notes"] = tuple(header["names"]), tuple(header["notes"])
    header["rivals"] = {name: tensors[f"rivals/{name}"] for name in rivals}
    header["tests"] = {}
    for name, higher in tests.items():
        parts: dict[str, Any] = {part: tensors.get(f"tests/{name}/{part}") for part in _TESTED}
        header["tests"][name] = Tested(higher_is_better=higher, **parts)
    return {name: tensors[name] for name in _TENSORS} | header


def _finite(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
