"""What every token method promises of a vision transformer: it is left alone, and bad weights are said."""

import threading

import pytest
import torch
from torch import nn

import heatproof as hp
from snapshots import untouched
from tiny import GapNet, TinyViT, images, seeded

TOKENS = [row.name for row in hp.methods() if row.family == "tokens"]
every_token_method = pytest.mark.parametrize("method", TOKENS)


def test_there_are_some():
    assert {"legrad", "rollout", "attention", "textspan", "chili"} <= set(TOKENS)


@every_token_method
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_model_is_left_as_it_was(method, training):
    net = seeded(TinyViT).train(training)
    net.blocks[0].eval()  # a mixture of modes must come back as a mixture
    net.head.weight.requires_grad_(False)
    net(images(2)).sum().backward()  # .grad buffers of the user's
    with untouched(net):
        ex = hp.explain(net, images(2), method=method, target=[[0, 1]] * 2)
    assert torch.isfinite(ex.maps).all()


@every_token_method
def test_train_mode_is_explained_as_eval_mode(method):
    first, second = (hp.explain(seeded(TinyViT).train(mode), images(1), method=method) for mode in (True, False))
    assert torch.equal(first.raw, second.raw) and torch.equal(first.scores, second.scores)


@every_token_method
def test_the_input_and_the_global_generator_are_left_alone(method):
    x = images(1).requires_grad_()
    before, version, state = x.detach().clone(), x._version, torch.get_rng_state()
    hp.explain(seeded(TinyViT), x, method=method)
    assert torch.equal(x, before) and x._version == version and x.grad is None
    assert torch.equal(torch.get_rng_state(), state)


class Stumbling(nn.Module):
    """Raises in the given call of its forward."""

    def __init__(self, inner: nn.Module, call: int) -> None:
        super().__init__()
        self.inner, self.calls, self.call = inner, [0], call

    def forward(self, x):
        self.calls[0] += 1
        if self.calls[0] == self.call:
            raise RuntimeError("stumbled")
        return self.inner(x)


@every_token_method
def test_after_an_exception_the_model_is_as_before(method):
    net = seeded(TinyViT)
    net.norm = Stumbling(net.norm, 1)
    with untouched(net.blocks), pytest.raises(hp.ModelError, match=r"RuntimeError.*stumbled"):
        hp.explain(net, images(1), method=method)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


@every_token_method
def test_two_threads_explain_one_module(method):
    net, x = seeded(TinyViT), images(2)
    expected = [hp.explain(net, x, method=method, target=t).raw for t in range(2)]
    found = [None, None]

    def work(t):
        found[t] = [hp.explain(net, x, method=method, target=t).raw for _ in range(4)]

    threads = [threading.Thread(target=work, args=(t,)) for t in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, expected[t]) for t in range(2) for one in found[t])


@every_token_method
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_nan(method, value):
    net = seeded(TinyViT)
    net.head.weight.data[:] = value
    with pytest.raises(hp.ModelError, match=r"NaN or infinite.*weights"):
        hp.explain(net, images(1), method=method)


@every_token_method
def test_half_precision(method):
    net = seeded(TinyViT)
    exact = hp.explain(net, images(2), method=method, target=1).maps
    half = hp.explain(seeded(TinyViT).bfloat16(), images(2), method=method, target=1).maps
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    assert torch.corrcoef(torch.stack([exact.flatten(), half.flatten()]))[0, 1] > 0.9


@every_token_method
def test_a_network_without_attention_is_told_what_fits(method):
    with pytest.raises(hp.MethodError, match="vision transformer") as caught:
        hp.explain(seeded(GapNet), images(1), method=method)
    assert any(other in str(caught.value) for other in ("gradcam", "lrp"))
