"""The command `heatproof bench segmentation`. Thin: torch is imported inside, as in cli.py."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from heatproof import cli_typed as typed


def segmentation(
    folder: Annotated[Path, typer.Argument(help="A folder with images/, masks/ and perhaps targets.json.")],
    model: typed.Named = None,
    method: typed.Methods = None,
    layer: typed.Layers = None,
    weights: typed.Weights = None,
    prompt: typed.Prompts = None,
    option: typed.Options = None,
    void: Annotated[int | None, typer.Option(help="Value of mask pixels that do not count, such as 255 in VOC.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write the figures to.")] = Path("bench"),
    as_json: typed.AsJson = False,
) -> int:
    """Score maps as segmentations of the object, and by where they point, over a folder of masks; the centre for comparison."""
    from heatproof.console import Voice, print_json, print_table
    from heatproof.methods import methods

    names = list(dict.fromkeys([*typed.read_methods(method), "center"]))
    options, layers = typed.read_options(option), typed.read_layers(layer)
    with Voice() as voice, contextlib.redirect_stdout(sys.stderr):
        voice.work("importing torch")
        from heatproof.masks import read_masked
        from heatproof.models import load
        from heatproof.scale import segmentation as scale

        typed.check_options(names, options)
        data, failed = read_masked(folder)
        aimed = None
        if model or weights or prompt or any("model" in methods()[name].needs for name in names):
            voice.work(f"loading {model or typed.DEFAULT_MODEL}")
            loaded = load(model or typed.DEFAULT_MODEL, weights)
            aimed = scale.aimed(loaded.with_prompts(prompt) if prompt else loaded, data)
        typed.make_folder(out)
        for text in failed.values():
            voice.say(text)
        voice.work("scoring", len(data))
        found = voice.collect(scale.score_images(data, aimed, names, layer=layers, options=options, void=void), failed)
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
