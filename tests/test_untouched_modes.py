"""The user's model is never touched, in any gradient mode, precision and state."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import heatproof as hp
from snapshots import METHODS, explained, image, seeded, untouched

MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "enable_grad": torch.enable_grad}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_the_callers_gradient_mode_does_not_matter(method: str, mode: str) -> None:
    net, x = seeded().eval(), image()
    reference = explained(net, x, method)
    with MODES[mode]():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        inside = x * 1  # under inference_mode this is an inference tensor
        with untouched(net):
            ex = explained(net, inside, method)
        assert before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    assert torch.equal(ex.raw, reference.raw)
    assert not ex.maps.requires_grad and not ex.raw.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_weights_made_under_inference_mode(method: str) -> None:
    with torch.inference_mode():
        net = seeded().eval()
    x = image()
    reference = explained(seeded().eval(), x, method)
    for mode in (nullcontext, torch.inference_mode):
        with mode(), untouched(net):
            assert torch.equal(explained(net, x, method).raw, reference.raw)


@pytest.mark.parametrize("method", METHODS)
def test_under_autocast(method: str) -> None:
    net, x = seeded().eval(), image()
    exact = explained(net, x, method, **({"target": 1} if "model" in hp.methods()[method].needs else {}))
    with torch.autocast("cpu", dtype=torch.bfloat16), untouched(net):
        ex = explained(net, x, method, **({"target": 1} if "model" in hp.methods()[method].needs else {}))
    assert ex.maps.dtype == ex.raw.dtype == torch.float32 and torch.isfinite(ex.maps).all()
    if method not in ("scorecam", "ablationcam", "taylor", "gradient", "smoothgrad"):  # rounding decides more there
        assert correlation(ex.raw, exact.raw) > 0.97
    assert net.conv1.weight.dtype == torch.float32


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_other_precisions(method: str, dtype: torch.dtype) -> None:
    x = image()
    options = {"target": 2} if "model" in hp.methods()[method].needs else {}
    exact = explained(seeded().eval(), x, method, **options)
    net = seeded().eval().to(dtype)
    with untouched(net):
        ex = explained(net, x, method, **options)
        assert explained(net, x.to(dtype), method, **options).maps.shape == ex.maps.shape
    assert ex.maps.dtype == torch.float32 and torch.isfinite(ex.maps).all()
    if dtype == torch.float64:
        assert correlation(ex.raw, exact.raw) > 0.9999


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_model_is_explained_and_stays_frozen(method: str) -> None:
    net, x = seeded().eval().requires_grad_(False), image()
    with untouched(net):
        ex = explained(net, x, method)
    assert torch.equal(ex.raw, explained(seeded().eval(), x, method).raw)
