"""Against the peers: Zennit's composites on VGG and ResNet, and LXT's AttnLRP on torchvision's vision transformer.

Same parameters, Pearson ≥ 0.999 over all input values. Where a peer defines something else, the comment says what.
"""

import copy
import importlib.util
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.lrp import Composite, Epsilon

models = pytest.importorskip("torchvision").models

ENOUGH = 0.999
TINY = 1e-6


def pearson(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1])


def calibrated(net: nn.Module, x: Tensor) -> nn.Module:
    """Batch norms with parameters and the statistics of `x`, as after training."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.2)
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        net(x)
    return net.eval()


def case(name: str, side: int = 64, **options) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = models.get_model(name, weights=None, num_classes=11, **options).eval()
        x = torch.randn(4, 3, side, side)
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.05)
        calibrated(net, x)
    return net, x[:2]


def zennit_relevance(net: nn.Module, x: Tensor, targets: list[int], composite) -> Tensor:
    """Relevance of the logit: what Zennit's modified gradient gives for a start of `f_c` at class `c`."""
    from zennit.attribution import Gradient

    net = copy.deepcopy(net)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    with Gradient(net, composite) as attributor:
        start = lambda out: out * nn.functional.one_hot(torch.tensor(targets), out.shape[1])  # noqa: E731
        return attributor(x.clone(), start)[1].detach()


