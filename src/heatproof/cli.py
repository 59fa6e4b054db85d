"""The command `heatproof`. Thin: it reads what was typed, calls the library, and says what came of it.

Exit code 0 done, 1 an input failed (the others are done), 2 bad usage, 130 interrupted. Torch is imported inside the
commands, so that help is there at once.
"""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from heatproof.cli_audit import audit
from heatproof.cli_explain import explain
from heatproof.cli_fixations import fixations
from heatproof.cli_hallucination import hallucination
from heatproof.cli_prove import prove
from heatproof.cli_segmentation import segmentation
from heatproof.errors import HeatproofError, InputError

# typer has brought its own click along since 0.20; its errors are found from one that it always exports
_ClickError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="Show where a vision model looked.")
bench_app = typer.Typer(help="Score methods over a data set.")
app.add_typer(bench_app, name="bench")
bench_app.command()(fixations)
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


app.command()(explain)
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
    """Inside, libraries do not log: they tell of every retry of a download, and what came of it is said here, once.

    Nor do they draw bars into a file or pipe.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the library is imported
    try:
        yield
    finally:
        logging.disable(before)


def _say(text: Any) -> None:
    from heatproof.console import Voice

    Voice().say(text)
