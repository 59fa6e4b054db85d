"""The script that trains the planted models: a few steps of it, and its measures against slow ones."""

import importlib.util
from pathlib import Path

import pytest
import torch

import heatproof as hp
from heatproof.models.planted import World


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[1] / "examples" / "train_planted.py"
    spec = importlib.util.spec_from_file_location("train_planted", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(script):
    return script.images(World(correlation=0.5).scenes(128, seed=1))


@pytest.mark.parametrize("name", ["clip", "cnn"])
def test_a_few_steps(script, data, tmp_path, name, monkeypatch, capsys):
    monkeypatch.setattr(script, "BATCH", 16)
    monkeypatch.setattr(script, "measure", lambda *_: {"accuracy": 0.5})
    make = getattr(script, f"train_{name}")
    with torch.random.fork_rng():
        module, losses = make(data, 20, 0)
        again, same = make(data, 20, 0)
    assert losses[-1] < losses[0] - 0.2
    assert losses == same
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    assert not module.training
    script.save(module, tmp_path / "w.safetensors", {"seed": "0"})
    loaded = hp.load(f"planted-{name}", weights=tmp_path / "w.safetensors").module
    for one, other in zip(module.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one.half(), other.half())
    assert "accuracy 0.500" in capsys.readouterr().out


def test_the_measures_of_what_ships(script):
    figures = script.measure(hp.load("planted-clip").module, count=150)
    assert figures["accuracy"] > 0.9
    assert figures["hallucination"] > 2 * figures["false_alarm"]
    assert figures["own_on_top"] > 1 / 8
