"""The interventions against Captum, pytorch-grad-cam and Quantus, where those compute the same thing."""

import warnings

import numpy as np
import pytest
import torch

import heatproof as hp
import tiny
from heatproof import seeds
from heatproof.proof.curves import Deletion, Road
from heatproof.proof.faithfulness import Infidelity
from heatproof.proof.infill import Linear
from heatproof.proof.stability import MaxSensitivity
from heatproof.proof.subject import Subject

HEIGHT, WIDTH = tiny.SIZE


def net():
    return tiny.seeded(tiny.HeadNet).requires_grad_(False)


def subject(x=None) -> Subject:
    return Subject(hp.wrap(net()), tiny.images(2) if x is None else x, torch.tensor([[1], [4]]))


def random_maps() -> torch.Tensor:
    return torch.randn(2, 1, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))


def test_imputation_is_pytorch_grad_cams():
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    x = tiny.images(2)
    mask = torch.rand(2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[1, 4:20, 3:31] = True
    mask[0, :, :12] = True  # up to the border
    for one, hole in zip(x, mask, strict=True):
        theirs = road.NoisyLinearImputer(noise=0.0)(one, (~hole).float())
        ours = Linear(noise=0.0)(one[None], hole[None])[0]
        torch.testing.assert_close(ours, theirs.float(), atol=5e-3, rtol=0)


def test_road_is_pytorch_grad_cams():
    pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    asked, maps = subject(), random_maps()
    # they write the shares as what is kept below a percentile, and let the noise come from the global generator
    with torch.random.fork_rng():
        theirs = ROADCombined(percentiles=[20, 40, 60, 80])(
            asked.x, maps[:, 0, 0].numpy(), [ClassifierOutputSoftmaxTarget(1), ClassifierOutputSoftmaxTarget(4)], net()
        )
    ours = Road(fractions=(0.2, 0.4, 0.6, 0.8))(asked, maps).values[:, 0, 0]
    np.testing.assert_allclose(ours.numpy(), np.asarray(theirs), atol=2e-3)


def test_infidelity_is_captums():
    metrics = pytest.importorskip("captum.metrics")
    asked, maps = subject(), random_maps() / 50
    test = Infidelity(samples=12, side=6, scale=False)
    side, corners = test.corners(tiny.SIZE)
    masks = torch.zeros(12, HEIGHT, WIDTH)
    for mask, (top, left) in zip(masks, corners.tolist(), strict=True):
        mask[top : top + side, left : left + side] = 1

    def perturb(x):  # Captum repeats each image as often as there are samples
        removed = masks.repeat(len(x) // 12, 1, 1)[:, None]
        return removed.expand_as(x) / 3, x * (1 - removed)

    attributions = maps[:, 0].expand(-1, 3, -1, -1)
    theirs = metrics.infidelity(net(), perturb, asked.x, attributions, target=torch.tensor([1, 4]), n_perturb_samples=12)
    torch.testing.assert_close(test(asked, maps).values[:, 0, 0], theirs, rtol=1e-3, atol=1e-7)


def test_max_sensitivity_is_captums():
    metrics = pytest.importorskip("captum.metrics")
    asked, model = subject(), hp.wrap(net())

    def explain(x, rows):
        return hp.explain(model, x, method="gradient", target=asked.targets[rows].tolist()).maps

    def attribute(x):
        x = x[0] if isinstance(x, tuple) else x
        rows = torch.arange(2).repeat_interleave(len(x) // 2)
        return (explain(x, rows).repeat(1, 3, 1, 1),)

    def perturb(x):
        generator = seeds.generator(0)
        noise = [(torch.rand(3, HEIGHT, WIDTH, generator=generator) * 2 - 1) * 0.05 for _ in range(len(x) // 2)]
        return x + torch.stack(noise).repeat(2, 1, 1, 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = metrics.sensitivity_max(attribute, asked.x, perturb, n_perturb_samples=5)
    ours = MaxSensitivity(radius=0.05, samples=5)(asked, explain).values[:, 0, 0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_deletion_is_quantus_pixel_flipping():
    quantus = pytest.importorskip("quantus")
    x = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    asked, maps = subject(x), random_maps()
    metric = quantus.PixelFlipping(
        features_in_step=96, perturb_baseline=0.0, normalise=False, abs=False, return_auc_per_sample=False,
        disable_warnings=True, display_progressbar=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = metric(
            model=net(), x_batch=x.numpy(), y_batch=np.array([1, 4]), a_batch=maps[:, 0].numpy(), device="cpu", softmax=True
        )
    # each pixel counts three times there, once per channel
    ours = Deletion(steps=3 * HEIGHT * WIDTH // 96)(asked, maps).curves[:, 0, 0]
    np.testing.assert_allclose(ours[:, 1:].numpy(), np.asarray(theirs), atol=1e-5)
