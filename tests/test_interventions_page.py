"""docs/interventions.md says of every intervention when it misleads, and its code runs."""

import re
from pathlib import Path

import skimage

from heatproof.proof.battery import OF_METHODS, TESTS
from heatproof.proof.infill import INFILLS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "interventions.md").read_text("utf-8")


def _rows(heading: str) -> set[str]:
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_intervention_and_infill_is_on_the_page():
    assert _rows("Tests") == _rows("When it misleads") == set(TESTS | OF_METHODS)
    assert _rows("What a removed pixel becomes") == set(INFILLS)


def test_the_pages_code_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "demo").mkdir()
    coffee = Path(skimage.__file__).parent / "data" / "coffee.png"
    (tmp_path / "demo" / "coffee.png").write_bytes(coffee.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], "interventions.md", "exec"), names)
    assert "torch.Size([1, 1, 5, 2])" in capsys.readouterr().out
    values = names["result"].values[0, 0]
    assert float(values[0]) > float(values[1:].max())  # the map knows something, the noise does not
