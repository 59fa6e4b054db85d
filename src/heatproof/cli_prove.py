"""The command `heatproof prove`. Thin: torch is imported inside, as in cli.py."""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heatproof import cli_typed as typed
from heatproof.errors import InputError

if TYPE_CHECKING:
    from heatproof.proof.verdict import Verdict


def prove(
    images: typed.Images,
    model: typed.Named = None,
    method: typed.Methods = None,
    target: typed.Targets = None,
    layer: typed.Layers = None,
    weights: typed.Weights = None,
    prompt: typed.Prompts = None,
    composite: typed.Composite = None,
    option: typed.Options = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Single tests besides, repeated or with commas. Default: deletion,insertion.")
    ] = None,
    budget: Annotated[int | None, typer.Option(help="Forwards per map; more make p finer. Default: 400.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the copies that a map is compared with.", min=0)] = 0,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="What to write: .html (one image), .json, or .safetensors (one method)."),
    ] = None,
    as_json: typed.AsJson = False,
) -> int:
    """Cross-examine maps: is the score lost with what they point at, more than with the same shape elsewhere?"""
    from heatproof.console import Voice, print_json, print_table

    names = typed.read_methods(method)
    _check_out(out, names)
    options = typed.read_options(option, composite)
    with Voice() as voice, contextlib.redirect_stdout(sys.stderr):  # stdout is for the result alone
        voice.work("importing torch")
        from heatproof.explain import explain
        from heatproof.files import expand
        from heatproof.proof.plan import BUDGET, by_name, plan
        from heatproof.prove import RIVALS
        from heatproof.prove import prove as examine

        typed.check_options(names, options)
        tests = None if test is None else typed.split_names(test)
        plan(budget, len(by_name(tests)), len(RIVALS))  # likewise of the tests and the budget
        voice.work(f"loading {model or typed.DEFAULT_MODEL}")
        aimed, targets = typed.load_aimed(model or typed.DEFAULT_MODEL, weights, prompt or [], target or [])
        paths, missing = expand(images)
        for text in missing.values():
            voice.say(text)
        unreadable = _unreadable(paths)
        for text in unreadable.values():
            voice.say(text)
        missing, paths = missing | unreadable, [] if unreadable else paths
        if len(paths) > 1 and out is not None and out.suffix.lower() == ".html":
            raise InputError(f"-o {str(out)!r}: a page is about one image and {len(paths)} came; write .json instead.")
        verdicts: dict[str, Verdict] = {}
        stopped = False
        if paths:
            voice.work("explaining")
            asked = None if targets is None else [targets] * len(paths)
            files = [str(path) for path in paths]
            explanations = explain(aimed, files, names, asked, typed.read_layers(layer), **options)
            voice.work("proving", (budget or BUDGET) * len(names) * len(paths) * len(targets or [0]))
            for name, one in explanations.items():
                aim = asked if one.targets is None else None
                verdicts[name] = examine(aimed, files, one, tests, budget, seed, target=aim, progress=voice.step)
                stopped = verdicts[name].partial
                if stopped:
                    break
            if out is not None and out.suffix.lower() == ".html":
                from heatproof.dossier import dossier
                from heatproof.report.page import write_page

                found = dossier(aimed, files[0], explanations, verdicts, options=options, progress=voice.work)
                write_page(found.html, out)
                stopped = found.partial
            elif out is not None:
                _write(verdicts, out)
    failed = missing | {name: text for one in verdicts.values() for name, text in one.unread.items()}
    if as_json:
        document = {name: json.loads(one.to_json()) for name, one in verdicts.items()}
        print_json({"model": aimed.name, "failed": failed, "verdicts": document})
    elif verdicts:
        print_table(("image", "method", "target", "p", "verdict"), [row for pair in verdicts.items() for row in _rows(*pair)])
    for note in dict.fromkeys(note for one in verdicts.values() for note in one.notes):
        voice.say(f"note: {note}")
    if stopped:
        return 130
    return 1 if failed else 0


def _unreadable(paths: list[Path]) -> dict[str, str]:
    """What is wrong with each file if none of them can be read; one bad image among good ones costs its row alone."""
    from heatproof.images import read_image

    failed = {}
    for path in paths:
        try:
            read_image(path)
        except InputError as error:
            failed[str(path)] = str(error)
        else:
            return {}
    return failed


def _check_out(out: Path | None, names: list[str]) -> None:
    """Before the work, not after it."""
    if out is None:
        return
    if not (out.suffix.lower() in (".json", ".html") or (out.suffix.lower() == ".safetensors" and len(names) == 1)):
        raise InputError(f"-o {str(out)!r}: expected a file ending in .html, .json, or .safetensors for a single method.")
    if not out.parent.is_dir():
        raise InputError(f"-o {str(out)!r}: there is no folder {str(out.parent)!r}; make it, or choose another place.")


def _write(verdicts: "dict[str, Verdict]", out: Path) -> None:
    if out.suffix.lower() == ".safetensors" or len(verdicts) == 1:
        next(iter(verdicts.values())).save(out)
        return
    from heatproof.storage import written_whole

    with written_whole(out, "the verdicts") as temporary:
        documents = ", ".join(f"{json.dumps(name)}: {one.to_json()}" for name, one in verdicts.items())
        temporary.write_text(f"{{{documents}}}", "utf-8")


def _rows(name: str, verdict: "Verdict") -> list[tuple[Any, ...]]:
    return [
        (verdict.names[b], name, verdict.target_names[b][t], _p(verdict, b, t), verdict.sentences[b][t])
        for b in range(len(verdict.effect))
        for t in range(verdict.effect.shape[1])
    ]


def _p(verdict: "Verdict", b: int, t: int) -> float | None:
    """None where there was nothing that could be tested."""
    return None if verdict.states[b][t] in ("nothing to explain", "no verdict") else float(verdict.p_value[b, t])
