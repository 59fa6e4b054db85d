"""Promise 1: the user's model is never touched. Everything is compared bit for bit, whatever happened in between."""

import functools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp

SIZE = (13, 17)
CLASSES = 5
METHODS = [row.name for row in hp.methods()]
CHEAP = {"smoothgrad": {"samples": 3}, "integrated-gradients": {"steps": 4}}


class Net(nn.Module):
    """Small, with everything that remembers or behaves by mode: batch norm, dropout, in-place and shared activations."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 7, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(7)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(7, classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        return self.act(self.norm2(self.conv2(x)))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.drop(self.features(x).mean((-2, -1))))


def seeded(kind: Callable[[], nn.Module] = Net, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = kind()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.bias, 0, 1)
    return net


def image(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def state_of(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    version = None if tensor.is_inference() else tensor._version  # counts every in-place write
    plain = tensor.detach().contiguous().view(-1).clone().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    grad = state_of(tensor.grad) if tensor.is_leaf else None
    return id(tensor), tensor.data_ptr(), version, tensor.requires_grad, tensor.dtype, tensor.shape, plain, grad


def snapshot(module: nn.Module) -> dict[Any, Any]:
    """Everything that can be asked of a module, by identity and by value."""
    found: dict[Any, Any] = {"global hooks": [len(hooks) for hooks in global_hooks()]}
    for name, child in module.named_modules(remove_duplicate=False):
        for key, value in vars(child).items():
            where = (name, key)
            if key in ("_parameters", "_buffers"):
                found |= {(*where, n): state_of(t) for n, t in value.items()}
            elif isinstance(value, Tensor):
                found[where] = state_of(value)
            elif isinstance(value, dict):  # hooks and children
                found[where] = [(k, id(v)) for k, v in value.items()]
            elif isinstance(value, list | set):
                found[where] = (id(value), [repr(item) for item in value])
            else:
                found[where] = (id(value), repr(value) if isinstance(value, str | int | float | bool | tuple) else None)
    return found


def global_hooks() -> list[dict]:
    names = [name for name in vars(torch.nn.modules.module) if name.startswith("_global_") and name.endswith("hooks")]
    assert len(names) > 4
    return [getattr(torch.nn.modules.module, name) for name in names]


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Inside, anything may be explained; afterwards everything is as before."""
    before = snapshot(module)
    yield
    after = snapshot(module)
    assert before.keys() == after.keys()
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, f"changed: {changed}"


def explained(net: Any, x: Tensor, method: str = "gradcam", **options: Any) -> hp.Explanation:
    return hp.explain(net, x, method=method, **CHEAP.get(method, {}), **options)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_the_model_as_it_was(method: str, training: bool) -> None:
    net = seeded().train(training)
    net.norm1.eval()  # a mixture of modes must come back as a mixture
    net.conv1.weight.requires_grad_(False)
    net(image(4)).sum().backward()  # .grad buffers of the user's
    probe = image(3, seed=7)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        reference = seeded_output(net, probe)
    with untouched(net):
        ex = explained(net, image(), method)
    assert torch.isfinite(ex.maps).all()
    torch.manual_seed(3)
    assert torch.equal(seeded_output(net, probe), reference)


