"""The command `heatproof explain`. Thin: torch is imported inside, as in cli.py."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from heatproof import cli_typed as typed


def explain(
    images: typed.Images,
    model: typed.Named = None,
    method: typed.Methods = None,
    target: typed.Targets = None,
    layer: typed.Layers = None,
    weights: typed.Weights = None,
    prompt: typed.Prompts = None,
    composite: typed.Composite = None,
    option: typed.Options = None,
    classes: Annotated[int, typer.Option(help="Also tell this many of each image's highest classes.", min=0)] = 0,
    html: Annotated[bool, typer.Option("--html", help="Also write one self-contained page per image.")] = False,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")] = Path("explanations"),
    as_json: typed.AsJson = False,
) -> int:
    """Show where a model looked: a picture per image, method and target, and the maps themselves as safetensors."""
    from heatproof.console import Voice, print_json, print_table
    from heatproof.methods import methods

    names = typed.read_methods(method)
    options = typed.read_options(option, composite)
    with Voice() as voice, contextlib.redirect_stdout(sys.stderr):  # stdout is for the result alone
        voice.work("importing torch")
        from heatproof.files import Request, expand, explain_files, stems, write

        typed.check_options(names, options)
        needed = model or target or prompt or weights or classes or any("model" in methods()[name].needs for name in names)
        voice.work(f"loading {model or typed.DEFAULT_MODEL}")
        aimed, targets = (
            typed.load_aimed(model or typed.DEFAULT_MODEL, weights, prompt or [], target or []) if needed else (None, None)
        )
        paths, missing = expand(images)
        typed.make_folder(out)
        layers = typed.read_layers(layer)
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


def _rows(record: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (record["image"], one["method"], t["target"], t["score"], ", ".join(one["layer"]), t["picture"])
        for one in record["explanations"]
        for t in one["targets"]
    ]
