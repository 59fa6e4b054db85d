"""Which scores a proof is about: what the explanation explains, or what the call says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heatproof.errors import InputError
from heatproof.explain import target_name
from heatproof.explanation import Explanation
from heatproof.models.model import Model
from heatproof.models.targets import resolve_targets, strings_in


@dataclass(frozen=True)
class Aim:
    """Which scores are in question, and the model that has them as classes.

    Args:
        model: with the prompts that the targets need.
        asked: what the call says.
        explained: `(B, T)` what the explanation says, None where it says nothing.
        scores: `(B, T)` that the explanation gives them.
        source: name of the model that the maps were made from.
        count: T.
    """

    model: Model
    asked: Any
    explained: Tensor | None
    scores: Tensor | None
    source: str | None
    count: int

    @classmethod
    def of(cls, model: Model, ex: Any, target: Any) -> "Aim":
        """From an explanation, or any other maps, and what the call says."""
        own = ex if isinstance(ex, Explanation) else None
        explained = None if own is None else own.targets
        if model.takes_prompts:
            # the classes of an image-text model are texts, whatever number they had when the map was made
            texts = None if own is None else _texts(own)
            model = model.knowing(strings_in([texts, target]))
            if texts is not None:
                places = list(model.labels or ())
                explained = torch.tensor([[-1 if text is None else places.index(text) for text in row] for row in texts])
        asked = target.tolist() if hasattr(target, "tolist") else target
        nested = isinstance(asked, list | tuple) and len(asked) and isinstance(asked[0], list | tuple)
        count = explained.shape[1] if explained is not None else len(asked[0]) if nested else 1
        scores = None if not isinstance(ex, Explanation) else ex.scores
        return cls(model, asked, explained, scores, ex.model_name if isinstance(ex, Explanation) else None, count)

    def targets(self, scores: Tensor, rows: list[int]) -> Tensor:
        """`(n, T)` class indices.

        Raises:
            InputError: no such target, or another than the explanation's.
        """
        if self.explained is None:
            return resolve_targets(self.asked, scores, self.model.labels, rows)
        explained = self.explained[rows].to(scores.device)
        top = scores.argmax(1, keepdim=True).expand_as(explained)  # where the explanation has no map there is no target
        if self.asked is None:
            return torch.where(explained < 0, top, explained)
        asked = resolve_targets(self.asked, scores, self.model.labels, rows)
        if asked.shape != explained.shape or ((asked != explained) & (explained >= 0)).any():
            names = [target_name(int(one), self.model) for one in explained[0]]
            raise InputError(
                f"target= is not what the explanation explains ({', '.join(names)} for image {rows[0]}); leave target= out, or "
                "explain the images with that target."
            )
        return asked

    def notes(self, rows: Sequence[int], scores: Tensor, all_scores: Tensor) -> list[str]:
        """What speaks against these being the images and the model that the maps were made from.

        Args:
            rows: the images that were read.
            scores: `(n, T)` of their targets.
            all_scores: `(n, C)` of all classes.
        """
        said = []
        if self.source is not None and self.source != self.model.name:
            said.append(f"the maps were made from {self.source}, and {self.model.name} is asked.")
        if self.scores is not None and self.scores[rows].shape == scores.shape:
            # what rounding on another device or in another batch may make of a score is far less
            allowed = 0.02 * float(all_scores.double().std(correction=0)) + 1e-3 * scores.abs()
            if ((self.scores[rows].to(scores) - scores).abs() > allowed).any():
                said.append("the scores are not those of the explanation; was it made from these images and this model?")
        return said


def _texts(ex: Explanation) -> list[list[str | None]] | None:
    """The texts that an explanation explains, None for an image that could not be read."""
    if ex.target_names is None or ex.targets is None:
        return None
    return [
        [None if index < 0 else text for text, index in zip(*row, strict=True)]
        for row in zip(ex.target_names, ex.targets.tolist(), strict=True)
    ]
