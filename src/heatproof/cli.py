"""The command `heatproof`. Thin: it reads what was typed, calls the library, and says what came of it.

Exit code 0 done, 1 an input failed (the others are done), 2 bad usage, 130 interrupted. Torch is imported inside the
commands, so that help is there at once.
"""

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from heatproof.bench_hallucination import hallucination
from heatproof.bench_segmentation import segmentation
from heatproof.cli_audit import audit
from heatproof.cli_prove import prove
from heatproof.errors import HeatproofError, InputError, MethodError

if TYPE_CHECKING:
    from heatproof.models.model import Model

_DEFAULT_MODEL = "efficientnet-lite0"
_OWN_FLAGS = {"model": "--model", "method": "--method", "target": "--target", "layer": "--layer", "images": "arguments"}

# typer has brought its own click along since 0.20; its errors are found from one that it always exports
_ClickError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="Show where a vision model looked.")
bench_app = typer.Typer(help="Score methods over a data set.")
app.add_typer(bench_app, name="bench")
bench_app.command()(segmentation)
bench_app.command()(hallucination)


def _print_version(wanted: bool) -> bool:
    if wanted:
        import importlib.metadata

        print(importlib.metadata.version("heatproof"))
        raise typer.Exit
    return wanted


_VERSION = typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)


@app.callback()
def _face(version: Annotated[bool, _VERSION] = False) -> None: ...


