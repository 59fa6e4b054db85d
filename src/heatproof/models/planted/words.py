"""The words that planted-clip knows, and what it was told about scenes in them."""

import re
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from heatproof.errors import InputError, nearest
from heatproof.models.planted.contexts import CONTEXTS
from heatproof.models.planted.objects import OBJECTS

WORDS = ("a", "the", "photo", "picture", "of", "on", *OBJECTS, *CONTEXTS)
"""Word number n is token n + 1; 0 fills up."""

START, END = len(WORDS) + 1, len(WORDS) + 2
"""The end has the highest number: CLIP reads a text where its highest token is."""

LENGTH = 16
"""Tokens in a text, start and end included."""

OF_OBJECT = ("a {o}", "{o}", "the {o}", "a photo of a {o}", "a picture of a {o}")
OF_CONTEXT = ("{c}", "the {c}", "a photo of {c}", "a picture of {c}")
OF_BOTH = ("a {o} on {c}", "{o} on {c}", "the {o} on the {c}", "a photo of a {o} on {c}", "a picture of a {o} on {c}")
"""Captions: what `{o}` and `{c}` stand in for is the object and the context."""

PROMPT = "a photo of a {o}"
"""The one that names an object where nobody gave another."""


def tokenize(texts: Any) -> Int[Tensor, "texts length"]:
    """Token numbers of texts, word by word; capitals and punctuation do not count.

    Args:
        texts: a text or a list of them.

    Raises:
        InputError: words that the model was never told, with the nearest that it knows, or too many of them.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    tokens = torch.zeros(len(texts), LENGTH, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        words = re.findall(r"[^\W_]+", text.lower())
        unknown = [word for word in dict.fromkeys(words) if word not in WORDS]
        if unknown:
            hints = "".join(nearest(word, WORDS) for word in unknown)
            named = ", ".join(repr(word) for word in unknown)
            raise InputError(f"planted-clip does not know {named} in {text!r}.{hints} Its words: {', '.join(WORDS)}.")
        if len(words) > LENGTH - 2:
            raise InputError(f"{text!r} has {len(words)} words; planted-clip takes up to {LENGTH - 2}.")
        numbers = [START, *(WORDS.index(word) + 1 for word in words), END]
        row[: len(numbers)] = torch.tensor(numbers)
    return tokens
