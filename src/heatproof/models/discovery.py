"""Which layers of a network are maps, and which of them is the last one: asked of the network itself, once per input size."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.errors import ModelError
from heatproof.models.preprocess import RAW
from heatproof.models.shadow import shadow
from heatproof.models.sites import Site, proportional, read_shape
from heatproof.models.tape import Readout, Tape, as_tensor, is_linear, placement, recording, run

_NOT_FEATURES = ("pool", "dropout", "droppath", "stochasticdepth", "identity", "softmax", "permute")
_CANDIDATES = 12


@dataclass(frozen=True)
class Survey:
    """What one forward showed: every layer that is a map, in order of execution, and the one methods take by default."""

    sites: dict[str, Site]
    shapes: dict[str, tuple[int, ...]]
    default: Site | None


@dataclass(eq=False)
class _Seen:
    site: Site
    kind: str
    same_as_before: bool
    proportional: bool
    container: bool


def survey(module: nn.Module, readout: Readout, x: Tensor) -> Survey:
    """Run one image and read the shape of every layer's output.

    The default is the last layer with spatial features that the top score still depends on at more than the prefix
    tokens. After a vision transformer's last attention, only the class token reaches the score, so there it is the
    norm in front of that attention; in a network with global pooling it is what enters the pooling.
    """
    seen, shapes, head = _watch(module, readout, x[:1])
    sites = {item.site.name: item.site for item in seen}
    candidates = _candidates(seen)
    default = None
    if candidates:
        default = _last_that_matters(_awake(module, head), readout, x[:1], candidates)
    return Survey(sites, shapes, default)


def _watch(module: nn.Module, readout: Readout, x: Tensor) -> tuple[list[_Seen], dict[str, tuple[int, ...]], str | None]:
    """Every map in order of execution, every shape, and the name of the last linear layer."""
    twin = shadow(module)
    seen: dict[str, _Seen] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    head: str | None = None
    runs: Counter[str] = Counter()
    grids: list[tuple[int, int]] = []
    size = (x.shape[-2], x.shape[-1])
    last: Tensor | None = None

    def hook_for(name: str) -> Any:
        def hook(layer: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal last, head
            head = name if is_linear(layer) else head
            try:
                tensor = as_tensor(output)
            except (KeyError, IndexError, TypeError):
                return
            if not isinstance(tensor, Tensor):
                return
            shapes[name] = tuple(tensor.shape)
            runs[name] += 1
            site = read_shape(name, tensor.shape, x.shape[0], size, reversed(grids))
            if site is not None:
                if site.kind == "bkhw" and isinstance(layer, nn.Conv2d):
                    grids.append((site.height, site.width))
                seen.pop(name, None)  # a module that runs twice stands where it ran last
                site = replace(site, run=runs[name])
                seen[name] = _Seen(
                    site,
                    kind=type(layer).__name__.lower(),
                    same_as_before=tensor is last,
                    proportional=proportional((site.height, site.width), size),
                    container=next(layer.children(), None) is not None,
                )
            last = tensor

        return hook

    # scripted and traced modules let nobody watch
    watched = [(name, m) for name, m in twin.named_modules() if name and not isinstance(m, torch.jit.ScriptModule)]
    handles = [m.register_forward_hook(hook_for(name)) for name, m in watched]
    try:
        with recording(False):
            run(readout, twin, x.clone().to(*placement(twin)))
    finally:
        for handle in handles:
            handle.remove()
    return list(seen.values()), shapes, head


def _candidates(seen: list[_Seen]) -> list[Site]:
    """Layers worth taking by default, in order of execution: one name per tensor.

    Of tokens, these are the norms, whose outputs a transformer's blocks read, and what whole blocks return after the
    last of them: what a network without a final norm averages. Projections inside a block are none: only part of the
    score passes through queries or values.
    """
    groups: list[list[_Seen]] = []
    for item in seen:
        if item.same_as_before and groups:
            groups[-1].append(item)
        else:
            groups.append([item])
    speakers = [_speaker(group) for group in groups]
    chosen = [item for item in speakers if item is not None]
    norms = [item for item in chosen if item.site.is_tokens and "norm" in item.kind]
    # beside tokens, a four-dimensional output of other proportions is queries, keys or attention, not an image
    images = [item for item in chosen if not item.site.is_tokens and (item.proportional or not norms)]
    if not norms and not images:
        return [item.site for item in chosen]
    after = chosen[chosen.index(norms[-1]) + 1 :] if norms else chosen
    blocks = [item for item in after if item.site.is_tokens and item.container]
    wanted = {id(item) for item in (*images, *norms, *blocks)}
    return [item.site for item in chosen if id(item) in wanted]


def _speaker(group: list[_Seen]) -> _Seen | None:
    """Of modules that returned the same tensor, the outermost that makes features: of tokens, the outermost norm."""
    features = [item for item in group if not any(word in item.kind for word in _NOT_FEATURES)]
    norms = [item for item in features if item.site.is_tokens and "norm" in item.kind]
    return min(norms or features, key=lambda item: item.site.name.count("."), default=None)


def _awake(module: nn.Module, head: str | None) -> nn.Module:
    """The module, or where its last linear layer is all zeros, as fresh transformers start, a shadow in which it is not."""
    layer = dict(module.named_modules()).get(head or "")
    if layer is None or bool(layer.weight.any()):
        return module

    def listen(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        axis = 1 if isinstance(layer, nn.Conv2d) else -1
        features = inputs[0].movedim(axis, -1)
        direction = torch.randn(features.shape[-1], generator=torch.Generator().manual_seed(0))
        return output + (features @ direction.to(features)).unsqueeze(axis)

    twin = shadow(module)
    dict(twin.named_modules())[head].register_forward_hook(listen)
    return twin


def _last_that_matters(module: nn.Module, readout: Readout, x: Tensor, candidates: list[Site]) -> Site:
    for stop in range(len(candidates), 0, -_CANDIDATES):
        some = candidates[max(0, stop - _CANDIDATES) : stop]
        try:
            tape = Tape(module, readout, RAW, x, some, layer_gradients=True)
            tape.aim(tape.scores.argmax(1, keepdim=True))
            gradients = tape.gradients
        except ModelError:
            break  # a model without gradients, or with NaN scores: the methods will say so themselves
        for site, gradient in zip(reversed(some), reversed(gradients), strict=True):
            if bool((gradient != 0).any() | torch.isnan(gradient).any()):
                return site
    return candidates[-1]
