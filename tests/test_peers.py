"""Against the peers: the same maps as pytorch-grad-cam and TorchCAM draw, before anything is resized or stretched.

Pearson ≥ 0.999 on real weights and photos and on ResNets. Where a peer computes something else than the paper, the
comment says what, and the comparison is made with the part of it that is right.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp

peer = pytest.importorskip("pytorch_grad_cam", reason="the peers come with the extra 'bench'")
torchcam = pytest.importorskip("torchcam.methods", reason="the peers come with the extra 'bench'")
torchvision = pytest.importorskip("torchvision")

from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

ENOUGH = 0.999


class Tiny(nn.Module):
    """Two convolutions with a nonlinearity after the layer, and a 5×7 grid: gradients vary in space."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU()
        self.above = nn.Conv2d(6, 5, 3, padding=1)
        self.head = nn.Linear(5 * 5 * 7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.above(self.act(self.norm(self.conv(x))))).flatten(1))


class Case:
    """A network, two or three images, a target each, and the layer that everybody reads."""

    def __init__(self, model: hp.Model, x: Tensor, layer: str) -> None:
        self.model, self.net, self.x, self.name = model, model.module, x, layer
        self.targets = [int(t) for t in model.scores(x).argmax(1)]
        self.layer = dict(model.module.named_modules())[layer]

    def ours(self, method: str, **options: Any) -> np.ndarray:
        return hp.explain(self.model, self.x, method=method, target=self.targets, layer=self.name, **options).raw[:, 0].numpy()


def photos() -> list[Image.Image]:
    data = pytest.importorskip("skimage.data")
    return [Image.fromarray(getattr(data, name)()) for name in ("chelsea", "coffee", "astronaut")]


def lite() -> Case:
    model = hp.load("efficientnet-lite0")
    x = model.tensor(photos())
    return Case(model, x, "_blocks.15")


def resnet(name: str) -> Case:
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(num_classes=11).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: untrained statistics make all maps alike
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return Case(hp.wrap(net), torch.randn(2, 3, 96, 128), "layer4")


def tiny() -> Case:
    torch.manual_seed(1)
    net = Tiny().eval()
    nn.init.normal_(net.norm.bias, 0.3, 0.3)
    return Case(hp.wrap(net), torch.randn(3, 3, 9, 13), "act")


CASES: dict[str, Callable[[], Case]] = {
    "efficientnet-lite0": lite,
    "resnet18": lambda: resnet("resnet18"),
    "resnet50": lambda: resnet("resnet50"),
    "tiny": tiny,
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield CASES[request.param]()


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel().astype(np.float64), b.ravel().astype(np.float64))[0, 1])


def agree(ours: np.ndarray, theirs: np.ndarray, rectified: bool = True) -> None:
    """Each image by itself: the same shape, the same map up to a factor; where all is negative, both are empty."""
    theirs = np.maximum(theirs, 0) if rectified else theirs
    assert ours.shape == theirs.shape
    told = [n for n in range(len(ours)) if ours[n].std() > 0]
    assert told, "constant maps prove nothing"
    for n in range(len(ours)):
        if n in told:
            assert pearson(ours[n], theirs[n]) >= ENOUGH
        else:
            assert theirs[n].std() == 0


def grad_cam_image(
    case: Case, kind: type, net: nn.Module | None = None, layer: nn.Module | None = None, **options: Any
) -> np.ndarray:
    """pytorch-grad-cam's map before its ReLU, resizing and stretching, from the activations and gradients it captured."""
    net, layer = net or case.net, layer or case.layer
    targets = [ClassifierOutputTarget(t) for t in case.targets]
    with kind(model=net, target_layers=[layer]) as cam:
        for name, value in options.items():
            setattr(cam, name, value)
        outputs = cam.activations_and_grads(case.x)
        if cam.uses_gradients:
            net.zero_grad()
            sum(target(output) for target, output in zip(targets, outputs, strict=True)).backward()
        # of a module that runs several times (one ReLU used everywhere), the last run
        activations = cam.activations_and_grads.activations[-1].numpy()
        gradients = cam.activations_and_grads.gradients[-1].numpy() if cam.uses_gradients else None
        found = cam.get_cam_image(case.x, layer, targets, activations, gradients, False)
    net.zero_grad(set_to_none=True)
    return found


