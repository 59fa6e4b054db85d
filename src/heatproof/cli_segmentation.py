"""The command `heatproof bench segmentation`. Thin: torch is imported inside, as in cli.py."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from heatproof.cli_typed import (
    DEFAULT_MODEL,
    AsJson,
    Layers,
    Methods,
    Named,
    Options,
    Prompts,
    Weights,
    check_types,
    make_folder,
    read_option,
    split_names,
)


def segmentation(
    folder: Annotated[Path, typer.Argument(help="A folder with images/, masks/ and perhaps targets.json.")],
    model: Named = None,
    method: Methods = None,
    layer: Layers = None,
    weights: Weights = None,
    prompt: Prompts = None,
    option: Options = None,
    void: Annotated[int | None, typer.Option(help="Value of mask pixels that do not count, such as 255 in VOC.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write the figures to.")] = Path("bench"),
    as_json: AsJson = False,
) -> int:
    """Score maps as segmentations of the object, and by where they point, over a folder of masks; the centre for comparison."""
    from heatproof.console import Voice, print_json, print_table
    from heatproof.errors import MethodError
    from heatproof.methods import build, methods

    named = split_names(method or ["gradcam"])
    if not named:
        raise MethodError("--method names no method; `heatproof methods` lists them all.")
    names = list(dict.fromkeys([*named, "center"]))
    rows = [methods()[name] for name in names]  # says at once if one does not exist
    options = dict(read_option(text) for text in option or ())
    layers = layer[0] if layer and len(layer) == 1 else layer or None
    with Voice() as voice, contextlib.redirect_stdout(sys.stderr):
        voice.work("importing torch")
        from heatproof.masks import read_masked
        from heatproof.models import load
        from heatproof.scale import segmentation as scale

        check_types([row.kind() for row in rows], options)
        build(names, options)
        data, failed = read_masked(folder)
        aimed = None
        if model or weights or prompt or any("model" in row.needs for row in rows):
            voice.work(f"loading {model or DEFAULT_MODEL}")
            loaded = load(model or DEFAULT_MODEL, weights)
            aimed = scale.aimed(loaded.with_prompts(prompt) if prompt else loaded, data)
        make_folder(out)
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
