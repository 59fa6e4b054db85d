"""`heatproof prove` as a user meets it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import heatproof as hp
from heatproof import cli
from tiny import HeadNet, seeded


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (24, 40, 3), dtype=np.uint8)).save(tmp_path / name)
    import heatproof.models

    model = hp.wrap(seeded(HeadNet), lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, list("vwxyz"))
    monkeypatch.setattr(heatproof.models, "load", lambda name, weights=None: model)

    def call(*arguments):
        code = cli.main(["prove", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err.splitlines()

    return call


def test_a_table_with_the_sentence_of_every_map(run):
    code, out, err = run(
        "a.png", "b.png", "--method", "gradcam,edges", "--target", "w,y", "--budget", "150", "--test", "deletion"
    )
    assert code == 0 and not err
    rows = [line for line in out.splitlines() if ".png" in line]
    assert len(rows) == 8 and out.splitlines()[0].split()[:5] == ["image", "method", "target", "p", "verdict"]
    assert "supported" in out or "nothing to explain" in out


def test_json_and_files(run, tmp_path):
    code, out, _ = run("a.png", "--json", "--budget", "150", "-o", "one.safetensors", "--seed", "3")
    document = json.loads(out)["verdicts"]["gradcam"]
    verdict = hp.Verdict.load(tmp_path / "one.safetensors")
    assert code == 0 and document["p_value"] == verdict.p_value.tolist() and verdict.seed == 3
    assert json.loads(verdict.to_json()) == document
    code, _, _ = run("a.png", "--method", "gradcam,center", "--budget", "150", "-o", "two.json")
    assert code == 0 and set(json.loads((tmp_path / "two.json").read_text("utf-8"))) == {"gradcam", "center"}


def test_a_composite_has_its_flag(run):
    documents = {}
    for composite in ("lrp0", "epsilon-gamma-box"):
        code, out, _ = run("a.png", "--json", "--budget", "150", "--method", "lrp", "--composite", composite)
        assert code == 0
        documents[composite] = json.loads(out)["verdicts"]["lrp"]["effect"]
    code, out, _ = run("a.png", "--json", "--budget", "150", "--method", "lrp", "--option", "composite=lrp0")
    assert json.loads(out)["verdicts"]["lrp"]["effect"] == documents["lrp0"] != documents["epsilon-gamma-box"]


def test_a_bad_image_costs_its_row(run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    code, out, err = run("a.png", "bad.png", "missing/*.png", "--budget", "150")
    assert code == 1 and "no verdict" in out and len([line for line in out.splitlines() if ".png" in line]) == 2
    assert any("matches no file" in line for line in err)
    code, out, _ = run("a.png", "bad.png", "missing/*.png", "--budget", "150", "--json")
    failed = json.loads(out)["failed"]
    assert code == 1 and set(failed) == {"bad.png", "missing/*.png"} and "not an image that can be read" in failed["bad.png"]


def test_nothing_that_could_be_read_is_no_bad_usage(run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    code, out, err = run("bad.png", "none.png", "--budget", "150")
    assert code == 1 and not out and len(err) == 2 and "bad.png" in err[0] and "none.png" in err[1]
    code, out, _ = run("bad.png", "--json", "-o", "page.html")
    assert code == 1 and json.loads(out)["verdicts"] == {} and list(json.loads(out)["failed"]) == ["bad.png"]


def test_where_nothing_was_tested_there_is_no_p(run, monkeypatch):
    monkeypatch.setattr(hp.Verdict, "above_average", [[False]])
    code, out, _ = run("a.png", "--budget", "150")
    assert code == 0 and " – " in out.splitlines()[1] and "nothing to explain" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method", "gradcm"], "Did you mean 'gradcam'"),
        (["--budget", "20"], "budget=20 forwards per map leave"),
        (["--test", "deletoin"], "Did you mean 'deletion'"),
        (["--target", "unicorn"], "is not among the 5 labels"),
        (["-o", "page.pdf"], "expected a file ending in"),
        (["--method", "gradcam,center", "-o", "x.safetensors"], "for a single method"),
        (["-o", "nowhere/x.json"], "there is no folder 'nowhere'; make it, or choose another place"),
        (["-o", "nowhere/x.html"], "there is no folder 'nowhere'"),
        (["--test", "completeness"], "no test of one map among its copies"),
    ],
)
def test_bad_usage_is_one_line(run, arguments, message):
    code, out, err = run("a.png", *arguments)
    assert code == 2 and not out and len(err) == 1 and message in err[0]


def test_interrupted_it_shows_what_it_has(run, monkeypatch):
    from heatproof.proof import trial

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "ranks", stop)
    code, out, err = run("a.png", "--budget", "150", "--method", "gradcam,edges")
    assert code == 130 and "gradcam" in out and "edges" not in out and "interrupted" in err[-1]
    code, out, err = run("a.png", "--budget", "150", "--method", "gradcam,edges", "-o", "page.html")
    assert code == 130 and "The run was interrupted" in Path("page.html").read_text("utf-8")


def test_interrupted_in_the_sanity_checks_it_keeps_the_verdicts(run, monkeypatch):
    import heatproof.dossier as dossier

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(dossier, "sanity", stop)
    code, out, err = run("a.png", "--budget", "150", "--method", "gradcam,edges", "-o", "page.html")
    page = Path("page.html").read_text("utf-8")
    assert code == 130 and "gradcam" in out and "edges" in out and "interrupted" in err[-1]
    # the regions of the first were measured before it, the second's were not
    assert "The run was interrupted" in page and page.count("Every point is a region") == 1