def torchcam_image(case: Case, kind: type, **options: Any) -> np.ndarray:
    """TorchCAM's map, unstretched; it comes at the layer's resolution."""
    with kind(case.net, case.layer, **options) as cam:
        scores = case.net(case.x)
        found = cam(case.targets, scores, normalized=False)[0].detach().numpy()
    case.net.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(
    ("method", "kind", "rectified"),
    [
        ("gradcam", peer.GradCAM, True),
        ("xgradcam", peer.XGradCAM, True),
        ("hirescam", peer.HiResCAM, False),
        ("layercam", peer.LayerCAM, True),
    ],
)
def test_pytorch_grad_cam(case: Case, method: str, kind: type, rectified: bool) -> None:
    agree(case.ours(method), grad_cam_image(case, kind), rectified)


@pytest.mark.parametrize(("method", "name"), [("gradcam", "GradCAM"), ("xgradcam", "XGradCAM"), ("layercam", "LayerCAM")])
def test_torchcam(case: Case, method: str, name: str) -> None:
    agree(case.ours(method), torchcam_image(case, getattr(torchcam, name)))


def test_cam_of_torchcam() -> None:
    case = resnet("resnet18")
    agree(case.ours("cam"), torchcam_image(case, torchcam.CAM, fc_layer="fc"), rectified=False)


@pytest.mark.parametrize(("method", "kind"), [("eigencam", peer.EigenCAM), ("eigengradcam", peer.EigenGradCAM)])
def test_eigen_methods_up_to_sign(case: Case, method: str, kind: type) -> None:
    for ours, theirs in zip(case.ours(method), grad_cam_image(case, kind), strict=True):
        assert abs(pearson(ours, theirs)) >= ENOUGH


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
def test_the_sign_agrees_with_the_mean_activation(case: Case, method: str) -> None:
    kept: list[Tensor] = []
    handle = case.layer.register_forward_hook(lambda m, i, o: kept.append(o.detach().clone()))
    with torch.no_grad():
        case.net(case.x)
    handle.remove()
    for ours, activation in zip(case.ours(method), kept[0], strict=True):
        assert pearson(ours, activation.mean(0).numpy()) >= 0


# Grad-CAM++. In the paper's α = g² / (2 g² + ΣA g³) the size of g² cancels, but pytorch-grad-cam adds 1e-6 to the
# denominator: gradients of 1e-3 and less (a mean over 7×7 divides by 49) are damped, and the weights turn into g³.
# TorchCAM divides a copy of α (indexing with a mask copies), so its α is g² itself; it cannot be compared.


class Exact(peer.GradCAMPlusPlus):
    """The peer without its constant: with c·g and A/c all terms grow by c² alike, and 1e-6 vanishes beside them."""

    def get_cam_weights(self, x: Any, layers: Any, targets: Any, activations: np.ndarray, grads: np.ndarray) -> np.ndarray:
        c = 1e8
        return super().get_cam_weights(x, layers, targets, activations.astype(float) / c, grads.astype(float) * c) / c


def test_grad_cam_plus_plus(case: Case) -> None:
    agree(case.ours("gradcam++"), grad_cam_image(case, Exact))


