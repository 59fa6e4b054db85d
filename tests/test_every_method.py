"""The contract: every registered method keeps every promise. A new row in the registry is tested here without a line."""

import json
import subprocess
import sys

import pytest
import torch

import heatproof as hp
from tiny import CLASSES, GapNet, HeadNet, TinyViT, images, seeded

ROWS = list(hp.methods())
CHEAP = {"steps": 8, "samples": 3}
every_method = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def net_for(row):
    """A network that the method fits."""
    return seeded(GapNet if "head" in row.needs else TinyViT if row.family == "tokens" else HeadNet)


def run(row, model, x, **more):
    options = {name: value for name, value in CHEAP.items() if name in row.options}
    return hp.explain(model, x, method=row.name, **(options | more))


@every_method
def test_shapes_types_and_provenance(row):
    net = net_for(row)
    ex = run(row, hp.wrap(net, labels=["ant", "bee", "cat", "dog", "eel"]), images(2), target=[["bee", 3], [0, "eel"]])
    assert ex.maps.shape == (2, 2, 24, 40) and ex.maps.dtype == torch.float32 and not ex.maps.requires_grad
    assert ex.raw.shape[:2] == (2, 2) and torch.isfinite(ex.raw).all() and torch.isfinite(ex.maps).all()
    assert ex.targets.tolist() == [[1, 3], [0, 4]] and ex.target_names == [["bee", "dog"], ["ant", "eel"]]
    with torch.no_grad():
        torch.testing.assert_close(ex.scores, net(images(2)).gather(1, ex.targets))
    assert ex.method == row.name and set(ex.options) == set(row.options) - {"layer"}
    assert ex.model_name == type(net).__name__ and ex.versions["torch"] == torch.__version__
    assert bool(ex.layer) == ("layer" in row.needs)
    assert ex.signed or (ex.maps >= 0).all()


@every_method
def test_same_seed_same_map_and_the_global_generator_is_left_alone(row):
    net, x = net_for(row), images(1)
    state = torch.get_rng_state()
    first, second = run(row, net, x), run(row, net, x)
    assert torch.equal(first.raw, second.raw) and torch.equal(first.maps, second.maps)
    assert torch.equal(torch.get_rng_state(), state)


@every_method
def test_batch_mates_and_other_targets_do_not_matter(row):
    net, x = net_for(row), images(3)
    together = run(row, net, x, target=[[0, 2], [1, 4], [3, 0]])
    for i in range(3):
        for t in range(2) if row.name != "random" else [0]:
            alone = run(row, net, x[i : i + 1], target=int(together.targets[i, t]))
            torch.testing.assert_close(together.maps[i, t], alone.maps[0, 0], rtol=1e-3, atol=1e-5)


@every_method
def test_together_with_others_it_draws_what_it_draws_alone(row):
    net, x = net_for(row), images(2)
    with_others = hp.explain(net, x, method=[row.name, "gradcam", "gradient"])
    assert list(with_others) == list(dict.fromkeys([row.name, "gradcam", "gradient"]))
    torch.testing.assert_close(with_others[row.name].raw, hp.explain(net, x, method=row.name).raw, rtol=1e-3, atol=1e-6)


@every_method
def test_what_decomposes_a_score_accounts_for_all_of_it(row):
    ex = run(row, net_for(row), images(2), target=[[0, 1], [2, 3]])
    if ex.residual is not None:
        parts = ex.raw if ex.contributions is None else ex.contributions
        torch.testing.assert_close(parts.flatten(2).sum(2) + ex.residual, ex.scores, rtol=1e-4, atol=1e-5)


@every_method
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_gradient_mode_of_the_caller(row, context):
    net = net_for(row)
    expected = run(row, net, images(1))
    with context():
        x = images(1)
        assert torch.equal(run(row, net, x).raw, expected.raw)


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_floating_type_of_the_model(row, dtype):
    ex = run(row, net_for(row).to(dtype), images(1))
    assert ex.maps.dtype == torch.float32 and torch.isfinite(ex.maps).all()
    if dtype == torch.float64 and ex.residual is not None:
        assert ex.raw.dtype == torch.float64


@every_method
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_image_gives_finite_maps_and_an_overlay(row, value):
    ex = run(row, net_for(row), torch.full((1, 3, 24, 40), value))
    assert torch.isfinite(ex.maps).all() and ex.overlay().size == (40, 24)


@every_method
def test_saved_and_loaded_it_is_the_same(row, tmp_path):
    ex = run(row, net_for(row), images(2))
    again = hp.Explanation.load(ex.save(tmp_path / "one.safetensors"))
    assert torch.equal(again.maps, ex.maps) and torch.equal(again.raw, ex.raw) and repr(again) == repr(ex)
    assert again.options == json.loads(json.dumps(ex.options)) and again.versions == ex.versions


@every_method
def test_transformers_and_other_input_sizes(row):
    if "head" in row.needs:
        with pytest.raises(hp.MethodError, match="needs one layer"):
            run(row, seeded(TinyViT), images(1))
        ex = run(row, seeded(GapNet), images(1, size=(33, 50)))
        assert ex.maps.shape == (1, 1, 33, 50)
    else:
        ex = run(row, seeded(TinyViT), images(2))
        assert ex.maps.shape == (2, 1, 24, 40) and torch.isfinite(ex.maps).all()