@pytest.mark.parametrize("name", ["vgg11", "vgg16"])
def test_epsilon_gamma_box_on_vgg(name):
    composites = pytest.importorskip("zennit.composites", reason="the peers come with the extra 'bench'")
    net, x = case(name)
    low, high = torch.full_like(x[:1], -4.5), torch.full_like(x[:1], 4.5)
    theirs = zennit_relevance(net, x, [3, 7], composites.EpsilonGammaBox(low=low, high=high, epsilon=TINY, gamma=0.25))
    # Zennit's has ε on the last layer as on all linear ones; ours has LRP-0 there, which differs by the 1e-6
    ours = hp.explain(net, x, "lrp", target=[3, 7], composite="epsilon-gamma-box", gamma=0.25, epsilon=TINY, low=-4.5, high=4.5)
    for i in range(2):
        assert pearson(ours.raw[i, 0], theirs[i]) >= ENOUGH
    torch.testing.assert_close(ours.raw[:, 0].sum((1, 2, 3)), theirs.sum((1, 2, 3)), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("composite", ["epsilon-plus-flat", "epsilon-gamma-box"])
def test_composites_on_resnet(name, composite):
    composites = pytest.importorskip("zennit.composites", reason="the peers come with the extra 'bench'")
    from zennit.torchvision import ResNetCanonizer

    net, x = case(name)
    low, high = torch.full_like(x[:1], -4.5), torch.full_like(x[:1], 4.5)
    if composite == "epsilon-plus-flat":
        peer = composites.EpsilonPlusFlat(epsilon=TINY, canonizers=[ResNetCanonizer()])
    else:
        peer = composites.EpsilonGammaBox(low=low, high=high, epsilon=TINY, gamma=0.25, canonizers=[ResNetCanonizer()])
    theirs = zennit_relevance(net, x, [3, 7], peer)
    ours = hp.explain(net, x, "lrp", target=[3, 7], composite=composite, epsilon=TINY, gamma=0.25, low=-4.5, high=4.5)
    for i in range(2):
        assert pearson(ours.raw[i, 0], theirs[i]) >= ENOUGH


def vit() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = models.VisionTransformer(48, 8, 3, 4, 32, 64, num_classes=7).double().eval()
        nn.init.normal_(net.heads.head.weight, std=0.2)
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1 and name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
        return net, torch.randn(2, 3, 48, 48, dtype=torch.float64)


def gradient_times_input(forward: Callable[[Tensor], Tensor], x: Tensor, targets: list[int]) -> Tensor:
    x = x.clone().requires_grad_()
    scores = forward(x)
    scores.gather(1, torch.tensor(targets)[:, None]).sum().backward()
    return (x * x.grad).detach()


def lxt_rules():
    """LXT's rules alone: its package also imports language models, which newer versions of transformers break."""
    package = importlib.util.find_spec("lxt")
    if package is None:
        pytest.skip("the peers come with the extra 'bench'")
    place = Path(package.submodule_search_locations[0]) / "efficient" / "rules.py"
    spec = importlib.util.spec_from_file_location("lxt_rules", place)
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    return rules


def explicit_vit(net: nn.Module, x: Tensor, full: bool) -> Tensor:
    """torchvision's forward, spelt with LXT's functions: AttnLRP in full, or with queries and keys cut off (CP-LRP)."""
    rules = lxt_rules()

    def norm(layer: nn.LayerNorm, t: Tensor) -> Tensor:
        centred = t - t.mean(-1, keepdim=True)
        deviation = rules.stop_gradient((t.var(-1, correction=0, keepdim=True) + layer.eps).sqrt())
        return centred / deviation * layer.weight + layer.bias

    t = net.conv_proj(x).flatten(2).transpose(1, 2)
    t = torch.cat([net.class_token.expand(len(x), -1, -1), t], 1) + net.encoder.pos_embedding
    for block in net.encoder.layers:
        attention = block.self_attention
        heads, width = attention.num_heads, t.shape[-1]
        y = nn.functional.linear(norm(block.ln_1, t), attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = y.view(*y.shape[:2], 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        if full:
            weights = rules.divide_gradient(q @ k.transpose(-2, -1) / (width // heads) ** 0.5, 2).softmax(-1)
            y = rules.divide_gradient(weights @ v, 2)
        else:
            y = rules.stop_gradient((q @ k.transpose(-2, -1) / (width // heads) ** 0.5).softmax(-1)) @ v
        t = t + attention.out_proj(y.transpose(1, 2).flatten(2))
        y = block.mlp[0](norm(block.ln_2, t))
        t = t + block.mlp[3](rules.identity_rule_implicit(nn.functional.gelu, y))
    return net.heads(norm(net.encoder.ln, t)[:, 0])


@pytest.mark.parametrize("full", [True, False], ids=["AttnLRP", "CP-LRP inside"])
def test_attnlrp_on_torchvisions_vit(full):
    """LXT's own functions have no ε on linear layers in this form, so ours is set to none: the same to all digits."""
    net, x = vit()
    theirs = gradient_times_input(lambda t: explicit_vit(net, t, full), x, [2, 5])
    composite = Composite(Epsilon(0.0), Epsilon(0.0), products="uniform" if full else "signal")
    ours = hp.explain(net, x, "lrp", target=[2, 5], composite=composite)
    torch.testing.assert_close(ours.raw[:, 0], theirs, rtol=1e-5, atol=1e-8)
    named = hp.explain(net, x, "lrp", target=[2, 5], composite="attnlrp" if full else "epsilon")
    for i in range(2):
        assert pearson(named.raw[i, 0], theirs[i]) >= ENOUGH


PATCHED = """
import importlib.util, io, sys, types, torch
from pathlib import Path
for name in ("lxt.efficient", "lxt.efficient.models"):  # without what their __init__ files import besides
    package = types.ModuleType(name)
    home = Path(importlib.util.find_spec("lxt").submodule_search_locations[0])
    package.__path__ = [str(home.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = package
from lxt.efficient.models.vit_torch import cp_LRP
from torchvision.models import vision_transformer
for kind, patch in cp_LRP.items():
    patch(kind)
given = torch.load(io.BytesIO(sys.stdin.buffer.read()), weights_only=True)
net = vision_transformer.VisionTransformer(48, 8, 3, 4, 32, 64, num_classes=7).double().eval()
net.load_state_dict(given["state"])
x = given["x"].requires_grad_()
net(x).gather(1, torch.tensor([[2], [5]])).sum().backward()
out = io.BytesIO()
torch.save((x * x.grad).detach(), out)
sys.stdout.buffer.write(b"HERE" + out.getvalue())
"""


def test_lxts_patched_vision_transformer():
    """LXT's patch of torchvision cuts queries and keys ("CP-LRP inside"): weights constant, our `products="signal"`.

    The patch rewrites torchvision's classes and attention for the whole process, so it runs in a process of its own.
    """
    if importlib.util.find_spec("lxt") is None:
        pytest.skip("the peers come with the extra 'bench'")
    net, x = vit()
    given = io.BytesIO()
    torch.save({"state": net.state_dict(), "x": x}, given)
    ran = subprocess.run([sys.executable, "-c", PATCHED], input=given.getvalue(), capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    theirs = torch.load(io.BytesIO(ran.stdout.split(b"HERE", 1)[1]), weights_only=True)
    ours = hp.explain(net, x, "lrp", target=[2, 5], composite="epsilon")
    for i in range(2):
        assert pearson(ours.raw[i, 0], theirs[i]) >= ENOUGH
