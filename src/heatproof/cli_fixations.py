"""The command `heatproof bench fixations`. Thin: torch is imported inside, as in cli.py."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from heatproof import cli_typed as typed


def fixations(
    folder: Annotated[Path, typer.Argument(help="A folder with images and their fixations in fixations.json.")],
    method: Annotated[
        list[str] | None, typer.Option(help="Names of methods that need no model, repeated or with commas. Default: all of them.")
    ] = None,
    blur: Annotated[float, typer.Option(help="Smooth every map by a Gaussian of this many degrees of visual angle.", min=0)] = 0,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write the chart and the figures to.")] = Path("bench"),
    as_json: typed.AsJson = False,
) -> int:
    """Score maps that need no model, alone and times a centre prior, against where people looked."""
    from heatproof.console import Voice, print_json, print_table

    with Voice() as voice, contextlib.redirect_stdout(sys.stderr):
        voice.work("importing torch")
        from heatproof.proof.fixation_data import read_fixations
        from heatproof.scale import fixations as scale

        names = scale.model_free(typed.split_names(method or []))
        data, failed = read_fixations(folder)
        typed.make_folder(out)
        for text in failed.values():
            voice.say(text)
        voice.work("scoring", len(data))
        rows = voice.collect(scale.score_images(data, scale.by_methods(names), blur), failed)
        table = scale.summary(rows)
        chart, file = scale.write(table, rows, failed, out, blur)
    if as_json:
        print_json({**scale.document(table, rows, failed, blur), "chart": str(chart), "file": str(file)})
    else:
        print_table(("map", *scale.SCORES.values()), [(kind, *map(scale.told, row.values())) for kind, row in table.items()])
        print(f"{len(rows) - sum(r.error is not None for r in rows)} images; mean ± half the 95 % interval. {chart}, {file}")
    return 1 if failed else 0
