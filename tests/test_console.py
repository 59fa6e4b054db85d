"""What the command line says: one line at a time, a bar when it takes long, JSON that every reader takes."""

import contextlib
import io
import json
import time
from pathlib import Path

import pytest

from heatproof import console


def test_json_has_no_nan():
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        console.print_json({"a": [float("nan"), float("inf"), 1.5], 2: (True, None, Path("x"))})
    assert json.loads(text.getvalue(), parse_constant=pytest.fail) == {"a": [None, None, 1.5], "2": [True, None, "x"]}


@pytest.mark.parametrize("patience, shown", [(0.05, True), (60.0, False)])
def test_a_bar_appears_only_when_it_takes_long(monkeypatch, patience, shown):
    monkeypatch.setattr(console, "PATIENCE", patience)
    voice, buffer = console.Voice(), io.StringIO()
    voice.console = console.Console(file=buffer, force_terminal=True, width=100)
    with voice:
        voice.work("explaining", 4)
        voice.step()
        time.sleep(0.4)
        voice.say("a line")
    assert "a line" in buffer.getvalue()
    assert ("explaining" in buffer.getvalue() and "1/4" in buffer.getvalue()) == shown


def test_a_log_file_gets_no_bar(monkeypatch):
    monkeypatch.setattr(console, "PATIENCE", 0.01)
    voice, buffer = console.Voice(), io.StringIO()
    voice.console = console.Console(file=buffer, force_terminal=False)
    with voice:
        voice.work("explaining", 4)
        time.sleep(0.1)
    assert buffer.getvalue() == ""
