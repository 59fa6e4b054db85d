"""The command `heatproof audit`. Thin: torch is imported inside, as in cli.py."""

import contextlib
import json
import sys
from typing import Annotated

import typer

from heatproof import cli_typed as typed
from heatproof.errors import MethodError


def audit(
    method: Annotated[list[str] | None, typer.Argument(help="Names that `heatproof methods` lists, also with commas.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every registered method; some take minutes.")] = False,
    scenes: Annotated[int, typer.Option(help="Planted scenes; more make every interval narrower.", min=4)] = 24,
    seed: Annotated[int, typer.Option(help="Of the scenes and layouts.", min=0)] = 0,
    option: typed.Options = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document with the whole cards.")] = False,
) -> int:
    """Try methods where the truth is known, and print what they find, what they miss and what they cost."""
    from heatproof.console import Voice, print_json, print_table
    from heatproof.methods import build, methods

    names = methods().names if every else typed.split_names(method or [])
    if not names:
        raise MethodError("no method was named; name some that `heatproof methods` lists, or pass --all.")
    rows = {name: methods()[name] for name in names}  # says at once if one does not exist
    options = typed.read_options(option)
    with Voice() as voice, contextlib.redirect_stdout(sys.stderr):
        voice.work("importing torch")
        from heatproof.audit import audit as examine
        from heatproof.proof.card import markdown as table

        build(names, options)  # says if none of them knows an option
        cards = []
        voice.work("auditing", len(names))
        for name, row in rows.items():
            cards.append(examine(name, scenes, seed, **{key: options[key] for key in options if key in row.options}))
            voice.step()
    if as_json:
        print_json([json.loads(card.to_json()) for card in cards])
    elif markdown:
        print(table(cards))
    elif len(cards) == 1:
        print(cards[0])
    else:
        records = [card.record() for card in cards]
        print_table(tuple(records[0]), [tuple(record.values()) for record in records])
    return 0