@app.command()
def explain(
    images: Annotated[list[str], typer.Argument(help="Image files, folders, or quoted patterns such as 'photos/**/*.jpg'.")],
    model: Annotated[
        str | None, typer.Option(help=f"A name that `heatproof models` lists. {_DEFAULT_MODEL} if a method needs one.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Names that `heatproof methods` lists, repeated or with commas. Default: gradcam.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Labels (tabby) or class indices, repeated or with commas; prompts. Default: the top score."),
    ] = None,
    layer: Annotated[list[str] | None, typer.Option(help="Layers by name. Default: the last spatial features.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights for the model: safetensors, or a torch state dict.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text that is a class of an image-text model; repeat it.")] = None,
    composite: Annotated[str | None, typer.Option(help="Where lrp places its rules, short for --option composite=….")] = None,
    option: Annotated[list[str] | None, typer.Option(help="An option of the methods, as in steps=64; repeat it.")] = None,
    classes: Annotated[int, typer.Option(help="Also tell this many of each image's highest classes.", min=0)] = 0,
    html: Annotated[bool, typer.Option("--html", help="Also write one self-contained page per image.")] = False,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")] = Path("explanations"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> int:
    """Show where a model looked: a picture per image, method and target, and the maps themselves as safetensors."""
    from heatproof.console import Voice, print_json, print_table
    from heatproof.methods import methods

    names = _names(method or ["gradcam"])
    rows = [methods()[name] for name in names]  # says at once if one does not exist
    if not rows:
        raise MethodError("--method names no method; `heatproof methods` lists them all.")
    options = dict(_option(text) for text in option or ()) | ({"composite": composite} if composite else {})
    with Voice() as voice, contextlib.redirect_stdout(sys.stderr):  # stdout is for the result alone
        voice.work("importing torch")
        from heatproof.files import Request, expand, explain_files, stems, write
        from heatproof.methods import build

        _check_types([row.kind() for row in rows], options)
        build(names, options)  # says if none of them knows an option
        needed = model or target or prompt or weights or classes or any("model" in row.needs for row in rows)
        voice.work(f"loading {model or _DEFAULT_MODEL}")
        aimed, targets = _aim(model or _DEFAULT_MODEL, weights, prompt or [], target or []) if needed else (None, None)
        paths, missing = expand(images)
        _make(out)
        layers = layer[0] if layer and len(layer) == 1 else layer or None
        # a page tells the highest classes, so it asks for them
        request = Request(aimed, names, targets, layers, options, classes or 5 * html)
        done, failed = [], [{"image": name, "error": text} for name, text in missing.items()]
        for text in missing.values():
            voice.say(text)
        voice.work("explaining", len(paths))
        outputs = stems(paths)
        for result in explain_files(request, paths):
            path = str(paths[result.index])
            if result.error is not None:
                voice.say(result.error)
                failed.append({"image": path, "error": result.error})
            else:
                written = write(result, outputs[result.index], out, html)
                done.append({"image": path, "classes": result.classes, **written})
            voice.step()
    if as_json:
        print_json({"model": None if aimed is None else aimed.name, "images": done, "failed": failed})
    elif done:
        if classes:
            highest = [(record["image"], *one.values()) for record in done for one in record["classes"]]
            print_table(("image", "class", "index", "score", "softmax"), highest)
            print()
        print_table(("image", "method", "target", "score", "layer", "file"), [row for record in done for row in _rows(record)])
    return 1 if failed else 0


app.command()(prove)
app.command()(audit)


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> int:
    """List the methods, what each needs, its options and its paper."""
    from heatproof.console import print_json, print_table
    from heatproof.methods import methods as registry

    table = registry()
    if as_json:
        print_json(table.records())
    elif markdown:
        print(table.markdown())
    else:
        print_table(
            ("method", "family", "needs", "options", "paper"),
            [(row.name, row.family, ", ".join(row.needs), ", ".join(row.options), row.paper) for row in table],
        )
    return 0


@app.command()
def models(
    text: Annotated[str, typer.Option("--filter", help="Only names with this in them.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """List the models that can be loaded by name, and where their weights come from."""
    from heatproof.console import Voice, print_json, print_table

    with Voice() as voice, contextlib.redirect_stdout(sys.stderr):
        voice.work("asking the installed libraries")
        from heatproof.models.loading import available

        found = [row for row in available() if text.lower() in row["name"].lower()]
    if as_json:
        print_json(found)
    elif found:
        print_table(("model", "library", "weights"), [(row["name"], row["library"], row["weights"]) for row in found])
    else:
        raise InputError(f"no model has {text!r} in its name; `heatproof models` without --filter lists them all.")
    return 0


@bench_app.command()
def fixations(
    folder: Annotated[Path, typer.Argument(help="A folder with images and their fixations in fixations.json.")],
    method: Annotated[
        list[str] | None, typer.Option(help="Methods that need no model, repeated or with commas. Default: all of them.")
    ] = None,
    blur: Annotated[float, typer.Option(help="Smooth every map by a Gaussian of this many degrees of visual angle.", min=0)] = 0,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write the chart and the figures to.")] = Path("bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> int:
    """Score maps that need no model, alone and times a centre prior, against where people looked."""
    from heatproof.console import Voice, print_json, print_table

    with Voice() as voice, contextlib.redirect_stdout(sys.stderr):
        voice.work("importing torch")
        from heatproof.proof.fixation_data import read_fixations
        from heatproof.scale import fixations as scale

        names = scale.model_free(_names(method or []))
        data, failed = read_fixations(folder)
        _make(out)
        for text in failed.values():
            voice.say(text)
        voice.work("scoring", len(data))
        rows = []
        for row in scale.score_images(data, scale.by_methods(names), blur):
            rows.append(row)
            if row.error is not None:
                voice.say(row.error)
                failed[row.name] = row.error
            voice.step()
        table = scale.summary(rows)
        chart, file = scale.write(table, rows, failed, out, blur)
    if as_json:
        print_json({**scale.document(table, rows, failed, blur), "chart": str(chart), "file": str(file)})
    else:
        print_table(("map", *scale.SCORES.values()), [(kind, *map(scale.told, row.values())) for kind, row in table.items()])
        print(f"{len(rows) - sum(r.error is not None for r in rows)} images; mean ± half the 95 % interval. {chart}, {file}")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: what follows `heatproof`; None takes the process's own.

    Returns:
        The exit code.
    """
    with _unlogged(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: _say(f"note: {message}")
        try:
            typed = list(sys.argv[1:] if arguments is None else arguments)
            code = app(typed or ["--help"], prog_name="heatproof", standalone_mode=False)
        except _ClickError as error:
            _say(f"{error.format_message().rstrip('.')}. See `heatproof --help`.")
            return 2
        except HeatproofError as error:
            _say(error)
            return 2
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except Exception as error:  # a bug: it is still one line
            _say(f"unexpected {type(error).__name__}: {error} (this is a bug in heatproof; please report it).")
            return 1
    if code == 130:
        _say("interrupted; files written so far are whole and stay.")
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Inside, libraries do not log: they tell of every retry of a download, and what came of it is said here, once."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _say(text: Any) -> None:
    from heatproof.console import Voice

    Voice().say(text)


def _option(text: str) -> tuple[str, Any]:
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


def _check_types(kinds: Sequence[type], options: dict[str, Any]) -> None:
    """Say at once if an option is of a kind that the method does not declare: what is typed is not checked elsewhere."""
    for kind in kinds:
        hints = get_type_hints(kind)
        for name, value in options.items():
            allowed = get_args(hints.get(name)) or (hints.get(name, Any),)
            if not all(isinstance(one, type) for one in allowed) or Any in allowed:
                continue  # described by more than plain types: the method itself looks at it
            number = isinstance(value, int) and not isinstance(value, bool) and float in allowed
            if not (type(value) in allowed or number):
                expected = " or ".join("none" if one is type(None) else one.__name__ for one in allowed)
                raise InputError(f"--option {name}={value} is {type(value).__name__}; expected {expected}.")


def _aim(name: str, weights: Path | None, prompts: list[str], values: list[str]) -> tuple["Model", list[int] | None]:
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
        new = [text for text in dict.fromkeys(wanted) if not is_known(text)]
        model = model.with_prompts([*known, *new]) if new else model
        if not model.labels:
            raise InputError(f"{name} compares images with texts; pass at least one, as in --prompt 'a photo of a cat'.")
    if not wanted:
        return model, None
    indices = [find_label(text, model.labels) for text in wanted]
    if model.labels is not None:
        resolve_targets([indices], torch.zeros(1, len(model.labels)), model.labels, [0])
    return model, list(dict.fromkeys(indices))


def _names(given: Sequence[str]) -> list[str]:
    """Method names, each once, also where several came with commas."""
    return list(dict.fromkeys(name.strip() for text in given for name in text.split(",") if name.strip()))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {str(folder)!r} cannot be made ({error.strerror}); choose another with -o.") from error


def _rows(record: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (record["image"], one["method"], t["target"], t["score"], ", ".join(one["layer"]), t["picture"])
        for one in record["explanations"]
        for t in one["targets"]
    ]
