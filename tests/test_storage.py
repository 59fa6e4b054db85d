"""Files are written whole or not at all, and read as what they were written for or not at all."""

import pytest
import torch

import heatproof as hp
from heatproof.storage import load_tensors, save_tensors, written_whole


def test_tensors_and_header_come_back(tmp_path):
    tensors = {"a": torch.rand(2, 3).t(), "b": torch.arange(4), "none": None}
    path = save_tensors(tmp_path / "x.safetensors", "a thing", tensors, {"seed": 3, "names": ["é", None]})
    found, header = load_tensors(path, "a thing")
    assert set(found) == {"a", "b"} and found["a"].equal(tensors["a"]) and found["b"].equal(tensors["b"])
    assert header == {"seed": 3, "names": ["é", None]}


def test_one_thing_is_not_read_as_another(tmp_path):
    weights = hp.ChiliWeights(torch.rand(2, 3)).save(tmp_path / "weights.safetensors")
    with pytest.raises(hp.InputError, match="is not an explanation that this version"):
        hp.Explanation.load(weights)
    with pytest.raises(hp.InputError, match="is not a verdict that this version"):
        hp.Verdict.load(weights)
    with pytest.raises(hp.InputError, match="is not a file of head weights that this version"):
        hp.ChiliWeights.load(hp.explain(None, torch.rand(3, 8, 9), "edges").save(tmp_path / "ex.safetensors"))


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ValueError("no")])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("before")
    with (
        pytest.raises(hp.InputError if isinstance(error, OSError) else type(error)) as caught,
        written_whole(path, "it", "try b") as part,
    ):
        part.write_text("half")
        raise error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    if isinstance(error, OSError):
        assert str(caught.value) == f"it cannot be written to {str(path)!r} (full); try b."


def test_permissions_are_those_of_any_new_file(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    with written_whole(tmp_path / "ours", "it") as part:
        part.write_text("x")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode
