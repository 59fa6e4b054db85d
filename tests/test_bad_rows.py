"""Constant maps, one bad image among many, damaged explanations: nothing lost but what is bad."""

import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import heatproof as hp
from wrong import HEIGHT, WIDTH, model, picture, small, write

# Constant maps


@pytest.mark.parametrize("method", [row.name for row in hp.methods() if row.family != "tokens"])
def test_nothing_to_see_gives_a_constant_map_and_no_nan(method: str) -> None:
    """A network that ignores its image, and an image without contrast."""
    net = small()
    net.conv.weight.data.zero_()
    net.conv.bias.data.fill_(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # what Python says of a library that is imported here first
        ex = hp.explain(net, torch.full((2, 3, 9, 11), 0.5), method=method, target=[[0, 1]] * 2 if _asks(method) else None)
        assert torch.isfinite(ex.maps).all() and torch.isfinite(ex.raw).all()
        if method not in ("random", "center"):
            assert (ex.maps == ex.maps[:, :, :1, :1]).all()
            assert "constant" in repr(ex)
            grey = np.asarray(ex.overlay())
            assert grey.shape == (9, 11, 3) and ex._repr_png_()[:4] == b"\x89PNG" and "<img" in ex._repr_html_()


def _asks(method: str) -> bool:
    return "model" in hp.methods()[method].needs


def test_the_overlay_of_a_constant_map_says_so() -> None:
    """The picture stays grey and carries a note; a map that stands out is coloured."""
    from heatproof.overlay import overlay

    image = np.full((60, 120, 3), 128, np.uint8)
    for heat, signed in ((np.zeros((60, 120)), False), (np.full((60, 120), 3.0), True), (np.full((60, 120), np.nan), False)):
        drawn = np.asarray(overlay(image, heat, signed)).astype(int)
        assert (drawn.max(2) == drawn.min(2)).all()  # grey throughout
        assert (drawn != 128).any()  # the note
    heat = np.zeros((60, 120))
    heat[20:30] = 1
    drawn = np.asarray(overlay(image, heat, False)).astype(int)
    assert (drawn.max(2) - drawn.min(2)).max() > 50


# One bad image among many


@pytest.mark.parametrize("method", ["gradcam", "gradient-x-input", "edges"])
@pytest.mark.parametrize("bad_first", [True, False])
def test_only_the_bad_file_is_lost(tmp_path: Path, method: str, bad_first: bool) -> None:
    good = []
    for n in range(3):
        good.append(tmp_path / f"good{n}.png")
        picture(n).save(good[-1])
    bad = write(tmp_path / "bad.jpg", "text")
    files: list[Any] = [bad, *good] if bad_first else [*good[:2], bad, good[2]]
    at = files.index(bad)
    asked = None if method == "edges" else model()
    target = {} if method == "edges" else {"target": [1, 2, 3, 4]}
    with pytest.warns(UserWarning, match=rf"image {at}: .*bad\.jpg.*row is NaN"):
        ex = hp.explain(asked, files, method=method, **target)
    assert list(ex.errors) == [at] and "bad.jpg" in ex.errors[at]
    assert torch.isnan(ex.maps[at]).all() and torch.isnan(ex.raw[at]).all() and not ex.images[at].any()
    assert ex.names == tuple(map(str, files))
    if ex.targets is not None:
        assert int(ex.targets[at]) == -1 and torch.isnan(ex.scores[at]).all()
    if ex.residual is not None:
        assert torch.isnan(ex.residual[at]).all()
    for i, file in enumerate(files):
        if i != at:
            single = hp.explain(asked, file, method=method, **({"target": target["target"][i]} if target else {}))
            torch.testing.assert_close(ex.maps[i], single.maps[0])
            torch.testing.assert_close(ex.raw[i], single.raw[0])
            assert torch.equal(ex.images[i], single.images[0])
            if ex.targets is not None:
                assert torch.equal(ex.targets[i], single.targets[0])
    assert "bad.jpg" in repr(ex) and ex.overlay(at).size == (WIDTH, HEIGHT)
    path = ex.save(tmp_path / "ex.safetensors")
    again = hp.Explanation.load(path)
    assert again.errors == ex.errors and torch.equal(again.maps.isnan(), ex.maps.isnan())


def test_all_bad_is_an_error(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.jpg", "text"), write(tmp_path / "b.jpg", "zero bytes")]
    with pytest.raises(hp.InputError, match=r"a\.jpg"):
        hp.explain(model(), files)


def test_bad_arrays_and_tensors_in_a_list_cost_their_row_only() -> None:
    mixed = [picture(), np.zeros((4, 5, 2), np.uint8), torch.rand(3, HEIGHT, WIDTH), torch.rand(4, HEIGHT, WIDTH), None]
    with pytest.warns(UserWarning):
        ex = hp.explain(model(), mixed)
    assert sorted(ex.errors) == [1, 3, 4]
    assert torch.isfinite(ex.maps[[0, 2]]).all()
    torch.testing.assert_close(ex.maps[2], hp.explain(model(), mixed[2]).maps[0])


def test_a_nan_image_in_a_list_costs_its_row_only() -> None:
    mixed = [torch.rand(3, 9, 11), torch.full((3, 9, 11), torch.nan)]
    with pytest.warns(UserWarning, match="NaN"):
        ex = hp.explain(model(), mixed)
    assert list(ex.errors) == [1] and torch.isfinite(ex.maps[0]).all()


# Saving and loading


def explanation() -> hp.Explanation:
    return hp.explain(model(), torch.rand(2, 3, 9, 11), method="gradient-x-input", target=[[0, 1], [2, 3]])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("step", ["save_file", "os.replace", "os.chmod"])
@pytest.mark.parametrize("existing", [True, False])
def test_save_writes_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str, existing: bool
) -> None:
    import heatproof.storage as room

    path = tmp_path / "ex.safetensors"
    if existing:
        path.write_bytes(b"what was there before")

    def fail(*arguments: Any, **_: Any) -> None:
        if step == "save_file":
            Path(arguments[1]).write_bytes(b"half of it")
        raise error

    ex = explanation()
    with monkeypatch.context() as patch:
        if step == "save_file":
            patch.setattr(room, "save_file", fail)
        else:
            patch.setattr(os, step.removeprefix("os."), fail)
        with pytest.raises(hp.InputError if isinstance(error, OSError) else type(error)) as caught:
            ex.save(path)
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value) and "ex.safetensors" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == (["ex.safetensors"] if existing else [])
    if existing:
        assert path.read_bytes() == b"what was there before"
    ex.save(path)
    assert torch.equal(hp.Explanation.load(path).maps, ex.maps)


