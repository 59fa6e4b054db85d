"""From names to files and groups of one size, and the panel of an image's maps."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import heatproof as hp
from heatproof import files
from heatproof.errors import InputError
from heatproof.report.panel import panel
from photos import Tiny, as_they_are, photo, tiny_model


def test_natural_order():
    assert sorted(["b", "a10", "A2", "a1b20", "a1b3"], key=files.natural) == ["a1b3", "a1b20", "A2", "a10", "b"]


def test_expand_takes_files_folders_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/x10.PNG", "a/x9.jpg", "a/b/y.png", "a/readme.txt", "c[1].png", "c1.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("empty").mkdir()

    def expand(*arguments):
        found, failed = files.expand(arguments)
        return [str(p) for p in found], list(failed)

    assert expand("a") == (["a/x9.jpg", "a/x10.PNG"], [])
    assert expand("a/**/*.png", "a/x9.jpg", "a") == (["a/b/y.png", "a/x9.jpg", "a/x10.PNG"], [])
    assert expand("c[1].png") == (["c[1].png"], [])
    assert expand("c[12].png", "empty", "d*", "gone.png") == (["c1.png", "gone.png"], ["empty", "d*"])
    assert expand("") == ([], [""])  # not the current folder


def test_names_never_collide_and_never_leave_the_folder():
    paths = [
        Path(p) for p in ("a/cat.jpg", "b/Cat.png", "cat-2.png", "c/cat.gif", "..png", "/", "ж" * 200 + ".png", "a/../x y.png")
    ]
    names = files.stems(paths)
    assert len({name.casefold() for name in names}) == len(paths)
    assert names[:2] == ["cat", "Cat-2"] and names[-1] == "x-y"
    for name in names:
        assert name and "." not in name and "/" not in name and len(name.encode()) <= 110
    many = files.unique(["x"] * 5000 + ["x-4999"])
    assert len(set(many)) == 5001


def test_groups_are_of_one_size_within_the_limit_and_are_let_go(tmp_path, monkeypatch):
    tiny = tiny_model()
    sizes = [(8, 6)] * 5 + [(6, 8)] * 2 + [(8, 6)]
    paths = [photo(tmp_path / f"{n}.png", *size, seed=n) for n, size in enumerate(sizes)]
    seen, real = [], files.explain
    monkeypatch.setattr(files, "batch_limit", lambda height, width: 2)
    monkeypatch.setattr(files, "explain", lambda model, x, *rest, **o: seen.append(tuple(x.shape)) or real(model, x, *rest, **o))
    results, alive = files.explain_files(files.Request(tiny, ["gradcam"]), paths), []
    for n, result in enumerate(results):
        direct = hp.explain(tiny, paths[n], "gradcam")
        one = result.explanations["gradcam"]
        assert result.index == n and one.names == (str(paths[n]),)
        torch.testing.assert_close(one.maps, direct.maps)
        torch.testing.assert_close(one.scores, direct.scores)
        alive.append(weakref.ref(one.maps))
        del one, result
    assert seen == [(2, 3, 6, 8)] * 2 + [(1, 3, 6, 8), (2, 3, 8, 6), (1, 3, 6, 8)]
    assert not any(ref() is not None for ref in alive[:-2])


def test_one_image_that_breaks_its_group_costs_only_itself(tmp_path):
    class Picky(Tiny):
        def forward(self, x):
            scores = super().forward(x)
            return torch.where(x.mean((1, 2, 3))[:, None] > 0.9, torch.nan, scores)

    model = hp.wrap(Picky(), preprocess=as_they_are)
    paths = [photo(tmp_path / f"{n}.png", 9, 9, seed=n, dc=250 if n == 1 else 0) for n in range(3)]
    results = list(files.explain_files(files.Request(model, ["gradcam"]), paths))
    assert [r.index for r in results] == [0, 1, 2] and [r.error is None for r in results] == [True, False, True]
    assert "1.png" in results[1].error and "NaN" in results[1].error


def test_panel_holds_each_overlay_in_its_place(tmp_path):
    tiny, path = tiny_model(), photo(tmp_path / "x.png", 60, 30)
    several = hp.explain(tiny, path, ["gradcam", "gradient"], target=[[1, 2]])
    sheet = np.array(panel(several, tile=60, columns=2)).astype(int)
    blocks = [[several["gradcam"].image(0), several["gradcam"].overlay(0, t), several["gradient"].overlay(0, t)] for t in (0, 1)]
    rows = [line for block in blocks for line in (block[:2], block[2:])]
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            y, x = 8 + r * (30 + 40 + 8) + 40, 8 + c * (60 + 8)
            assert np.array_equal(sheet[y : y + 30, x : x + 60], np.array(picture))
    with pytest.raises(InputError, match="same images"):
        panel({})
    with pytest.raises(InputError, match="same images"):
        panel({"a": several["gradcam"], "b": hp.explain(tiny, path, "gradcam")})