def test_what_the_peers_constant_does() -> None:
    """One channel, A = 1 and g = 1e-3 at four places: the weight is Σ g / (2 + g ΣA), of which the peer has two thirds."""
    activations, gradients = np.ones((1, 1, 2, 2)), np.full((1, 1, 2, 2), 1e-3)
    paper = 4 * 1e-3 / (2 + 1e-3 * 4)
    net = nn.Conv2d(1, 1, 1)
    weights = [
        kind(model=net, target_layers=[net]).get_cam_weights(None, None, None, activations, gradients).item()
        for kind in (Exact, peer.GradCAMPlusPlus)
    ]
    assert weights == pytest.approx([paper, paper * 2.004 / 3.004], rel=1e-6)


# Score-CAM. pytorch-grad-cam enlarges the channels with corners aligned (UpsamplingBilinear2d), which stretches masks
# outward by half a cell; everything else in both libraries, and in ours, aligns pixel areas. TorchCAM stretches the
# channels to [0, 1] before it enlarges them; the paper, pytorch-grad-cam and ours do it after.

FEW = {"efficientnet-lite0": "_blocks.0", "resnet18": "layer1", "tiny": "act"}
"""Layers with few channels, since each costs a forward per image."""


@pytest.fixture(scope="module", params=FEW)
def narrow(request: pytest.FixtureRequest) -> Iterator[Case]:
    found = CASES[request.param]()
    yield Case(found.model, found.x, FEW[request.param])


def test_score_cam(narrow: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = narrow.ours("scorecam")
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear", align_corners=False))
    with torch.no_grad():
        agree(ours, grad_cam_image(narrow, peer.ScoreCAM))


class StretchedAfter(torchcam.ScoreCAM):
    """TorchCAM with the channels enlarged first."""

    def _prepare_masked_inputs(self, activation: Tensor) -> Any:
        raw = F.interpolate(self.hook_a[0], self._input.shape[2:], mode="bilinear", align_corners=False)
        return super()._prepare_masked_inputs(self._normalize(raw, 2))


def test_score_cam_of_torchcam(narrow: Case) -> None:
    with torch.no_grad():
        agree(narrow.ours("scorecam"), torchcam_image(narrow, StretchedAfter))


# Ablation-CAM. On a layer with negative values, pytorch-grad-cam does not set a channel to zero, as the paper does,
# but to the minimum less 1e7, far outside of anything the layers above have seen. It divides by the score, ours by
# its size: for a negative score the peer's map has the opposite sign.


class Zero(peer.ablation_layer.AblationLayer):
    """The peer with the paper's ablation value."""

    def __call__(self, x: Tensor, **_: Any) -> Tensor:
        self.activations[torch.arange(len(self.activations)), torch.as_tensor(self.indices[: len(self.activations)])] = 0
        return self.activations


def test_ablation_cam(narrow: Case) -> None:
    with torch.no_grad():
        signs = narrow.model.scores(narrow.x).gather(1, torch.tensor(narrow.targets)[:, None]).sign()[..., None]
        theirs = grad_cam_image(narrow, peer.AblationCAM, ablation_layer=Zero()) * signs.numpy()
    agree(narrow.ours("ablationcam"), theirs)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "hirescam"])
def test_the_layer_that_is_found_by_itself(method: str) -> None:
    """Without layer=, on the photos: the same as naming what was found, and as the peer there."""
    found = lite()
    ex = hp.explain(found.model, found.x, method=method, target=found.targets)
    again = Case(found.model, found.x, ex.layer[0])
    kinds = {"gradcam": peer.GradCAM, "gradcam++": Exact, "layercam": peer.LayerCAM, "hirescam": peer.HiResCAM}
    agree(ex.raw[:, 0].numpy(), grad_cam_image(again, kinds[method]), method != "hirescam")


def test_the_photos_are_recognised() -> None:
    """Real weights with their own preprocessing: a cat and an espresso (ImageNet knows no astronauts)."""
    model = hp.load("efficientnet-lite0")
    top = [[model.labels[i] for i in row] for row in model.scores(photos()).topk(3).indices.tolist()]
    assert any("cat" in label or "tabby" in label for label in top[0]) and any("espresso" in label for label in top[1])
