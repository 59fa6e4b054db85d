"""The user's model is never touched, however unusual it is."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from snapshots import CLASSES, METHODS, SIZE, Net, explained, image, seeded, untouched


class InPlaceAfter(Net):
    """DenseNet's habit: the features are overwritten right after the layer that made them."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.norm2(self.conv2(x))
        x = F.relu(x, inplace=True)
        return self.head(x.mean((-2, -1)))


class OutOfPlace(InPlaceAfter):
    """The same computation without overwriting anything."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return self.head(F.relu(x).mean((-2, -1)))


@pytest.mark.parametrize("layer", ["norm2", "conv2", "norm1", None])
@pytest.mark.parametrize("method", [row.name for row in hp.methods() if "layer" in row.needs])
def test_operations_in_place_after_the_layer(method: str, layer: str | None) -> None:
    net, x = seeded(InPlaceAfter).eval(), image()
    if method == "cam" and layer in ("conv2", "norm1"):
        with untouched(net), pytest.raises(hp.MethodError):
            explained(net, x, method, layer=layer)
        return
    with untouched(net):
        ex = explained(net, x, method, layer=layer)
    assert torch.equal(ex.raw, explained(seeded(OutOfPlace).eval(), x, method, layer=layer).raw)


def test_a_reused_module_means_its_last_run() -> None:
    """`act` runs after norm1 and after norm2; layer="act" is the second, exactly the features before the pooling."""
    net, x = seeded().eval(), image()
    with untouched(net):
        ex = explained(net, x, "gradcam", layer="act", target=3)
    leaf = net.features(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(net.head(leaf.mean((-2, -1)))[:, 3].sum(), leaf)
    expected = (gradient.mean((-2, -1), keepdim=True) * leaf).sum(1).relu()
    torch.testing.assert_close(ex.raw[:, 0], expected.detach())


class Counts(Net):
    """Keeps count in an attribute, a list, a dictionary and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.log, self.seen = 0, [], {"shapes": set()}
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(tuple(x.shape))
        self.seen["shapes"].add(x.shape[0])
        self.count += 1
        self.last = x
        return super().forward(x)


def test_state_that_forward_writes() -> None:
    net = seeded(Counts).eval()
    net(image(1))
    with untouched(net):
        explained(net, image(3), "scorecam")
    assert (net.calls, net.log, net.seen, int(net.count)) == (1, [(1, 3, *SIZE)], {"shapes": {1}}, 1)
    assert torch.equal(net.last, image(1))


def test_hooks_of_the_users_stay_and_work() -> None:
    net, seen = seeded().eval(), []
    handles = [
        net.conv2.register_forward_hook(lambda module, inputs, output: output * 2),
        net.conv1.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,)),
        net.register_full_backward_hook(lambda *_: seen.append("backward")),
        net.head.register_forward_hook(lambda m, a, k, o: None, with_kwargs=True),
    ]
    x = image()
    expected = net(x).detach()
    with untouched(net):
        ex = explained(net, x, "gradcam", target=1)
    assert torch.equal(ex.scores[:, 0], expected[:, 1])  # what hooks change is part of what the model computes
    assert torch.equal(net(x), expected)
    seen.clear()
    net(x.clone().requires_grad_()).sum().backward()
    assert seen == ["backward"]
    for handle in handles:
        handle.remove()
    assert not torch.equal(net(x), expected)
    assert not net.conv2._forward_hooks and not net.conv1._forward_pre_hooks


class Holds(Net):
    """Holds what cannot be copied, and functions that remember the module they belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.squash = lambda x: x * 1.5
        self.first_half = lambda x: self.act(self.norm1(self.conv1(x)))  # the closure holds the user's module
        self.second_half = functools.partial(Holds._second, self)
        self.pool = self._pool

    def _second(self, x: Tensor) -> Tensor:
        return self.act(self.norm2(self.conv2(x)))

    def _pool(self, x: Tensor) -> Tensor:
        return self.drop(x.mean((-2, -1)))

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.head(self.squash(self.pool(self.second_half(self.first_half(x)))))


@pytest.mark.parametrize("method", ["gradcam", "ablationcam", "gradient"])
def test_locks_lambdas_partials_and_bound_methods(method: str) -> None:
    """In train mode, a closure that still led to the user's module would move its statistics and drop units out."""
    net, x = seeded(Holds).train(), image()
    with untouched(net):
        ex = explained(net, x, method, target=2)
    expected = explained(seeded(Holds).eval(), x, method, target=2)
    assert torch.equal(ex.raw, expected.raw) and torch.equal(ex.scores, expected.scores)


class Patched(Net):
    """A forward that was replaced on the instance, as wrappers and offloaders do."""

    def __init__(self) -> None:
        super().__init__()
        inner = self.forward
        self.forward = lambda x: inner(x) * 2


def test_a_forward_replaced_on_the_instance() -> None:
    net, x = seeded(Patched).train(), image()
    with untouched(net):
        ex = explained(net, x, target=0)
    assert torch.equal(ex.scores[:, 0], 2 * seeded().eval()(x)[:, 0])


