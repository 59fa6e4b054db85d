"""What is typed: the options that several commands take, and how they are read. Torch is imported inside, as in cli.py."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from heatproof.errors import InputError, MethodError

if TYPE_CHECKING:
    from heatproof.models.model import Model

DEFAULT_MODEL = "efficientnet-lite0"
_OWN_FLAGS = {"model": "--model", "method": "--method", "target": "--target", "layer": "--layer", "images": "arguments"}

Images = Annotated[list[str], typer.Argument(help="Image files, folders, or quoted patterns such as 'photos/**/*.jpg'.")]
Named = Annotated[
    str | None, typer.Option("--model", help=f"A name that `heatproof models` lists. {DEFAULT_MODEL} if a method needs one.")
]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="Names that `heatproof methods` lists, repeated or with commas. Default: gradcam."),
]
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", help="Labels (tabby) or class indices, repeated or with commas; prompts. Default: the top score."),
]
Layers = Annotated[list[str] | None, typer.Option("--layer", help="Layers by name. Default: the last spatial features.")]
Weights = Annotated[Path | None, typer.Option("--weights", help="Weights for the model: safetensors, or a torch state dict.")]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", help="A text that is a class of an image-text model; repeat it.")]
Options = Annotated[list[str] | None, typer.Option("--option", help="An option of the methods, as in steps=64; repeat it.")]
Composite = Annotated[str | None, typer.Option("--composite", help="Where lrp places its rules, short for --option composite=….")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def read_option(text: str) -> tuple[str, Any]:
    """`name=value`, the value read as JSON where it is JSON, else as text."""
    name, sign, value = (part.strip() for part in text.partition("="))
    if not (sign and name):
        raise InputError(f"--option {text!r} is not of the form name=value, as in steps=64.")
    if name in _OWN_FLAGS:
        raise InputError(f"--option {text!r}: {name} has a place of its own, {_OWN_FLAGS[name]}.")
    words = {"none": None, "true": True, "false": False}
    if value.lower() in words:
        return name, words[value.lower()]
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def read_options(given: Sequence[str] | None, composite: str | None = None) -> dict[str, Any]:
    """Every `--option` by name, and what has a flag of its own."""
    return dict(read_option(text) for text in given or ()) | ({"composite": composite} if composite else {})


def read_methods(given: Sequence[str] | None) -> list[str]:
    """Names of methods that exist, `gradcam` where none was typed.

    Raises:
        MethodError: no such method, or none at all.
    """
    from heatproof.methods import methods

    names = split_names(given or ["gradcam"])
    if not names:
        raise MethodError("--method names no method; `heatproof methods` lists them all.")
    for name in names:
        methods()[name]  # says so if there is none
    return names


def read_layers(given: list[str] | None) -> str | list[str] | None:
    """One layer by its name, several as a list."""
    return given[0] if given and len(given) == 1 else given or None


def check_options(names: Sequence[str], options: dict[str, Any]) -> None:
    """Say at once if no method knows an option, or one is of a kind that its method does not declare.

    Raises:
        MethodError: an unknown option. InputError: another kind: what is typed is not checked elsewhere.
    """
    from heatproof.methods import build, methods

    for name in names:
        hints = get_type_hints(methods()[name].kind())
        for key, value in options.items():
            allowed = get_args(hints.get(key)) or (hints.get(key, Any),)
            if not all(isinstance(one, type) for one in allowed) or Any in allowed:
                continue  # described by more than plain types: the method itself looks at it
            number = isinstance(value, int) and not isinstance(value, bool) and float in allowed
            if not (type(value) in allowed or number):
                expected = " or ".join("none" if one is type(None) else one.__name__ for one in allowed)
                raise InputError(f"--option {key}={value} is {type(value).__name__}; expected {expected}.")
    build(names, options)


def load_aimed(name: str, weights: Path | None, prompts: list[str], values: list[str]) -> tuple["Model", list[int] | None]:
    """Load the model and find out which of its classes the targets mean."""
    import torch

    from heatproof.models import load
    from heatproof.models.targets import find_label, resolve_targets

    model = load(name, weights)
    model = model.with_prompts(prompts) if prompts else model
    known = model.labels or ()

    def is_known(text: str) -> bool:
        with contextlib.suppress(InputError):
            return find_label(text, known) >= 0
        return False

    wanted: list[str] = []
    for value in values:
        parts = [part.strip() for part in value.split(",") if part.strip()]
        # a label may have a comma of its own, and so may a new prompt
        whole = not parts or value in known or (model.takes_prompts and not all(map(is_known, parts)))
        wanted += [value] if whole else parts
    if model.takes_prompts:
        model = model.knowing(text for text in wanted if not is_known(text))
        if not model.labels:
            raise InputError(f"{name} compares images with texts; pass at least one, as in --prompt 'a photo of a cat'.")
    if not wanted:
        return model, None
    indices = [find_label(text, model.labels) for text in wanted]
    if model.labels is not None:
        resolve_targets([indices], torch.zeros(1, len(model.labels)), model.labels, [0])
    return model, list(dict.fromkeys(indices))


def split_names(given: Sequence[str]) -> list[str]:
    """Method names, each once, also where several came with commas."""
    return list(dict.fromkeys(name.strip() for text in given for name in text.split(",") if name.strip()))


def make_folder(folder: Path) -> None:
    """The folder to write to, and those above it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {str(folder)!r} cannot be made ({error.strerror}); choose another with -o.") from error