@every_method
def test_without_a_model_only_where_none_is_needed(row):
    x = images(1).sigmoid()
    if "model" in row.needs:
        with pytest.raises(hp.MethodError, match="needs a model"):
            hp.explain(None, x, method=row.name)
    else:
        ex = hp.explain(None, x, method=row.name)
        assert ex.maps.shape == (1, 1, 24, 40) and ex.scores is None and ex.targets is None and ex.model_name is None


@every_method
def test_unknown_options_list_the_known_ones(row):
    with pytest.raises(hp.MethodError, match="has no option 'stepz'"):
        hp.explain(net_for(row), images(1), method=row.name, stepz=1)


@every_method
def test_the_docstring_says_what_users_need(row):
    text = row.kind().__doc__
    assert row.summary.endswith(".") and "Returns:" in text and "`" in text
    assert all(f"{name}:" in text or name == "layer" for name in row.options)


@every_method
def test_real_weights_on_a_real_photo(row, photo):
    model, path = photo
    options = {name: value for name, value in {"steps": 8, "samples": 2}.items() if name in row.options}
    if row.name == "scorecam":
        options["layer"] = "_blocks.1"  # 24 channels; the last layer's 1280 take one forward each
    if row.family == "tokens":
        with pytest.raises(hp.MethodError, match="vision transformer"):
            hp.explain(model, path, method=row.name, **options)
        return
    ex = hp.explain(model, path, method=row.name, **options)
    assert ex.maps.shape == (1, 1, 224, 224) and ex.target_names in ([["tiger cat"]], [["tabby"]], [["Egyptian cat"]])
    assert ex.maps.std() > 0


@pytest.fixture(scope="module")
def photo():
    from pathlib import Path

    import skimage

    return hp.load("efficientnet-lite0"), Path(skimage.__file__).parent / "data" / "chelsea.png"


def test_the_registry_is_a_table():
    table = hp.methods()
    assert "gradcam" in table and table["gradcam"].family == "cam" and table["gradcam"]["paper"].startswith("Selvaraju")
    assert len(table) == len(table.names) == len(table.records()) and "gradcam++" in repr(table)
    assert json.loads(json.dumps(table.records(), default=str))[0]["name"] == table[0].name
    assert all(f"| `{name}` |" in table.markdown() for name in table.names)
    with pytest.raises(hp.MethodError, match="gradcam"):
        table["gradcan"]


def test_importing_does_not_import_torch_and_the_face_survives_submodule_imports():
    code = (
        "import sys, heatproof as hp; assert 'torch' not in sys.modules\n"
        "import heatproof.explain, heatproof.methods\n"
        "assert callable(hp.explain) and callable(hp.methods), (hp.explain, hp.methods)\n"
        "from heatproof.explain import explain; assert hp.explain is explain\n"
        "assert set(hp.__all__) <= set(dir(hp)); [getattr(hp, name) for name in hp.__all__]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_many_images_go_in_batches_and_keep_their_order(monkeypatch):
    monkeypatch.setattr("heatproof.models.batching._PIXELS", 4 * 24 * 40)
    net, x = seeded(HeadNet), images(11)
    sizes = []
    net.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
    ex = hp.explain(net, x, method="hirescam", target=list(range(5)) * 2 + [0])
    assert max(sizes) == 4 and ex.targets[:, 0].tolist() == [*range(5), *range(5), 0]
    for i in (0, 5, 10):
        torch.testing.assert_close(ex.raw[i], hp.explain(net, x[i], method="hirescam", target=i % CLASSES).raw[0])


def test_the_ledger_names_the_images_of_the_whole_call(monkeypatch):
    monkeypatch.setattr("heatproof.models.batching._PIXELS", 2 * 24 * 40)
    ex = hp.explain(seeded(HeadNet), images(5), method="lrp", target=[[0, 1]] * 5, ledger=True)
    for i in range(5):
        for t in range(2):
            rows = [row for row in ex.ledger if (row["image"], row["target"]) == (i, t)]
            absorbed = sum(row[column] for row in rows for column in ("bias", "epsilon", "norm", "softmax"))
            assert absorbed == pytest.approx(float(ex.residual[i, t]), abs=1e-5)


def test_a_scan_path_comes_with_the_map_and_survives_saving(tmp_path):
    from heatproof.bottom_up.scanpath import scanpath

    x = images(2, size=(64, 96)).sigmoid()
    ex = hp.explain(None, x, method="itti", scanpath=True)
    positions, times = scanpath(ex.raw[:, 0])
    assert ex.scanpath.shape == (2, 10, 3) and torch.equal(ex.scanpath[..., :2], positions)
    assert torch.equal(ex.scanpath[..., 2], times) and (times.diff(dim=1) > 0).all()
    assert torch.equal(hp.Explanation.load(ex.save(tmp_path / "one.safetensors")).scanpath, ex.scanpath)
    assert hp.explain(None, x, method="itti").scanpath is None
