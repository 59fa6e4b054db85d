"""LeGrad's own package as a peer: raw maps of its two layers, prompt by prompt.

`pip install --no-deps legrad-torch`, and OpenCV: its metadata asks for an open_clip from before 2024, which it does not need.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
import transformers_tiny as tiny

legrad = pytest.importorskip("legrad", reason="legrad-torch is not installed (pip install --no-deps legrad-torch)")
open_clip = pytest.importorskip("open_clip")

X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def pearson(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten().double(), other.flatten().double()]))[0, 1])


def peer(module: nn.Module, layers: int = -2):
    twin = copy.deepcopy(module)
    for m in twin.modules():
        if isinstance(m, nn.MultiheadAttention):
            m.batch_first = False  # it was written for blocks that keep tokens in front of the batch
    return legrad.LeWrapper(twin, layer_index=layers)


def prompted(module: nn.Module) -> hp.Model:
    return hp.wrap(module, prompts=tiny.PROMPTS, tokenizer=tiny.tokenizer)


def test_clip():
    module = tiny.lively(lambda: open_clip.CLIP(32, tiny.VISION | {"image_size": 64, "layers": 4}, tiny.TEXT))
    model = prompted(module)
    theirs = peer(module).compute_legrad(model.readout.classifier.T.contiguous(), image=X).detach()
    ours = hp.explain(model, X, method="legrad", target=[[0, 1, 2]], layers=[-2, -1])
    for t in range(3):
        assert pearson(theirs[0, t], ours.maps[0, t]) > 0.999999


@pytest.mark.parametrize("correction", [False, True])
def test_siglip(correction):
    module = tiny.open_clip_siglip((64, 64)).module
    model = prompted(module)
    ours = hp.explain(model, X, method="legrad", target=[[0, 1, 2]], layers=[-2, -1], correction=correction)
    for t in range(3):
        wrapper = peer(module)
        wrapper.empty_embedding = model.prompt_column("a photo of a")[:, None]  # else it downloads a tokenizer
        text = model.readout.classifier.T[t : t + 1]
        theirs = wrapper.compute_legrad(text, image=X, apply_correction=correction).detach()
        assert pearson(theirs, ours.maps[0, t]) > 0.999999


def test_coca_with_the_end_that_the_package_leaves_out():
    """Its score for CoCa has neither the last norm nor the division by the embedding's length; with them we agree."""
    module = tiny.open_clip_coca((64, 64)).module
    model = prompted(module)
    ours = hp.explain(model, X, method="legrad", target=[[0, 1, 2]], layers=[-1], correction=False)
    with torch.no_grad():
        embedding = nn.functional.normalize(module.encode_image(X), dim=-1)
    for t in range(3):
        wrapper = peer(module, -1)
        pool, ln_post = wrapper.visual.attn_pool, wrapper.visual.ln_post
        hooked, forward = pool.attn.forward, pool.forward

        def sequence_first(q, k, v, hooked=hooked, **options):
            output, weights = hooked(*(a.transpose(0, 1) for a in (q, k, v)), **options)
            return output.transpose(0, 1), weights

        pool.attn.forward = sequence_first
        wrapper.visual.ln_post = nn.Identity()
        pool.forward = lambda z, forward=forward, ln_post=ln_post: ln_post(forward(z))
        # the cosine's gradient is along what the text has across the embedding
        text = model.readout.classifier.T[t : t + 1]
        theirs = wrapper.compute_legrad(text - (text @ embedding.T) * embedding, image=X).detach()
        assert pearson(theirs, ours.maps[0, t]) > 0.999999
