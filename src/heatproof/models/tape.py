"""One batch in front of one model: what the forward leaves, and what methods may ask of it afterwards.

Everything is computed at most once, on a shadow of the user's model, whichever methods ask for it and however often.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from heatproof.errors import HeatproofError, ModelError
from heatproof.models.batching import batch_limit, in_batches
from heatproof.models.preprocess import Preprocess
from heatproof.models.shadow import shadow
from heatproof.models.sites import Site

Readout = Callable[[nn.Module, Tensor], Tensor]


@contextmanager
def recording(gradients: bool) -> Iterator[None]:
    """Record a graph or not, whatever `no_grad` or `inference_mode` the caller is in."""
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        yield


@dataclass(frozen=True)
class Head:
    """The last linear layer that ran: its weight, what went in and what came out."""

    weight: Tensor
    input: Tensor
    output: Tensor


class Tape:
    """What one forward of `x` left behind.

    Args:
        module: the user's module; only its shadow is run.
        readout: from the shadow and a batch to scores `(B, C)`.
        preprocess: how images entered, to get pixels back.
        x: `(B, 3, H, W)`.
        sites: layers whose activations are kept, in any order.
        layer_gradients: whether scores will be differentiated with respect to the sites.
        input_gradient: whether scores will be differentiated with respect to `x`.
        head: whether to keep what the last linear layer saw.
        watch: called with this tape to run the forward itself; it returns the scores, or None to leave it.
        resolve: from the scores of some images, and which of the batch they are, to the targets `(b, T)`: for a `watch`
            that is done with an image's targets before the next one has scores.
        prompt: from a text to the column of the classifier that it is, `(d,)`; None where there is no text encoder.
    """

    def __init__(
        self,
        module: nn.Module,
        readout: Readout,
        preprocess: Preprocess,
        x: Float[Tensor, "batch 3 height width"],
        sites: Sequence[Site] = (),
        *,
        layer_gradients: bool = False,
        input_gradient: bool = False,
        head: bool = False,
        watch: Callable[["Tape"], Tensor | None] | None = None,
        resolve: Callable[[Tensor, slice], Tensor] | None = None,
        prompt: Callable[[str], Tensor] | None = None,
    ) -> None:
        self.module, self.readout, self.preprocess, self.sites = shadow(module), readout, preprocess, tuple(sites)
        self.source, self.prompt = module, prompt  # the user's module is never run: what is remembered of it hangs on it
        self.head: Head | None = None
        self.watched: Any = None
        self.attention: Any = None
        self.decomposition: Any = None
        self.resolve = resolve
        self._outputs: dict[str, Tensor] = {}
        self._targets: Tensor | None = None
        with recording(layer_gradients or input_gradient):
            # an inference tensor can never enter a graph, a clone of it can
            self.x = (x.clone() if x.is_inference() else x.detach()).to(*placement(self.module))
            if input_gradient:
                self.x.requires_grad_()
            watched = watch(self) if watch else None
            self._scores = self._forward(layer_gradients, head) if watched is None else watched
        self.scores: Float[Tensor, "batch classes"] = self._scores.detach()
        check_finite(self.scores, range(len(self.scores)))

    def _forward(self, layer_gradients: bool, head: bool) -> Tensor:
        modules = dict(self.module.named_modules())
        handles = [modules[s.name].register_forward_hook(self._keep(s, layer_gradients)) for s in self.sites]
        if head:
            handles += [m.register_forward_hook(self._keep_head) for m in modules.values() if is_linear(m)]
        try:
            return run(self.readout, self.module, self.x.clone())  # a network may write into its input
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, site: Site, layer_gradients: bool) -> Callable[..., Any]:
        def keep(tensor: Tensor) -> Tensor:
            if layer_gradients and tensor.requires_grad:
                tensor = tensor.view_as(tensor)  # a node of its own: what used the tensor before this layer is not counted
            elif layer_gradients:
                tensor = tensor.detach().requires_grad_()  # the graph starts here: no layer below is recorded
            self._outputs[site.name] = tensor
            return tensor.clone()  # what follows may write in place, so it gets a copy of its own

        return on_run(site.run, keep)

    def _keep_head(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.head = Head(module.weight.detach(), inputs[0].detach(), output.detach())

    def aim(self, targets: Int[Tensor, "batch targets"]) -> None:
        """Say which scores are explained."""
        self._targets = targets.to(self.scores.device)

    @property
    def targets(self) -> Int[Tensor, "batch targets"]:
        """Indices of the explained scores."""
        assert self._targets is not None, "aim() comes first"
        return self._targets

    @property
    def target_scores(self) -> Float[Tensor, "batch targets"]:
        """The explained scores."""
        return self.scores.gather(1, self.targets)

    @property
    def size(self) -> tuple[int, int]:
        """`(H, W)` of the input."""
        return self.x.shape[-2], self.x.shape[-1]

    @cached_property
    def pixels(self) -> Float[Tensor, "batch 3 height width"]:
        """The input as pixels in [0, 1]."""
        return self.preprocess.pixels(self.x)

    @cached_property
    def activations(self) -> list[Float[Tensor, "batch channels height width"]]:
        """Feature maps of each site, in float32 or better."""
        return [at_least_float32(site.to_map(self._outputs[site.name].detach())) for site in self.sites]

    @cached_property
    def _gradients(self) -> tuple[Tensor, ...]:
        inputs = [self._outputs[site.name] for site in self.sites if self._outputs[site.name].requires_grad]
        inputs += [self.x] if self.x.requires_grad else []
        with recording(True):  # the sums of scores join the graph, whatever mode the caller is in by now
            return target_gradients(self._scores, self.targets, inputs)

    @cached_property
    def gradients(self) -> list[Float[Tensor, "batch targets channels height width"]]:
        """Gradient of each target's score with respect to each site's feature maps."""
        found = []
        for site, gradient in zip(self.sites, self._gradients, strict=False):
            found.append(at_least_float32(torch.stack([site.to_map(one) for one in gradient], 1)))
        return found

    @cached_property
    def input_gradient(self) -> Float[Tensor, "batch targets 3 height width"]:
        """Gradient of each target's score with respect to the input."""
        return at_least_float32(self._gradients[-1].transpose(0, 1))

    def scores_of(self, x: Float[Tensor, "many 3 height width"]) -> Float[Tensor, "many classes"]:
        """Scores of other inputs to the same model, without a graph; the caller keeps batches within the limit."""
        with recording(False):
            return run(self.readout, self.module, x.clone())

    def gradients_at(
        self, x: Float[Tensor, "many 3 height width"], targets: Int[Tensor, "many targets"]
    ) -> tuple[Float[Tensor, "many targets"], Float[Tensor, "many targets 3 height width"]]:
        """Scores and input gradients at other inputs to the same model."""
        with recording(True):
            x = x.detach().requires_grad_()
            scores = run(self.readout, self.module, x.clone())
            (gradient,) = target_gradients(scores, targets, [x])
        return scores.detach().gather(1, targets), at_least_float32(gradient.transpose(0, 1))

    def limit(self, batch_size: int | None) -> int:
        """Images per forward in a sampling method."""
        return batch_limit(*self.size, batch_size)

    def in_batches(self, count: int, batch_size: int | None, compute: Callable[[slice], Tensor]) -> Tensor:
        """`compute` over `count` rows within the batch limit."""
        return in_batches(count, self.limit(batch_size), compute)

    @contextmanager
    def edited(self, site: Site, factors: Float[Tensor, "copies channels"]) -> Iterator[None]:
        """Inside, the site hands on its channels multiplied by each row of factors."""

        hook = on_run(site.run, lambda tensor: site.scale_channels(tensor, factors.to(tensor)))
        handle = dict(self.module.named_modules())[site.name].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def on_run(run: int, edit: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """A forward hook that edits what a module hands on in its last run of each forward, the `run`-th."""
    count = 0

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal count
        count += 1
        if count < run:
            return output
        count = 0
        return replace_tensor(output, edit(as_tensor(output)))

    return hook


def target_gradients(scores: Tensor, targets: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradient of each target's score with respect to each input, stacked with the target first: `(T, *input.shape)`."""
    if not scores.requires_grad:
        raise ModelError(
            "the scores do not depend differentiably on the input or the layer (a detach(), argmax or numpy step inside the "
            "model cuts the graph); use scorecam or ablationcam, which need no gradient."
        )
    count = targets.shape[1]
    rows = []
    for t in range(count):
        # images do not see each other, so the sum over the batch leaves each image its own gradient
        total = scores.gather(1, targets[:, t : t + 1]).sum()
        try:
            found = torch.autograd.grad(total, inputs, retain_graph=t + 1 < count, allow_unused=True)
        except (HeatproofError, CheckpointError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # an in-place step over what the backward needs, or a backward of the user's own
            raise ModelError(
                f"the backward through the model raised {type(error).__name__}: {str(error).rstrip('.')}. Mend that, or use "
                "scorecam or ablationcam, which need no gradient."
            ) from error
        rows.append([torch.zeros_like(i) if g is None else g for g, i in zip(found, inputs, strict=True)])
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def run(readout: Readout, module: nn.Module, x: Tensor) -> Tensor:
    """Scores, or a `ModelError` that says what the model raised and on what."""
    try:
        return readout(module, x)
    except (HeatproofError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"the model raised {type(error).__name__} on an input of shape {tuple(x.shape)}: {str(error).rstrip('.')}. "
            "Check that it takes images of that size."
        ) from error


def check_finite(scores: Float[Tensor, "batch _"], images: Sequence[int]) -> None:
    """Say of which images the model makes no numbers.

    Args:
        scores: a row per image.
        images: what each is called.

    Raises:
        ModelError: NaN or infinite values.
    """
    wrong = [name for name, fine in zip(images, torch.isfinite(scores).all(1).tolist(), strict=True) if not fine]
    if wrong:
        raise ModelError(
            f"the model's scores are NaN or infinite for image(s) {wrong}; check its weights (a failed training, "
            "or half precision that overflowed) and the range of the input."
        )


def placement(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating type that the module's parameters (else its buffers) live in."""
    for tensor in chain(module.parameters(), module.buffers()):  # the first will nearly always do
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps features to scores linearly, position by position."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def as_tensor(output: Any) -> Tensor:
    """The first tensor of a layer's output."""
    if isinstance(output, Tensor):
        return output
    return output[0]


def replace_tensor(output: Any, new: Tensor) -> Any:
    """The layer's output with its first tensor replaced."""
    if isinstance(output, Tensor):
        return new
    if isinstance(output, tuple):
        return (new, *output[1:])
    first = next(iter(output.keys())) if hasattr(output, "keys") else 0
    output[first] = new
    return output
