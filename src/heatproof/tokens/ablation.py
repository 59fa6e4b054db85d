"""Mean-ablation: what a model's score is without what some heads or MLPs say about this image in particular."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heatproof.errors import InputError, MethodError, ModelError
from heatproof.models.loading import as_model
from heatproof.models.model import Model
from heatproof.models.readout import Similarity
from heatproof.tokens.select import indices, plain
from heatproof.tokens.spans import Spans, spans


@dataclass(frozen=True, eq=False, repr=False)
class Ablation:
    """Scores before and after.

    Args:
        names: what was ablated, one per row of `after`.
        before: `(images, C)`.
        after: `(K, images, C)`.
        truth: `(images,)` true classes, None if they were not given.
    """

    names: tuple[str, ...]
    before: Float[Tensor, "images classes"]
    after: Float[Tensor, "ablations images classes"]
    truth: Tensor | None = None

    @property
    def accuracy(self) -> tuple[float, ...] | None:
        """Share of images whose top class is the true one: before, then after each ablation; None without true classes."""
        if self.truth is None:
            return None
        return tuple(float((scores.argmax(-1) == self.truth).float().mean()) for scores in (self.before, *self.after))

    @property
    def agreement(self) -> tuple[float, ...]:
        """Share of images whose top class stays what it was, for each ablation."""
        top = self.before.argmax(-1)
        return tuple(float((scores.argmax(-1) == top).float().mean()) for scores in self.after)

    @property
    def table(self) -> str:
        """Markdown: a line per ablation."""
        accuracy = self.accuracy
        lines = [f"{len(self.before)} images, {self.before.shape[1]} classes", "", "| ablated | same top class | accuracy |",
                 "| --- | --- | --- |", f"| nothing | 100% | {f'{accuracy[0]:.1%}' if accuracy else '–'} |"]  # fmt: skip
        for n, (name, same) in enumerate(zip(self.names, self.agreement, strict=True)):
            lines.append(f"| {name} | {same:.1%} | {f'{accuracy[n + 1]:.1%}' if accuracy else '–'} |")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table

    def _repr_markdown_(self) -> str:
        return self.table


def ablate(
    model: Model | nn.Module,
    images: Any,
    *,
    heads: Any = None,
    layers: Any = None,
    mlps: bool = False,
    class_attention: bool = False,
    cumulative: bool = False,
    truth: Any = None,
    batch_size: int | None = None,
) -> Ablation:
    """Replace what heads, layers or MLPs write to the score by its mean over the images, and score again.

    `s' = s − Σ_ablated (c − mean_images c)`: the direct effect alone; what later layers would make of the change is not asked

    Args:
        model: what `load()` or `wrap()` returned; with prompts if it takes any.
        images: at least two, as `explain()` takes them. Read in batches; a number per image, class and ablation is kept.
        heads: pairs (layer, head), counted as in `contributions`; a list or an array.
        layers: indices of attention layers, with all of their heads.
        mlps: whether to ablate all MLPs.
        class_attention: whether to ablate what the class token attends to in itself.
        cumulative: instead of one ablation, one for the first attention layer, the first two, …, in place of `heads` and
            `layers`.
        truth: the index of the true class of each image, in a list or an array, for the accuracy.
        batch_size: images per forward; None chooses by their area.

    Returns:
        Scores before and after.

    Raises:
        InputError: fewer than two images, or true classes that do not fit. ModelError: no prompts yet. MethodError: nothing
            to ablate, heads or layers that do not exist, or a model without attention that writes to the score.

    Misleads where parts stand in for each other: a head whose work another one can do changes little alone.

    Paper: Gandelsman, Efros & Steinhardt 2024, section 3.
    """
    heads, layers = plain(heads), plain(layers)
    if cumulative and (heads or layers):
        raise MethodError("cumulative=True ablates layer after layer; leave heads= and layers= out.")
    if not (heads or layers or mlps or class_attention or cumulative):
        raise MethodError("nothing to ablate; pass heads=, layers=, mlps=True, class_attention=True or cumulative=True.")
    model = as_model(model)
    if model.takes_prompts and model.prompts is None:
        raise ModelError(f"{model.name} has no prompts yet; call model.with_prompts(['a photo of a cat', …]).")
    outputs: list[Tensor] = []
    ablated: list[Tensor] = []
    masks: dict[str, Tensor] = {}
    also = [name for name, wanted in (("MLPs", mlps), ("class attention", class_attention)) if wanted]
    for part in spans(model, images, batch_size, first=class_attention, mlps=mlps):
        masks = masks or _masks(part.heads.shape[1:3], heads or (), layers or (), cumulative)
        outputs.append(part.outputs)
        ablated.append(torch.stack([_taken(part, mask) for mask in masks.values()]))
    taken = torch.cat(ablated, 1)
    before = torch.cat(outputs).to(taken.dtype)  # in half precision the parts are summed in more
    if len(before) < 2:
        raise InputError("ablate replaces by the mean over images, and there is but one; pass at least two, better hundreds.")
    after = before - (taken - taken.mean(1, keepdim=True))
    if isinstance(model.readout, Similarity):
        assert model.readout.classifier is not None
        classifier = model.readout.classifier.cpu().to(before)
        before, after = before @ classifier, after @ classifier
    names = tuple(" + ".join(filter(None, (name, *also))) for name in masks)
    return Ablation(names, before, after, _truth(truth, *before.shape))


def _masks(shape: Sequence[int], heads: Sequence[Any], layers: Sequence[int], cumulative: bool) -> dict[str, Tensor]:
    """Which heads go in each ablation `(L, H)`, by its name."""
    count, each = shape
    if cumulative:
        upto = torch.arange(count)[:, None].expand(count, each)
        return {f"attention layers 0 to {last}" if last else "attention layer 0": upto <= last for last in range(count)}
    mask = torch.zeros(count, each, dtype=torch.bool)
    said = []
    for pair in heads:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise MethodError(f"heads holds {pair!r}; expected pairs (layer, head).")
        layer, head = indices("heads", [pair[0]], count)[0], indices("heads", [pair[1]], each)[0]
        mask[layer, head] = True
        said.append(f"head ({layer}, {head})")
    if layers:
        chosen = indices("layers", layers, count)
        mask[chosen] = True
        said += [f"attention layer {layer}" for layer in chosen]
    return {" + ".join(said): mask}


def _taken(part: Spans, mask: Tensor) -> Float[Tensor, "batch outputs"]:
    """What is ablated, image by image."""
    total = part.heads[:, mask].sum(1)
    if part.first is not None:
        total = total + part.first[:, ~mask].sum(1)
    return total if part.mlps is None else total + part.mlps.sum(1)


def _truth(truth: Any, count: int, classes: int) -> Tensor | None:
    if truth is None:
        return None
    given = plain(truth)
    listed = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if len(listed) != count:
        raise InputError(f"truth has {len(listed)} entries for {count} images; expected the index of the true class of each.")
    numbers = [plain(one) for one in listed]
    wrong = [one for one in numbers if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < classes]
    if wrong:
        raise InputError(f"truth holds {wrong[0]!r}; expected the index of the true class of each image, 0 to {classes - 1}.")
    return torch.tensor(numbers)
