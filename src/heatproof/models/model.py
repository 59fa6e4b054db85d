"""`Model`: a module, how an image enters it, and what its scores are called."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from heatproof.errors import HeatproofError, InputError, ModelError, nearest
from heatproof.images import Sources
from heatproof.models.batching import batch_limit, in_batches
from heatproof.models.discovery import Survey, survey
from heatproof.models.preprocess import RAW, Preprocess
from heatproof.models.readout import Logits, Similarity, embedding_in
from heatproof.models.shadow import shadow
from heatproof.models.sites import Site
from heatproof.models.tape import placement, recording, run

_SURVEYS: WeakKeyDictionary[nn.Module, dict[tuple, Survey]] = WeakKeyDictionary()
"""Kept with the module, not with the `Model` around it: a plain module is wrapped anew in every call."""


@dataclass(frozen=True, eq=False)
class Model:
    """What is explained.

    Args:
        module: the user's module. It is never run, changed or hooked itself; its shadow is.
        name: for the provenance.
        readout: from the module and a batch to scores.
        preprocess: from a PIL image to the module's input.
        labels: names of the classes, or the prompts.
        tokenizer: from a list of texts to what the module's text encoder takes; None for classifiers.
        text_encoder: name of the module's method that embeds texts; None for classifiers.
        versions: of the libraries involved.
    """

    module: nn.Module
    name: str
    readout: Logits | Similarity = field(default_factory=Logits)
    preprocess: Preprocess = RAW
    labels: tuple[str, ...] | None = None
    tokenizer: Callable[[list[str]], Any] | None = None
    text_encoder: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        targets = "no labels" if self.labels is None else f"{len(self.labels)} {'prompts' if self.text_encoder else 'labels'}"
        return f"Model({self.name!r}, {targets}, input: {self.preprocess.text})"

    @property
    def takes_prompts(self) -> bool:
        """Whether targets are texts."""
        return isinstance(self.readout, Similarity)

    @property
    def prompts(self) -> tuple[str, ...] | None:
        """The prompts that are the classes of an image–text model."""
        return self.labels if self.takes_prompts else None

    def scores(self, images: Any) -> Float[Tensor, "batch classes"]:
        """Logits, or image–text similarities in [−1, 1], of images or of a preprocessed tensor.

        Args:
            images: `(B, 3, H, W)` or `(3, H, W)` as the module takes it, or anything `explain()` takes.

        Returns:
            `(B, C)`, on the module's device.

        Raises:
            InputError: an image cannot be read. ModelError: the module cannot take it.
        """
        x, twin = self.tensor(images), shadow(self.module)
        with recording(False):
            limit = batch_limit(*x.shape[-2:])
            return in_batches(len(x), limit, lambda rows: run(self.readout, twin, x[rows].clone()))

    def tensor(self, images: Any) -> Float[Tensor, "batch 3 height width"]:
        """Images as one batch on the module's device; the first that cannot be read is an error."""
        sources = Sources.of(images)
        tensors, _, errors = sources.read(0, len(sources), self.preprocess)
        if errors:
            raise InputError(next(iter(errors.values())))
        return stack(tensors).to(*placement(self.module))

    def with_prompts(self, prompts: Sequence[str]) -> "Model":
        """The same model with texts as its classes.

        `score_c = ⟨e(x)/‖e(x)‖, t(prompt_c)/‖t(prompt_c)‖⟩`

        Args:
            prompts: the texts, at least one.

        Raises:
            ModelError: the model has no text encoder or no tokenizer. InputError: no texts.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        texts = list(prompts)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f"prompts are {texts!r}; expected at least one text, none of them empty.")
        if not isinstance(self.readout, Similarity) or self.text_encoder is None:
            raise ModelError(f"{self.name} is a classifier without a text encoder; its targets are classes, not prompts.")
        if self.tokenizer is None:
            raise ModelError(f"{self.name} has no tokenizer; pass tokenizer= to wrap().")
        twin = shadow(self.module)
        with recording(False):
            embedding = embedding_in(self._encoded(twin, texts), ("pooler_output", "text_embeds"))
            classifier = torch.nn.functional.normalize(embedding.float(), dim=-1).T.contiguous()
        return replace(self, labels=tuple(texts), readout=replace(self.readout, classifier=classifier))

    def knowing(self, texts: Iterable[Any]) -> "Model":
        """The same model with these texts among its classes, behind those that it has.

        Args:
            texts: prompts; those that are classes already keep their place.

        Returns:
            Another `Model`, or this one where nothing is new or where classes are no texts.

        Raises:
            ModelError: the text encoder or the tokenizer stumbled. InputError: texts that are none.
        """
        known = self.labels or ()
        new = [text for text in dict.fromkeys(texts) if text not in known] if self.takes_prompts else []
        return self.with_prompts([*known, *new]) if new else self

    def _encoded(self, twin: nn.Module, texts: list[str]) -> Any:
        """What the text encoder makes of texts.

        Raises:
            ModelError: it or the tokenizer stumbled.
        """
        assert self.tokenizer is not None and self.text_encoder is not None
        encode = getattr(twin, self.text_encoder)
        try:
            tokens = self.tokenizer(texts).to(placement(twin)[0])
            return encode(**tokens) if hasattr(tokens, "keys") else encode(tokens)
        except (HeatproofError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a library's or the user's code raises
            raise ModelError(
                f"{type(error).__name__} came of {len(texts)} text(s) in the tokenizer or in {self.text_encoder}: {error}. "
                f"Check that the tokenizer is that of {self.name}."
            ) from error

    def prompt_column(self, prompt: str) -> Float[Tensor, " embedding"]:
        """A text's embedding of length one: the classifier's column for that text."""
        readout = self.with_prompts([prompt]).readout
        assert isinstance(readout, Similarity) and readout.classifier is not None
        return readout.classifier[:, 0]

    def survey(self, x: Float[Tensor, "batch 3 height width"]) -> Survey:
        """Which layers are maps for inputs of this size; asked of the network once."""
        surveys = _SURVEYS.setdefault(self.module, {})
        key = (tuple(x.shape[-2:]), type(self.readout), tuple(id(m) for m in self.module.modules()))
        if key not in surveys:
            if len(surveys) >= 64:  # images of ever new sizes must not grow memory
                surveys.clear()
            surveys[key] = survey(self.module, self.readout, x)
        return surveys[key]

    def around(self, copy: nn.Module) -> "Model":
        """The same model around a structural copy of its module, which need not be surveyed again."""
        known, copied = (tuple(id(m) for m in module.modules()) for module in (self.module, copy))
        surveys = _SURVEYS.get(self.module, {})
        _SURVEYS[copy] = {(*key[:-1], copied): found for key, found in surveys.items() if key[-1] == known}
        return replace(self, module=copy)

    def sites(self, layer: Any, x: Float[Tensor, "batch 3 height width"]) -> tuple[Site, ...]:
        """The layers that `layer=` means: None for the last spatial features, a name, a module, or a list of them.

        Raises:
            ModelError: no such layer, a layer whose output is no map, or a network without spatial features.
        """
        found = self.survey(x)
        if layer is None:
            if found.default is None:
                raise ModelError(
                    f"{self.name} has no layer with spatial features at {tuple(x.shape[-2:])}; use gradient-x-input or "
                    "integrated-gradients, which need none, or name a layer with layer=."
                )
            return (found.default,)
        wanted = list(layer) if isinstance(layer, list | tuple) else [layer]
        if not wanted:
            raise ModelError("layer=[] names no layer; pass a name, a module or a list of them, or None for the last features.")
        return tuple(self._site(item, found) for item in wanted)

    def _site(self, item: Any, found: Survey) -> Site:
        names = {name: module for name, module in self.module.named_modules() if name}
        if isinstance(item, nn.Module):
            name = next((name for name, module in names.items() if module is item), None)
            if name is None:
                came = "the whole model" if item is self.module else f"a {type(item).__name__} that is not part of {self.name}"
                raise ModelError(f"layer= is {came}; pass one of the modules inside it, or None for the last spatial features.")
            item = name
        if not isinstance(item, str) or item not in names:
            raise ModelError(f"{self.name} has no layer {item!r}.{nearest(str(item), names)} named_modules() lists them all.")
        if item in found.sites:
            return found.sites[item]
        shape = found.shapes.get(item)
        came = f"returned {shape}, which is no map" if shape else "did not run, or returned no tensor"
        better = f" The last layer with a map is {found.default.name!r}." if found.default else ""
        raise ModelError(f"layer {item!r} of {self.name} {came} for this input.{better}")


def stack(tensors: Sequence[Tensor]) -> Float[Tensor, "batch 3 height width"]:
    """One batch, or an `InputError` that names the sizes."""
    sizes = {tuple(t.shape[-2:]) for t in tensors}
    if len(sizes) > 1:
        raise InputError(f"the images have different sizes {sorted(sizes)}; explain them in calls of one size each.")
    return torch.stack([t.to(tensors[0]) for t in tensors])
