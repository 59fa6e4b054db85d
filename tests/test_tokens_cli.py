"""Token methods as they are typed, with the CLIP that comes along: what is written is what `explain()` says of each image."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import heatproof as hp
from heatproof.cli import main
from heatproof.models.planted import World

METHODS = ["legrad", "textspan", "chili"]
TARGETS = ["a fox", "snow"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    values = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    return hp.ChiliWeights(values, {"model": "planted-clip"}).save(tmp_path_factory.mktemp("weights") / "heads.safetensors")


@pytest.fixture
def photos(tmp_path):
    """Two scenes as files, of other sizes than the model's."""
    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for seed, path in enumerate(paths):
        Image.fromarray(World(size=100).scene(seed, "fox", "snow").image).crop((0, 10, 100, 90)).save(path)
    return paths


def typed(*arguments):
    return [text for name, values in arguments for value in values for text in (f"--{name}", str(value))]


def test_two_photos_two_prompts_three_methods(photos, weights, tmp_path, capsys):
    code = main(
        ["explain", *map(str, photos), *typed(("model", ["planted-clip"]), ("target", TARGETS), ("method", METHODS)),
         "--option", f"weights={weights}", "-o", str(tmp_path / "out"), "--json"]
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert code == 0 and told["failed"] == [] and [record["image"] for record in told["images"]] == list(map(str, photos))
    model = hp.load("planted-clip")
    for record, path in zip(told["images"], photos, strict=True):
        alone = hp.explain(model, path, METHODS, target=[TARGETS], weights=weights)
        for one in record["explanations"]:
            found, expected = hp.Explanation.load(one["file"]), alone[one["method"]]
            assert found.target_names == [TARGETS] and [t["target"] for t in one["targets"]] == TARGETS
            torch.testing.assert_close(found.raw, expected.raw, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
            for target in one["targets"]:
                assert np.asarray(Image.open(target["picture"])).std() > 5  # somewhere it is marked
            if one["method"] != "legrad":
                assert found.contributions.shape == (1, 2, 4, 6, 65)
                total = found.contributions.flatten(2).sum(2) + found.residual
                torch.testing.assert_close(total, found.scores, rtol=1e-4, atol=1e-5)
                named = [[row[key] for key in ("image", "target", "place", "part")] for row in found.ledger]
                assert named == [[row[key] for key in ("image", "target", "place", "part")] for row in expected.ledger]
                amounts = [[row["amount"] for row in ex.ledger] for ex in (found, expected)]
                np.testing.assert_allclose(*amounts, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "a wolf"], "does not know 'wolf' in 'a wolf'"),
        (["--option", "weights=none.safetensors"], "none.safetensors"),
        (["--option", "layers=[7]", "--method", "legrad"], "from 0 to 3"),
        (["--model", "planted-cnn"], "vision transformer"),
        (["--option", "part=objects"], "Did you mean 'object'"),
    ],
)
def test_bad_usage_is_one_line(photos, tmp_path, capsys, arguments, said):
    given = ["--model", "planted-clip", "--method", "chili", "-o", str(tmp_path / "out"), *arguments]
    code = main(["explain", str(photos[0]), *given])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and said in err and len(err.splitlines()) == 1
