"""The documentation is made from the code or run against it, so that it cannot say what is not so."""

import importlib.util
import re
import tomllib
from functools import partial
from pathlib import Path

import pytest
import skimage
from PIL import Image

import heatproof as hp
from heatproof.errors import nearest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text("utf-8")


def _generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_fresh():
    for path, text in _generator().pages().items():
        assert path.read_text("utf-8") == text, f"{path.name} is stale; run make docs"


def test_generator_replaces_what_is_between_and_wants_its_markers():
    between = _generator().between
    assert between("a\n<!-- x -->\nold\n<!-- /x -->\nb", "x", "new \\1") == "a\n<!-- x -->\n\nnew \\1\n\n<!-- /x -->\nb"
    with pytest.raises(ValueError, match="markers"):
        between("no markers", "x", "new")


def test_the_readme_names_every_method_once_and_the_reference_too():
    reference = (ROOT / "docs" / "methods.md").read_text("utf-8")
    for name in hp.methods().names:
        assert README.count(f"\n| `{name}` |") == 1
        assert reference.count(f"\n### `{name}`\n") == 1


@pytest.mark.parametrize("family, page", [("cam", "cam"), ("gradients", "gradients"), ("baseline", "baselines")])
def test_a_familys_page_has_its_methods(family, page):
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    listed = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(row.name for row in hp.methods() if row.family == family)
    assert "## When it misleads" in text


def test_each_bottom_up_method_has_a_section_that_says_when_it_misleads():
    text = (ROOT / "docs" / "bottom-up.md").read_text("utf-8")
    sections = dict(re.findall(r"^## `([^`]+)`\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == sorted(row.name for row in hp.methods() if row.family == "bottom-up")
    assert all("**Misleads**" in section for section in sections.values())


def test_the_relevance_page_has_every_composite_and_rule():
    import heatproof.lrp
    from heatproof.lrp.composites import NAMES

    text = (ROOT / "docs" / "relevance.md").read_text("utf-8")
    rules = [
        name for name, value in vars(heatproof.lrp).items() if isinstance(value, type) and issubclass(value, heatproof.lrp.Rule)
    ]
    assert all(f'`"{name}"`' in text for name in NAMES) and all(f"{name}(" in text for name in rules if name != "Rule")
    assert "## When it misleads" in text


def test_the_cam_page_is_right_about_signs():
    text = (ROOT / "docs" / "cam.md").read_text("utf-8")
    said = dict(re.findall(r"^\| `([^`]+)` \|.*\| (signed|positive part) \|$", text, re.MULTILINE))
    assert said == {row.name: "signed" if row.kind().signed else "positive part" for row in hp.methods() if row.family == "cam"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere_and_pictures_are_small(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if "://" in link:
            continue
        target = page.parent / link
        assert target.is_file(), f"{page.name} links to {link}"
        if target.suffix == ".png":
            assert target.stat().st_size < 300_000
            with Image.open(target) as picture:
                assert min(picture.size) > 100


def test_the_readmes_ten_lines_run(tmp_path, monkeypatch, capsys):
    code = re.search(r"## Ten lines\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) == 10
    (tmp_path / "demo").mkdir()
    for name in ("chelsea.png", "coffee.png"):
        (tmp_path / "demo" / name).write_bytes((Path(skimage.__file__).parent / "data" / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    said = capsys.readouterr().out
    assert "espresso" in said and "torch.Size([2, 2, 224, 224])" in said
    assert Image.open("coffee-gradcam.png").size == (224, 224)
    assert hp.Explanation.load("layercam.safetensors").target_names == [["espresso", "cup"], ["tabby", "lynx"]]
    relevance = re.search(r"could not hand on:\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    exec(compile(relevance, "README.md", "exec"), names)
    total, score = map(float, capsys.readouterr().out.split("\n")[0].split())
    assert total == pytest.approx(score, rel=1e-3) and names["saliency"].method == "gbvs"

    proof = re.search(r"## Is it true\?\n\n```python\n(.*?)```", README, re.DOTALL)[1]
    exec(compile(proof, "README.md", "exec"), names)
    said = capsys.readouterr().out
    assert "lrp removing" in said and ": supported" in said and "gradcam removing" in said and ": not supported" in said
    assert "of the map's rank order is left" in said


def test_the_readmes_cards_are_of_every_method():
    table = re.search(r"<!-- audit -->\n(.*?)<!-- /audit -->", README, re.DOTALL)[1]
    assert re.findall(r"^\| ([\w+-]+) \|", table, re.MULTILINE)[2:] == hp.methods().names


@pytest.mark.parametrize("page", ["chili", "textspan"])
def test_the_code_of_a_page_runs(page, capsys):
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, f"{page}.md", "exec"), {})
    assert ("object" if page == "chili" else "MLPs") in capsys.readouterr().out


def test_the_page_on_believing_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "believe.md").read_text("utf-8")
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "photo.jpg").write_bytes((Path(skimage.__file__).parent / "data" / "coffee.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hp, "sanity", partial(hp.sanity, seeds=1, stages=2, orders=("top-down",)))  # the same, sooner
    monkeypatch.setattr(hp, "audit", partial(hp.audit, scenes=4))
    names: dict = {}
    exec(compile(first, "believe.md", "exec"), names)
    said = capsys.readouterr().out
    assert all(part in said for part in ("rank order is left", "espresso: removing the marked", "tried on planted-cnn"))
    exec(compile(second, "believe.md", "exec"), names)
    quoted = text.split("```\n\n> ")[-1].split("\n\nMore than")[0].replace(">", " ").split()
    assert capsys.readouterr().out.split() == quoted


def test_the_page_on_believing_names_who_is_misled():
    rows = re.findall(r"^\| ([\w+-]+) \| (?!baseline|bottom-up)[\w-]+ \| \S+ \| ([^|]+) \|", README, re.MULTILINE)
    misled = {name: misses.split(", ") for name, misses in rows}
    text = (ROOT / "docs" / "believe.md").read_text("utf-8")
    for case, cell in re.findall(r"^\| \*\*(\w+)\*\* \|[^|]*\|([^|]*)\|", text, re.MULTILINE):
        named = set(re.findall(r"`([^`]+)`", cell))
        wrong = {name for name, misses in misled.items() if case in misses}
        # of the redundant squares nearly all miss one, so the page names who does not
        assert named and (not named & wrong if case == "redundant" else named <= wrong), case


def test_the_readmes_errors_are_what_is_said():
    from heatproof.models.efficientnet_lite import imagenet_labels

    assert f"is not among the 1000 labels.{nearest('tabbby', imagenet_labels())}\n" in README
    assert f"there is no method 'gradcm'.{nearest('gradcm', hp.methods().names)} hp.methods() lists them all.\n" in README


def test_the_readmes_commands_exist():
    rules = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    for page in PAGES:
        for rule in re.findall(r"^\$ make (\w+)", page.read_text("utf-8"), re.MULTILINE):
            assert rule in rules
    assert re.findall(r"^make (\w+)$", ci, re.MULTILINE) == ["demo", "test"]


def test_every_direct_dependency_has_its_tested_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    pins = re.findall(r"^([\w.-]+)==\S+$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert sorted(re.match(r"[\w.-]+", one)[0] for one in asked) == sorted(pins)