def test_save_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(hp.InputError, match=r"ex\.safetensors.*another place"):
        explanation().save(tmp_path / "no" / "such" / "folder" / "ex.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(hp.InputError, match="folder"):
        explanation().save(tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"] and not list((tmp_path / "folder").iterdir())


def header_of(path: Path, **changes: Any) -> None:
    """Rewrite an explanation's header with some entries changed, or removed where they are None."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["heatproof"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header |= changes
    header = {name: value for name, value in header.items() if value != "absent"}
    save_file(tensors, path, {"heatproof": json.dumps(header)})


def harm(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "half":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "text":
        path.write_text("hello" * 50)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"maps": 1}))
    elif kind == "other safetensors":
        save_file({"maps": torch.zeros(2)}, path)
    elif kind == "broken JSON":
        save_file({"maps": torch.zeros(2)}, path, {"heatproof": "{"})
    elif kind == "list header":
        save_file({"maps": torch.zeros(2)}, path, {"heatproof": "[1]"})
    elif kind == "no tensors":
        save_file({}, path, {"heatproof": json.dumps({"schema": 1, "what": "an explanation"})})
    elif kind == "newer schema":
        header_of(path, schema=99)
    elif kind == "unknown field":
        header_of(path, surprise=1)
    elif kind == "no errors field":
        header_of(path, errors="absent")
    elif kind == "no method":
        header_of(path, method="absent")
    elif kind == "errors of a wrong kind":
        header_of(path, errors=[1, 2])
    elif kind == "maps of another shape":
        torn = explanation()
        object.__setattr__(torn, "maps", torn.maps[..., :3].clone())
        torn.save(path)
    elif kind == "layer of a wrong kind":
        header_of(path, layer=3)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        assert kind == "missing"
        path.unlink()


@pytest.mark.parametrize(
    "kind",
    ["zero bytes", "half", "text", "pickle", "other safetensors", "broken JSON", "list header", "no tensors", "newer schema",
     "unknown field", "no errors field", "no method", "errors of a wrong kind", "layer of a wrong kind",
     "maps of another shape", "folder", "missing"],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_damaged_explanations(tmp_path: Path, kind: str) -> None:
    path = explanation().save(tmp_path / "ex.safetensors")
    harm(path, kind)
    with pytest.raises(hp.InputError, match=r"ex\.safetensors"):
        hp.Explanation.load(path)


def test_maps_that_are_not_there() -> None:
    ex = explanation()
    with pytest.raises(hp.InputError, match=r"2 image\(s\) × 2 target\(s\)"):
        _ = ex.map
    for i, t in ((2, 0), (0, 2), (-3, 0)):
        with pytest.raises(hp.InputError, match="no map"):
            ex.overlay(i, t)


@pytest.mark.parametrize("name", ["n" * 300 + ".png", "nul\0.png"])
def test_a_name_that_no_file_can_have_is_a_sentence(name):
    with pytest.raises(hp.InputError, match="check the path"):
        hp.explain(None, name, method="center")
