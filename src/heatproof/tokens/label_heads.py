"""TextSpan: which words span what an attention head writes into the embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heatproof.errors import InputError, ModelError
from heatproof.models.loading import as_model
from heatproof.models.model import Model
from heatproof.tokens.select import indices
from heatproof.tokens.spans import spans

_TEXTS_AT_ONCE = 128
_BANK = Path(__file__).with_name("descriptions.txt")


def descriptions() -> tuple[str, ...]:
    """The text bank: about four thousand general descriptions of what can be in a picture."""
    return tuple(_BANK.read_text("utf-8").split("\n")[:-1])


@dataclass(frozen=True)
class HeadLabel:
    """The texts of one head.

    Args:
        layer: which of the attention layers that write to the score, from 0.
        head: which of its heads, from 0.
        texts: in the order in which the algorithm took them.
        explained: share of the head's variance over the images that lies along the directions of the first, the first
            two, … texts, in [0, 1], never falling.
        spread: the head's total variance over the images, in the unit of squared similarities.
    """

    layer: int
    head: int
    texts: tuple[str, ...]
    explained: tuple[float, ...]
    spread: float


@dataclass(frozen=True, repr=False)
class HeadLabels:
    """A table of heads and the texts that span them; `labels[layer, head]` is one row."""

    model_name: str
    images: int
    rows: tuple[HeadLabel, ...]

    def __getitem__(self, where: tuple[int, int]) -> HeadLabel:
        found = [row for row in self.rows if (row.layer, row.head) == tuple(where)]
        if not found:
            known = sorted({row.layer for row in self.rows})
            raise InputError(f"there are no labels for (layer, head) {where!r}; layers {known} were labelled.")
        return found[0]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def table(self) -> str:
        """Markdown: a line per head, strongest variance first within a layer, with the share that its texts explain."""
        lines = [
            f"Heads of {self.model_name} over {self.images} images",
            "",
            "| layer | head | spread | explained | texts |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in sorted(self.rows, key=lambda row: (row.layer, -row.spread)):
            share = row.explained[-1] if row.explained else 0.0
            lines.append(f"| {row.layer} | {row.head} | {row.spread:.2g} | {share:.0%} | {'; '.join(row.texts)} |")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table

    def _repr_markdown_(self) -> str:
        return self.table


def span_texts(
    head: Float[Tensor, "images embedding"], texts: Float[Tensor, "texts embedding"], top: int = 10, rank: int = 80
) -> tuple[list[int], list[float]]:
    """Choose texts one by one so that each explains the most of what is left of a head's variance.

    With `V` the first `rank` right singular vectors of the head `C` (not centred), `r_j = V Vᵀ t_j` and `C` centred,
    again and again: `j* = argmax_j std(C r_j)`, then the component along `r_j*` is taken out of `C` and of every `r`.
    The `r_j` are not normalised, so a text that the head can express more of wins over one it hardly knows. A head writes
    into no more dimensions than its values have; singular vectors beyond them are rounding, and are left out.

    Args:
        head: what the head adds to the embedding of each image.
        texts: an embedding per text.
        top: how many texts to choose.
        rank: dimensions kept of the head's output, at most.

    Returns:
        Indices of the chosen texts, and the share of the variance along the directions of the first, the first two, …
        Fewer than `top` if nothing is left before.

    Paper: Gandelsman, Efros & Steinhardt 2024, algorithm 1.
    """
    negligible = max(head.shape) * torch.finfo(head.dtype).eps
    head, texts = head.double(), texts.double()
    _, strength, basis = torch.linalg.svd(head, full_matrices=False)
    basis = basis[strength > negligible * strength[0]][:rank]
    centred = head - head.mean(0)
    total = float(centred.square().sum())
    # all that follows happens within the span, where it is a matter of `rank` coordinates and their covariance
    points, words = centred @ basis.T, texts @ basis.T
    covariance = points.T @ points
    nothing = 1e-12 * total * float(words.square().sum(1).amax())
    chosen: list[int] = []
    explained: list[float] = []
    for _ in range(min(top, len(texts))):
        variance = ((words @ covariance) * words).sum(1)
        best = int(variance.argmax())
        if float(variance[best]) <= nothing:
            break
        direction = words[best] / words[best].norm()
        taken = float(direction @ covariance @ direction) / total
        chosen.append(best)
        explained.append(min(1.0, (explained[-1] if explained else 0.0) + max(0.0, taken)))
        words = words - (words @ direction)[:, None] * direction
        keep = torch.eye(len(direction), dtype=head.dtype, device=head.device) - direction[:, None] * direction
        covariance = keep @ covariance @ keep
    return chosen, explained


def embed_texts(model: Model, texts: Sequence[str]) -> Float[Tensor, "texts embedding"]:
    """Unit-length embeddings of texts, a few at a time."""
    parts = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        classifier: Any = model.with_prompts(texts[start : start + _TEXTS_AT_ONCE]).readout
        parts.append(classifier.classifier.T.cpu())
    return torch.cat(parts)


def label_heads(
    model: Model | nn.Module,
    images: Any,
    texts: Sequence[str] | None = None,
    layers: Any = None,
    top: int = 10,
    rank: int = 80,
    batch_size: int | None = None,
) -> HeadLabels:
    """Name what each attention head contributes, with texts that span its outputs over many images.

    `C_lh = Σ_i (what head h of layer l writes to the embedding from token i)`, `(images, d)`; then `span_texts`

    Args:
        model: an image–text model.
        images: many, as `explain()` takes them; a few hundred of all kinds give stable labels. Read in batches: only
            `(images, d)` per head is kept.
        texts: to choose from; None takes the package's own text bank.
        layers: which attention layers, counted as in `contributions`, negative from the end; None the last four.
        top: texts per head.
        rank: dimensions kept of each head's output, at most: no more than its values have.
        batch_size: images per forward; None chooses by their area.

    Returns:
        A table with a row per head: its texts, and the share of its variance that they explain, in [0, 1].

    Raises:
        ModelError: no text encoder, or no attention that writes to the embedding. InputError: an image that cannot be
            read, fewer than two images, no texts, or a top or rank below 1.

    Misleads where the bank has no word for what a head does: the best of the wrong words is listed too, with a small
    share of the variance.

    Paper: Gandelsman, Efros & Steinhardt 2024, section 4.
    """
    model = as_model(model)
    if not model.takes_prompts:
        raise ModelError(f"{model.name} has no text encoder; label_heads needs a CLIP-like model.")
    for name, number in (("top", top), ("rank", rank)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(f"{name}={number!r}; expected a whole number, at least 1.")
    bank = (texts,) if isinstance(texts, str) else tuple(descriptions() if texts is None else texts)
    if not bank:
        raise InputError("texts=[] names no text; pass at least one, or None for the text bank.")
    words = embed_texts(model, bank)
    outputs: list[Tensor] = []
    chosen: list[int] = []
    for part in spans(model, images, batch_size):
        count = part.heads.shape[1]
        chosen = indices("layers", range(-min(4, count), 0) if layers is None else layers, count)
        outputs.append(part.heads[:, chosen].float())
    whole = torch.cat(outputs)
    if len(whole) < 2:
        raise InputError("label_heads needs the variance over images, and there is but one; pass at least two, better hundreds.")
    rows = []
    for position, layer in enumerate(chosen):
        for head in range(whole.shape[2]):
            one = whole[:, position, head]
            picked, explained = span_texts(one, words, top, rank)
            spread = float((one - one.mean(0)).square().sum() / len(one))
            rows.append(HeadLabel(layer, head, tuple(bank[i] for i in picked), tuple(explained), spread))
    return HeadLabels(model.name, len(whole), tuple(rows))