def seeded_output(net: nn.Module, x: Tensor) -> Tensor:
    """The output in the model's own mode, batch-norm statistics put back afterwards."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with torch.no_grad():
        output = net(x)
        for name, buffer in net.named_buffers():
            buffer.copy_(buffers[name])
    return output


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_train_mode_is_explained_as_in_eval_mode(method: str) -> None:
    trained, evaluated = seeded().train(), seeded().eval()
    first, second = explained(trained, image(), method), explained(evaluated, image(), method)
    assert torch.equal(first.raw, second.raw)
    if first.scores is not None:
        assert torch.equal(first.scores, evaluated(image()).detach().max(1, keepdim=True).values)


@pytest.mark.parametrize("method", METHODS)
def test_random_generators_are_left_alone(method: str) -> None:
    net = seeded().train()
    torch.manual_seed(11), np.random.seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    explained(net, image(), method)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_pythons_random_is_left_alone() -> None:
    """In a process of its own: the type checker of the test suite draws from `random` to pick what it looks at."""
    code = (
        "import random, torch, heatproof as hp\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),"
        " torch.nn.Flatten(), torch.nn.Linear(4, 5))\n"
        "random.seed(11); before = random.getstate()\n"
        "hp.explain(net, torch.rand(2, 3, 13, 17), method=hp.methods().names)\n"
        "assert random.getstate() == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Raises(Net):
    """Fails in its n-th forward, in the middle: the first half has run, hooks are in place."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: Callable[[], None] = lambda: None

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        self.gate()
        return self.head(self.act(self.norm2(self.conv2(x))).mean((-2, -1)))


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("method", [row.name for row in hp.methods() if "model" in row.needs])
def test_an_exception_in_the_middle_of_forward(method: str, call: int) -> None:
    net = seeded(Raises).train()
    calls = [0]

    def gate() -> None:
        calls[0] += 1
        if calls[0] >= call:
            raise ValueError("the disk is on fire")

    net.gate = gate  # a function is shared with the shadow, so it counts all forwards
    x = image()
    with untouched(net):
        try:
            explained(net, x, method)
        except hp.ModelError as error:
            assert "ValueError" in str(error) and "the disk is on fire" in str(error)
            failed = True
        else:
            failed = False
    # the search for a layer forgives a second look that fails, as some networks have no gradients; nothing else does
    assert failed == (calls[0] >= call) or (call == 2 and "layer" in hp.methods()[method].needs)
    net.gate = lambda: None
    assert torch.isfinite(explained(net, x, method).maps).all()


def test_an_interrupt_leaves_no_trace_either() -> None:
    net = seeded(Raises).train()

    def gate() -> None:
        raise KeyboardInterrupt

    net.gate = gate
    with untouched(net), pytest.raises(KeyboardInterrupt):
        explained(net, image())


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("shared", [True, False], ids=["one Model", "one module"])
def test_threads_explain_one_module_at_once(threads: int, shared: bool) -> None:
    net = seeded().train()
    names = ["gradcam", "gradient", "layercam", "scorecam", "integrated-gradients", "eigencam", "ablationcam", "smoothgrad"]
    jobs = [(names[n], n % CLASSES, image(2, seed=n)) for n in range(threads)]
    serial = [explained(seeded(), x, name, target=target) for name, target, x in jobs]
    found: dict[int, list[hp.Explanation] | Exception] = {}
    model = hp.wrap(net) if shared else net
    together = threading.Barrier(threads)

    def work(n: int) -> None:
        name, target, x = jobs[n]
        try:
            together.wait(30)
            found[n] = [explained(model, x, name, target=target) for _ in range(5)]
        except Exception as error:
            found[n] = error

    with untouched(net):
        pool = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join(120)
    assert sorted(found) == list(range(threads))
    for n, several in found.items():
        assert not isinstance(several, Exception), several
        for ex in several:
            torch.testing.assert_close(ex.raw, serial[n].raw)
            assert torch.equal(ex.targets, serial[n].targets)


def test_a_backward_pass_that_waits_meanwhile_is_not_disturbed() -> None:
    """A graph holds the versions of the weights that it was made with; explaining must not write to any."""
    net, alone = seeded().train(), seeded().train()
    for module, explains in ((net, True), (alone, False)):
        torch.manual_seed(4)
        loss = module(image(4)).square().sum()
        if explains:
            for method in METHODS:
                explained(module, image(), method)
        loss.backward()
    for mine, expected in zip(net.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine.grad, expected.grad)


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
@pytest.mark.parametrize("method", [row.name for row in hp.methods() if "model" in row.needs])
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
