"""The command `heatproof bench hallucination`. Thin: torch is imported inside, as in cli.py."""

import contextlib
import sys
from typing import Annotated

import typer

from heatproof import cli_typed as typed


def hallucination(
    model: Annotated[str, typer.Option(help="A vision transformer that takes prompts, by name.")] = "planted-clip",
    weights: typed.Weights = None,
    scenes: Annotated[int, typer.Option(help="Planted scenes to score, four images each.", min=16)] = 160,
    probing: Annotated[int, typer.Option(help="Other scenes, for head weights and thresholds.", min=64)] = 160,
    seed: Annotated[int, typer.Option(help="Of all scenes.", min=0)] = 0,
    as_json: typed.AsJson = False,
) -> int:
    """Measure on planted scenes whether scores see objects or only what these usually stand on, before and after CHILI."""
    from heatproof.console import Voice, print_json, print_table

    with Voice() as voice, contextlib.redirect_stdout(sys.stderr):
        voice.work("importing torch")
        from heatproof.models import load
        from heatproof.scale import hallucination as scale

        voice.work(f"loading {model}")
        aimed = scale.aimed(load(model, weights))
        voice.work("scoring", scale.images(scenes, probing))
        found, heads = scale.measure(aimed, scenes, probing, seed, voice.step)
        table = scale.summary(found, seed)
    if as_json:
        print_json(scale.document(table, scenes))
    else:
        print_table(
            ("score and map", *scale.COLUMNS.values()),
            [(kind, *(scale.told(row[key]) for key in scale.COLUMNS)) for kind, row in table.items()],
        )
        print(f"{scenes} scenes of four images; 95 % intervals over scenes. {heads!r}, fitted on {probing} others.")
    return 0
