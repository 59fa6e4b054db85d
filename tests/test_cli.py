"""The command line as a user meets it: what is on stdout, what is on stderr, which files are there, which exit code."""

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import heatproof as hp
from heatproof import cli, files
from heatproof.cli_typed import load_aimed
from heatproof.errors import InputError
from photos import LABELS, photo, tiny_model


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err.splitlines()

    return call


@pytest.fixture
def tiny(monkeypatch):
    """`--model tiny`: images enter at their own size."""
    import heatproof.models

    model = tiny_model()
    known = heatproof.models.load
    monkeypatch.setattr(heatproof.models, "load", lambda name, weights=None: model if name == "tiny" else known(name, weights))
    return model


def test_help_imports_no_torch():
    code = "import sys; from heatproof.cli import main; c = main(['--help']); assert c == 0; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert all(command in done.stdout for command in ("explain", "methods", "models"))


def test_python_m_and_the_installed_command_are_the_same():
    for command in ([sys.executable, "-m", "heatproof"], [str(Path(sys.executable).with_name("heatproof"))]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)


def test_nothing_typed_is_help(run):
    code, out, err = run()
    assert code == 0 and "explain" in out and err == []


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["explain"], "Missing argument"),
        (["explian"], "explian"),
        (["explain", "x.png", "--modle", "a"], "--modle"),
        (["explain", "x.png", "--method", "gradcm"], "'gradcam'"),
        (["explain", "x.png", "--method", " , "], "names no method"),
        (["explain", "x.png", "--model", "efficientnet-lite"], "'efficientnet-lite0'"),
        (["explain", "x.png", "--weights", "none.pt"], "'none.pt'"),
        (["explain", "x.png", "--target", "tabbby"], "'tabby'"),
        (["explain", "x.png", "--target", "1000"], "0 to 999"),
        (["explain", "x.png", "--target=-1"], "'-1'"),
        (["explain", "x.png", "--prompt", "a cat"], "classifier"),
        (["explain", "x.png", "--classes", "-1"], "--classes"),
        (["explain", "x.png", "--method", "smoothgrad", "--option", "sample=3"], "'samples'"),
        (["explain", "x.png", "--method", "smoothgrad", "--option", "samples"], "name=value"),
        (["explain", "x.png", "--method", "smoothgrad", "--option", "samples=many"], "expected int"),
        (["explain", "x.png", "--method", "smoothgrad", "--option", "samples=true"], "expected int"),
        (["explain", "x.png", "--method", "smoothgrad", "--option", "noise=loud"], "expected float"),
        (["explain", "x.png", "--method", "gradcam", "--option", "layer=_swish"], "--layer"),
        (["explain", "x.png", "--method", "gradient", "--layer", "_swish"], "'layer'"),
        (["explain", "x.png", "--method", "edges", "-o", "x.png/inside"], "'x.png/inside'"),
        (["models", "--filter", "no such model"], "'no such model'"),
    ],
    ids=lambda value: " ".join(value[1:])[:40] if isinstance(value, list) else "",
)
def test_bad_usage_is_one_line_and_two(run, tmp_path, arguments, said):
    photo(tmp_path / "x.png", 20, 20)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err) == 1 and err[0].startswith("heatproof: ") and said in err[0]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["x.png"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--layer", "head"], "'head'"),
        (["--layer", "featurs"], "'features'"),
        (["--method", "integrated-gradients", "--option", "steps=0"], "steps=0"),
        (["--method", "integrated-gradients", "--option", "baseline=[1,2]"], "baseline="),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_request_that_fits_no_image_is_bad_usage(run, tiny, tmp_path, arguments, said):
    photo(tmp_path / "x.png", 20, 17)
    code, out, err = run("explain", "x.png", "--model", "tiny", *arguments)
    assert (code, out) == (2, "") and len(err) == 1 and said in err[0]


def test_what_is_written_is_what_explain_says(run, tiny, tmp_path):
    path = photo(tmp_path / "a b.v2.png", 21, 14)
    code, out, err = run(
        "explain", path.name, "--model", "tiny", "--method", "gradcam, gradient", "--method", "gradcam", "--target", "0",
        "--target", "wader,sea, snow", "--target", "3, 2", "-o", "out/deep", "--json", "--classes", "2",
    )  # fmt: skip
    assert (code, err) == (0, [])
    document = json.loads(out)
    assert document["model"] == "Tiny" and document["failed"] == []
    (record,) = document["images"]
    expected = hp.explain(tiny, path, ["gradcam", "gradient"], target=[[0, 1, 2, 3]])
    assert [one["method"] for one in record["explanations"]] == ["gradcam", "gradient"]
    for one in record["explanations"]:
        direct, saved = expected[one["method"]], hp.Explanation.load(one["file"])
        torch.testing.assert_close(saved.maps, direct.maps)
        torch.testing.assert_close(saved.raw, direct.raw)
        assert saved.names == (path.name,) and saved.target_names == direct.target_names and saved.layer == direct.layer
        assert one["layer"] == list(direct.layer)
        assert [t["index"] for t in one["targets"]] == [0, 1, 2, 3]
        for t, told in enumerate(one["targets"]):
            assert told["score"] == pytest.approx(direct.scores[0, t].item(), abs=1e-6)
            assert np.array_equal(np.array(Image.open(told["picture"])), np.array(direct.overlay(0, t)))
    scores = tiny.scores(path)[0]
    best = sorted(range(4), key=lambda c: -scores[c].item())[:2]
    assert [c["index"] for c in record["classes"]] == best and [c["class"] for c in record["classes"]] == [
        LABELS[c] for c in best
    ]
    total = sum(np.exp(s) for s in scores.tolist())
    for c in record["classes"]:
        assert c["softmax"] == pytest.approx(np.exp(scores[c["index"]].item()) / total, rel=1e-5)
    kinds = ("crane", "crane-bird-wader", "sea-snow", "crane-2")
    names = {f"a-b-v2.{m}.{k}.png" for m in ("gradcam", "gradient") for k in kinds}
    names |= {"a-b-v2.gradcam.safetensors", "a-b-v2.gradient.safetensors", "a-b-v2.panel.png"}
    assert {p.name for p in (tmp_path / "out" / "deep").iterdir()} == names


def test_several_methods_and_options_go_where_they_are_known(run, tiny, tmp_path):
    path = photo(tmp_path / "x.png", 15, 12)
    code, out, _ = run(
        "explain", "x.png", "--model", "tiny", "--method", "smoothgrad,gradcam,random", "--option", "samples=3",
        "--option", "noise=1", "--layer", "features", "--option", "seed=5", "--option", "batch_size=none", "--json",
    )  # fmt: skip
    assert code == 0
    told = {one["method"]: one for one in json.loads(out)["images"][0]["explanations"]}
    assert told["smoothgrad"]["options"] == {"samples": 3, "noise": 1, "seed": 5, "batch_size": None}
    assert told["random"]["options"] == {"seed": 5} and told["gradcam"]["layer"] == ["features"]
    direct = hp.explain(tiny, path, "smoothgrad", samples=3, noise=1, seed=5)
    torch.testing.assert_close(hp.Explanation.load(told["smoothgrad"]["file"]).maps, direct.maps)


def test_a_bad_image_costs_itself_and_one_line(run, tiny, tmp_path):
    folder = tmp_path / "in"
    for n in (10, 9, 2):
        photo(folder / f"i{n}.png", 12, 9, seed=n)
    photo(folder / "i3.png", 9, 12)
    photo(folder / "i1.png", 3, 3)  # this network cannot take it
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("not listed")
    (folder / ".hidden.png").write_text("nor this")
    (folder / "text.jpg").write_text("no image")
    with warnings.catch_warnings(record=True) as caught:
        code, out, err = run("explain", "in", "gone.png", "none*.png", "in/i2.png", "--model", "tiny", "--json")
    assert code == 1 and not caught
    document = json.loads(out)
    assert [Path(one["image"]).name for one in document["images"]] == ["i2.png", "i3.png", "i9.png", "i10.png"]
    bad = ["none*.png", "in/empty.jpg", "in/i1.png", "in/text.jpg", "gone.png"]
    assert [one["image"] for one in document["failed"]] == bad
    assert len(err) == len(bad)
    for line, name, failed in zip(err, bad, document["failed"], strict=True):
        assert line == f"heatproof: {failed['error']}" and repr(name) in line


def test_table_on_stdout_failures_on_stderr(run, tmp_path):
    photo(tmp_path / "[red]x.png", 12, 9)  # rich's own markup in a name
    (tmp_path / "line\nbreak.png").write_text("no image")
    code, out, err = run("explain", "[red]x.png", "line\nbreak.png", "--method", "edges", "-o", "out")
    assert code == 1
    header, row = out.splitlines()
    assert header.split() == ["image", "method", "target", "score", "layer", "file"]
    assert row.split() == ["[red]x.png", "edges", "–", "–", "–", "out/red-x.edges.png"]
    assert len(err) == 1 and "break.png" in err[0]


def test_highest_classes_come_first_as_a_table_of_their_own(run, tiny, tmp_path):
    path = photo(tmp_path / "x.png", 12, 9)
    code, out, err = run("explain", "x.png", "--model", "tiny", "--classes", "9")
    assert (code, err) == (0, [])
    first, second = out.split("\n\n")
    scores = tiny.scores(path)[0]
    order = scores.argsort(descending=True).tolist()
    header, *rows = first.splitlines()
    assert header.split() == ["image", "class", "index", "score", "softmax"]
    for row, c in zip(rows, order, strict=True):
        assert row.split() == ["x.png", *LABELS[c].split(), str(c), f"{scores[c]:.3f}", f"{scores.softmax(0)[c]:.3f}"]
    assert len(second.splitlines()) == 2 and "explanations/x.gradcam." in second


def test_all_bad_prints_no_table(run, tmp_path):
    assert run("explain", "gone.png", "--method", "edges")[:2] == (1, "")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_a_name_that_is_no_text(run, tmp_path):
    photo(tmp_path / "x.png", 8, 8).rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    for extra in ((), ("--json",)):
        code, out, err = run("explain", ".", "--method", "edges", "-o", "out", *extra)
        assert (code, err) == (0, []) and "image.edges.png" in out
    code, out, err = run("explain", "n" * 300 + ".png", "--method", "edges")
    assert code == 1 and len(err) == 1


def test_a_failing_write_is_one_line(run, tmp_path):
    photo(tmp_path / "x.png", 8, 8)
    (tmp_path / "out" / "x.edges.png").mkdir(parents=True)
    code, out, err = run("explain", "x.png", "--method", "edges", "-o", "out")
    assert (code, out) == (2, "") and len(err) == 1 and "x.edges.png" in err[0]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.edges.png"]


def test_interrupted_is_one_line_and_130(run, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    photo(tmp_path / "x.png", 8, 8)
    monkeypatch.setattr(files, "write", interrupt)
    code, out, err = run("explain", "x.png", "--method", "edges")
    assert (code, out) == (130, "") and len(err) == 1 and "interrupted" in err[0]


def test_a_bug_is_one_line_too(run, tmp_path, monkeypatch):
    photo(tmp_path / "x.png", 8, 8)
    monkeypatch.setattr(files, "write", lambda *_: 1 / 0)
    code, out, err = run("explain", "x.png", "--method", "edges")
    assert (code, out) == (1, "") and len(err) == 1 and "ZeroDivisionError" in err[0]


def test_what_a_library_prints_does_not_reach_stdout(run, tmp_path, monkeypatch):
    photo(tmp_path / "x.png", 8, 8)
    write = files.write
    monkeypatch.setattr(files, "write", lambda *a: print("chatter") or write(*a))
    code, out, err = run("explain", "x.png", "--method", "edges", "--json")
    assert code == 0 and err == ["chatter"] and json.loads(out)["failed"] == []


def test_warnings_are_one_line(run, tmp_path, monkeypatch):
    photo(tmp_path / "x.png", 8, 8)
    write = files.write
    monkeypatch.setattr(files, "write", lambda *a: warnings.warn("two\nlines", stacklevel=1) or write(*a))
    code, _, err = run("explain", "x.png", "--method", "edges")
    assert code == 0 and err == ["heatproof: note: two lines"]


def test_what_libraries_log_is_not_printed(run, tmp_path, monkeypatch, caplog):
    photo(tmp_path / "x.png", 8, 8)
    write, library = files.write, logging.getLogger("a.library")
    monkeypatch.setattr(files, "write", lambda *a: library.warning("retrying") or write(*a))
    code, _, err = run("explain", "x.png", "--method", "edges")
    assert code == 0 and err == [] and not caplog.records
    library.warning("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]


def test_methods_is_the_registry(run):
    code, out, _ = run("methods", "--json")
    assert code == 0 and [row["name"] for row in json.loads(out)] == hp.methods().names
    assert run("methods", "--markdown")[1].strip() == hp.methods().markdown()
    lines = run("methods")[1].splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == ["method", *hp.methods().names]


def test_models_are_what_is_available(run):
    from heatproof.models.loading import available

    code, out, err = run("models", "--json")
    assert (code, err) == (0, []) and json.loads(out) == available()
    code, out, _ = run("models", "--filter", "EfficientNet-Lite0")
    names = [line.split()[0] for line in out.splitlines()]
    assert code == 0 and names[:2] == ["model", "efficientnet-lite0"]
    assert all("efficientnet-lite0" in name.lower() or name == "model" for name in names)


class Texts(torch.nn.Module):
    """An image–text model: texts of length n like channel n mod 3."""

    def encode_image(self, x):
        return x.mean((2, 3))

    def encode_text(self, tokens):
        return torch.nn.functional.one_hot(tokens % 3, 3).float()

    def forward(self, x):
        return self.encode_image(x)


def test_prompts_and_targets_of_an_image_text_model(monkeypatch):
    model = hp.wrap(Texts(), preprocess=lambda image: torch.zeros(3, 4, 4), tokenizer=lambda t: torch.tensor([len(s) for s in t]))
    monkeypatch.setattr("heatproof.models.load", lambda name, weights=None: model)
    aimed, targets = load_aimed("it", None, ["a cat", "a dog, wet"], ["a dog, wet", "a cat,1", "snow, ice", "snow, ice"])
    assert aimed.prompts == ("a cat", "a dog, wet", "snow, ice") and targets == [1, 0, 2]
    assert load_aimed("it", None, ["a cat"], [])[1] is None
    with pytest.raises(InputError, match="--prompt"):
        load_aimed("it", None, [], [])


def test_composite_is_an_option_of_its_own(run, tiny, tmp_path):
    photo(tmp_path / "a.png", 16, 12)
    code, out, _ = run("explain", "a.png", "--model", "tiny", "--method", "lrp", "--composite", "epsilon", "--json")
    assert code == 0 and json.loads(out)["images"][0]["explanations"][0]["options"]["composite"] == "epsilon"
    code, _, err = run("explain", "a.png", "--model", "tiny", "--method", "lrp", "--composite", "epsilom")
    assert code == 2 and "Did you mean 'epsilon'" in err[-1]
