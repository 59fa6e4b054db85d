"""The command `heatproof bench segmentation`. Thin: torch is imported inside, as in cli.py."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer


def segmentation(
    folder: Annotated[Path, typer.Argument(help="A folder with images/, masks/ and perhaps targets.json.")],
    model: Annotated[str | None, typer.Option(help="A name that `heatproof models` lists. efficientnet-lite0 if needed.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Names that `heatproof methods` lists, repeated or with commas. Default: gradcam.")
    ] = None,
    layer: Annotated[list[str] | None, typer.Option(help="Layers by name. Default: the last spatial features.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights for the model: safetensors, or a torch state dict.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text that is a class of an image-text model; repeat it.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="An option of the methods, as in steps=64; repeat it.")] = None,
    void: Annotated[int | None, typer.Option(help="Value of mask pixels that do not count, such as 255 in VOC.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write the figures to.")] = Path("bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> int:
    """Score maps as segmentations of the object, and by where they point, over a folder of masks; the centre for comparison."""
    from heatproof.cli import _DEFAULT_MODEL, _check_types, _make, _names, _option
    from heatproof.console import Voice, print_json, print_table
    from heatproof.errors import MethodError
    from heatproof.methods import build, methods

    named = _names(method or ["gradcam"])
    if not named:
        raise MethodError("--method names no method; `heatproof methods` lists them all.")
    names = list(dict.fromkeys([*named, "center"]))
    rows = [methods()[name] for name in names]  # says at once if one does not exist
    options = dict(_option(text) for text in option or ())
    layers = layer[0] if layer and len(layer) == 1 else layer or None
    with Voice() as voice, contextlib.redirect_stdout(sys.stderr):
        voice.work("importing torch")
        from heatproof.masks import read_masked
        from heatproof.models import load
        from heatproof.scale import segmentation as scale

        _check_types([row.kind() for row in rows], options)
        build(names, options)
        data, failed = read_masked(folder)
        aimed = None
        if model or weights or prompt or any("model" in row.needs for row in rows):
            voice.work(f"loading {model or _DEFAULT_MODEL}")
            loaded = load(model or _DEFAULT_MODEL, weights)
            aimed = scale.aimed(loaded.with_prompts(prompt) if prompt else loaded, data)
        _make(out)
        for text in failed.values():
            voice.say(text)
        voice.work("scoring", len(data))
        found = []
        for row in scale.score_images(data, aimed, names, layer=layers, options=options, void=void):
            found.append(row)
            if row.error is not None:
                voice.say(row.error)
                failed[row.name] = row.error
            voice.step()
        table = scale.summary(found)
        document = scale.document(table, found, failed, None if aimed is None else aimed.name)
        file = scale.write(document, out)
    if as_json:
        print_json(document | {"file": str(file)})
    else:
        heads = {**scale.POOLED, **scale.SINGLE}
        print_table(
            ("method", *heads.values()), [(name, *(scale.told(row[key]) for key in heads)) for name, row in table.items()]
        )
        print(f"{sum(row.error is None for row in found)} images; means ± half the 95 % interval. {file}")
    return 1 if failed else 0
