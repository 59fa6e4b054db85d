"""Nothing unaccounted for: relevance and residual add up to the score, on every family of networks, row by row."""

import pytest
import torch
from tiny import CLASSES, images, seeded
from torch import Tensor, nn

import heatproof as hp
from heatproof.lrp import Composite, Epsilon, Gamma

COLUMNS = ("bias", "epsilon", "norm", "softmax")
COMPOSITES = ("lrp0", "epsilon", "epsilon-gamma-box", "epsilon-plus-flat", "attnlrp")
EXACT = ("lrp0", "epsilon-gamma-box", "attnlrp")

# family: smallest member, side of the input
FAMILIES = {
    "alexnet": ("alexnet", 64),
    "convnext": ("convnext_tiny", 64),
    "densenet": ("densenet121", 64),
    "efficientnet": ("efficientnet_b0", 64),
    "efficientnetv2": ("efficientnet_v2_s", 64),
    "googlenet": ("googlenet", 64),
    "inception": ("inception_v3", 80),
    "maxvit": ("maxvit_t", 64),
    "mnasnet": ("mnasnet0_5", 64),
    "mobilenetv2": ("mobilenet_v2", 64),
    "mobilenetv3": ("mobilenet_v3_small", 64),
    "regnet": ("regnet_y_400mf", 64),
    "resnet": ("resnet18", 64),
    "resnext": ("resnext50_32x4d", 64),
    "shufflenetv2": ("shufflenet_v2_x0_5", 64),
    "squeezenet": ("squeezenet1_0", 64),
    "swin": ("swin_t", 64),
    "swin_v2": ("swin_v2_t", 64),
    "vgg": ("vgg11", 32),
    "vit": ("vit_b_32", 64),
    "wide_resnet": ("wide_resnet50_2", 64),
}


def family(name: str) -> tuple[nn.Module, Tensor]:
    """A network of the family as after training: batch norms know their data, no branch is switched off, biases count."""
    models = pytest.importorskip("torchvision").models
    member, side = FAMILIES[name]
    options: dict = {"num_classes": 7}
    if name == "vit":
        options |= {"image_size": side}
    if name in ("googlenet", "inception"):
        options |= {"init_weights": False, "aux_logits": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "maxvit":  # the member has 31 million weights at 224 pixels; the same blocks, smaller
            net = models.maxvit.MaxVit((side, side), 8, 4, [8, 16], [1, 1], 8, 0.0, num_classes=7)
        elif name in ("vgg", "alexnet"):
            net = models.get_model(member, weights=None, **options)
        else:
            net = models.get_model(member, weights=None, **options)
        x = torch.randn(3, 3, side, side)
        trained(net, x)
    return net, x[:2]


def trained(net: nn.Module, x: Tensor) -> None:
    """Give an untrained network what training would: biases, statistics of its data, branches and heads that matter."""
    net.eval()
    for name, parameter in net.named_parameters():
        if parameter.ndim == 1 and name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
        elif "layer_scale" in name:
            nn.init.uniform_(parameter, 0.3, 1.0)
        elif parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        net(x)
    net.eval()


def missing(ex: hp.Explanation) -> float:
    """The largest part of a score that is neither in the map nor in the residual."""
    total = ex.raw.double().flatten(2).sum(2) + ex.residual.double()
    return float(((total - ex.scores.double()).abs() / ex.scores.double().abs()).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_torchvision_family_adds_up(name):
    net, x = family(name)
    top = [[int(c)] for c in net(x).abs().argmax(1)]
    for composite in COMPOSITES:
        if composite not in EXACT:
            ex = hp.explain(net, x, "lrp", target=top, composite=composite)
            assert missing(ex) < 1e-3, composite
    net, x = net.double(), x.double()
    for composite in EXACT:
        ex = hp.explain(net, x, "lrp", target=top, composite=composite)
        assert ex.raw.dtype == torch.float64
        assert missing(ex) < 1e-8, composite
        assert ex.raw.abs().max() > 0 and torch.isfinite(ex.raw).all()
