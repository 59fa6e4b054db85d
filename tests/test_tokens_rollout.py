"""Rollout and raw attention against products of whole matrices."""

import pytest
import torch

import heatproof as hp
from transformers_tiny import CASES, Materialised, block_outputs, timm_mean


@pytest.mark.parametrize("build", [case for case in CASES if "by_hand" not in case.__name__], ids=lambda build: build.__name__)
def test_the_row_that_reads_of_the_product_of_all_matrices(build):
    case = build()
    x, model = case.images(2), case.model()
    found = hp.explain(model, x, method=["rollout", "attention"], target=[[0, 1]] * 2)
    only = hp.explain(model, x, method=["rollout", "attention"], target=0, layers=[0, -1])
    classifier = getattr(model.readout, "classifier", None)
    for i in range(2):
        weights, tokens = block_outputs(case, x[i : i + 1])
        matrices = [a.detach()[0].mean(0) for a in weights[: len(case.blocks)]]
        count = len(matrices[0])
        reader = torch.zeros(count)
        reader[list(case.reads)] = 1 / len(case.reads)
        if case.pooled:
            with Materialised() as seen:
                case.end(_normed(case, tokens[-1].detach()), classifier)
            read = seen.weights[0].detach()[0, :, 0].mean(0)
            reader = torch.cat([torch.zeros(count - len(read)), read])  # a pooler may leave registers out
        total, short = torch.eye(count), torch.eye(count)
        for number, matrix in enumerate(matrices):
            step = 0.5 * matrix + 0.5 * torch.eye(count)
            total = step @ total
            short = step @ short if number in (0, len(matrices) - 1) else short
        grid = lambda row: row[case.prefix :].reshape(case.grid)  # noqa: E731
        for ex, row in (
            (found["rollout"], reader @ total),
            (only["rollout"], reader @ short),
            (found["attention"], reader if case.pooled else reader @ matrices[-1]),
            (only["attention"], reader @ (matrices[0] + matrices[-1]) / 2),
        ):
            torch.testing.assert_close(ex.raw[i, 0], grid(row), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(ex.raw[i, -1], ex.raw[i, 0])


def _normed(case, tokens):
    """What the pooler really gets: in SigLIP there is a norm in front of it."""
    for module in case.module.modules():
        if hasattr(module, "attn_pool") and isinstance(getattr(module, "norm", None), torch.nn.LayerNorm):
            return module.norm(tokens)
        if hasattr(module, "post_layernorm") and case.pooled:
            return module.post_layernorm(tokens)
    return tokens


def test_what_is_read_is_asked_again_once_the_head_is_trained():
    """A head of zeros reads nothing, and one that averages patches does not begin at a register."""
    case = timm_mean()
    x, head = case.images(1), case.module.head
    expected = hp.explain(case.module, x, "rollout").raw
    trained = head.weight.detach().clone()
    fresh = timm_mean()
    fresh.module.head.weight.data.zero_()
    hp.explain(fresh.module, x, "rollout")
    fresh.module.head.weight.data.copy_(trained)
    torch.testing.assert_close(hp.explain(fresh.module, x, "rollout").raw, expected)
