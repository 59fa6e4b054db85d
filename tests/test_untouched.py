"""Promise 1: the user's model is never touched. Everything is compared bit for bit, whatever happened in between."""

import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from snapshots import CLASSES, METHODS, Net, explained, image, seeded, untouched


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
        "hp.explain(net, torch.rand(2, 3, 13, 17), method=[row.name for row in hp.methods() if row.family != 'tokens'])\n"
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
@pytest.mark.parametrize("method", [name for name in METHODS if "model" in hp.methods()[name].needs])
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
