"""LeGrad against its definition: autograd's gradient at attention matrices that exist, on every library's transformers."""

import pytest
import torch
from torch import Tensor

import heatproof as hp
from transformers_tiny import CASES, PROMPTS, Materialised, block_outputs

every_case = pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)


def by_definition(case, x: Tensor, targets, classifier, layers, pooling: str = "mean") -> Tensor:
    """`(B, T, h, w)`: a loop over images, targets and layers."""
    for module in case.module.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    if hasattr(case.module, "set_attn_implementation"):
        case.module.set_attn_implementation("sdpa")
    maps = torch.zeros(len(x), len(targets[0]), *case.grid)
    for i in range(len(x)):
        weights, tokens = block_outputs(case, x[i : i + 1])
        for t, target in enumerate(targets[i]):
            for layer in layers:
                z = tokens[layer]
                if case.pooled:
                    with torch.enable_grad(), Materialised() as seen:
                        score = case.end(z, classifier)[0, target]
                    matrix = seen.weights[0]
                else:
                    matrix = weights[layer]
                    with torch.enable_grad():
                        pooled = z.mean(1) if pooling == "mean" else z[:, 0]
                        score = case.end(pooled, classifier)[0, target]
                (gradient,) = torch.autograd.grad(score, matrix, retain_graph=True)
                heat = gradient.clamp(min=0)[0].mean(0)
                heat = heat.sum(0) if case.pooled else heat.mean(0)
                maps[i, t] += heat[-case.grid[0] * case.grid[1] :].reshape(case.grid) / len(layers)
    return maps.detach()


@every_case
def test_the_closed_form_is_autograds(build):
    case = build()
    x, targets = case.images(2), [[0, 2], [1, 0]]
    model = case.model()
    ex = hp.explain(model, x, method="legrad", target=targets, correction=False if case.pooled else None)
    expected = by_definition(case, x, targets, getattr(model.readout, "classifier", None), range(len(case.blocks)))
    assert ex.raw.shape == (2, 2, *case.grid) and (expected > 0).any()
    torch.testing.assert_close(ex.raw, expected, rtol=2e-3, atol=2e-5 * float(expected.max()))


@every_case
def test_some_layers_and_the_class_token(build):
    case = build()
    x, model = case.images(1), case.model()
    classifier = getattr(model.readout, "classifier", None)
    ex = hp.explain(model, x, method="legrad", target=1, layers=[-1, 0], correction=False if case.pooled else None)
    expected = by_definition(case, x, [[1]], classifier, [0, 2 if len(case.blocks) == 3 else 1])
    torch.testing.assert_close(ex.raw, expected, rtol=2e-3, atol=2e-5 * float(expected.max()))
    assert ex.options["layers"] == [-1, 0] and ex.options["pooling"] == ("pooler" if case.pooled else "mean")
    if case.prefix and not case.pooled:
        ex = hp.explain(model, x, method="legrad", target=1, layers=[1], pooling="class")
        expected = by_definition(case, x, [[1]], classifier, [1], "class")
        torch.testing.assert_close(ex.raw, expected, rtol=2e-3, atol=2e-5 * float(expected.max()))


@pytest.mark.parametrize(
    "build", [case for case in CASES if case.__name__ in ("open_clip_siglip", "open_clip_coca", "hf_siglip")]
)
def test_the_correction_blanks_what_an_empty_prompt_marks(build):
    case = build()
    x, model = case.images(2), case.model()
    plain = hp.explain(model, x, method="legrad", target=[[0, 1]] * 2, correction=False).raw
    empty = hp.explain(model, x, method="legrad", target=["a photo of a"] * 2, correction=False).raw
    span = empty.amax((2, 3), keepdim=True) - empty.amin((2, 3), keepdim=True)
    common = (empty - empty.amin((2, 3), keepdim=True)) / span > 0.8
    ex = hp.explain(model, x, method="legrad", target=[[0, 1]] * 2)
    torch.testing.assert_close(ex.raw, plain.masked_fill(common, 0))
    assert ex.options["correction"] is True and common.any() and PROMPTS[0] == ex.target_names[0][0]