class OwnNoise(Net):
    """Draws from a generator of its own, which must not advance."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)
        self.numpy = np.random.default_rng(5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(CLASSES, generator=self.generator) + self.numpy.normal()


def test_a_generator_inside_the_model_does_not_advance() -> None:
    net = seeded(OwnNoise).eval()
    before = net.generator.get_state(), net.numpy.bit_generator.state
    explained(net, image())
    assert torch.equal(net.generator.get_state(), before[0]) and net.numpy.bit_generator.state == before[1]


@pytest.mark.parametrize("how", ["in place", "as a wrapper"])
def test_a_compiled_model_is_explained_through_the_original(how: str) -> None:
    """module.compile() leaves a call on the instance that is bound to the original; a shadow must not inherit it."""
    net, x, runs = seeded().train(), image(), []

    def backend(graph: Any, _inputs: Any) -> Any:
        return lambda *args: runs.append(1) or graph.forward(*args)

    if how == "in place":
        net.compile(backend=backend)
        compiled = net
    else:
        compiled = torch.compile(net, backend=backend)
    with untouched(net):
        ex = explained(compiled, x, target=1)
    assert not runs and torch.equal(ex.scores[:, 0], seeded().eval()(x)[:, 1])
    compiled(x)
    assert runs  # and it is still compiled


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("kind", ["old", "new", "spectral"])
def test_reparametrised_weights(kind: str) -> None:
    def build() -> nn.Module:
        net = Net()
        wrap = {
            "old": torch.nn.utils.weight_norm,
            "new": torch.nn.utils.parametrizations.weight_norm,
            "spectral": torch.nn.utils.spectral_norm,
        }[kind]
        wrap(net.conv2), wrap(net.head)
        return net

    net, x = seeded(build).train(), image()
    net(x)  # leaves non-leaf weights behind, which deepcopy refuses
    reference = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with untouched(net):
        ex = explained(net, x, target=1)
        explained(net, x, "gradient")
    assert all(torch.equal(tensor, reference[name]) for name, tensor in net.state_dict().items())
    net.eval()
    torch.testing.assert_close(ex.scores[:, 0], net(x).detach()[:, 1])


class Returns(Net):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(super().forward(x))


@pytest.mark.parametrize(
    "form",
    [
        lambda s: (s, s * 0),
        lambda s: [s, None],
        lambda s: {"logits": s, "aux": s * 0},
        lambda s: {"aux": None, "out": s},
    ],
    ids=["tuple", "list", "dict", "segmentation dict"],
)
@pytest.mark.parametrize("method", [name for name in METHODS if "model" in hp.methods()[name].needs])
def test_outputs_that_are_no_plain_tensor(method: str, form: Callable[[Tensor], Any]) -> None:
    net, x = seeded(functools.partial(Returns, form)).train(), image()
    with untouched(net):
        ex = explained(net, x, method)
    assert torch.equal(ex.raw, explained(seeded().eval(), x, method).raw)


class Tied(Net):
    """Two names for one weight, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3.weight = self.conv2.weight
        self.again = self.conv2
        self.head = nn.Linear(6, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        return self.act(self.norm2(self.again(self.conv3(self.conv2(x)))))


def test_tied_weights_stay_tied() -> None:
    net, x = seeded(Tied).train(), image()
    with untouched(net):
        ex = explained(net, x, target=1)
    assert net.conv3.weight is net.conv2.weight and net.again is net.conv2
    assert torch.equal(ex.scores[:, 0], net.eval()(x)[:, 1])


class Unregistered(Net):
    """A layer in a plain list: neither .eval() nor .parameters() reaches it, yet forward uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = layer(x)
        return super().forward(x)


def test_layers_that_were_never_registered() -> None:
    net, x = seeded(Unregistered).eval(), image()
    with untouched(net), untouched(net.hidden[0]), untouched(net.hidden[1]):
        ex = explained(net, x, "gradient", target=1)
    assert torch.equal(ex.scores[:, 0], net(x)[:, 1])


def test_weights_are_shared_with_the_shadow_not_copied() -> None:
    """A weight that changes between two calls changes the explanation: nothing stale is kept."""
    net, x = seeded().eval(), image()
    model = hp.wrap(net)
    first = explained(model, x, "gradcam", target=1)
    with torch.no_grad():
        net.head.weight.mul_(-1)
    second = explained(model, x, "gradcam", target=1)
    assert torch.equal(second.raw, explained(net, x, "gradcam", target=1).raw)
    assert not torch.equal(first.raw, second.raw)


def test_the_input_is_not_touched_either() -> None:
    x = image()
    leaf = x.clone().requires_grad_()
    version = leaf._version
    for method in METHODS:
        explained(seeded().eval(), leaf, method)
    assert torch.equal(leaf, x) and leaf.grad is None and leaf._version == version and leaf.requires_grad
