"""A model whose layers forget what they learned, one by one: a copy, of which only what is forgotten takes memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heatproof import seeds
from heatproof.models.batching import batch_limit
from heatproof.models.model import Model
from heatproof.models.shadow import shadow
from heatproof.models.tape import placement, recording, run

_STATISTICS = {"running_mean": 0.0, "running_var": 1.0}


@dataclass(frozen=True, eq=False)
class Slot:
    """A parameter or a running statistic, and everywhere it is found: weights may be tied."""

    holders: tuple[tuple[nn.Module, str], ...]
    learned: Tensor


@dataclass(frozen=True, eq=False)
class Layer:
    """What is randomised at once: a module with an initialiser of its own, or a parameter that no initialiser knows."""

    name: str
    slots: tuple[Slot, ...]


Fresh = Sequence[Sequence[Tensor]]
"""New values for each slot of each layer."""


class Forgetful:
    """A copy of a model that shares its weights, and whose layers can be re-initialised and restored.

    The user's model is never touched: what is randomised are new tensors that take the place of views in a shadow.

    Args:
        model: what `load()` or `wrap()` returned.
        x: `(B, 3, H, W)` as it takes them; one forward of the first tells which layers there are, and in which order they
            run, and one of the others' what batch normalisations see.

    Attributes:
        model: the copy. What it computes follows `install`.
        layers: in the order in which the score's computation uses them last. Parameters that it does not use are not
            among them, and neither is what makes an image–text model's prompts.
    """

    def __init__(self, model: Model, x: Tensor) -> None:
        self.model = model.around(shadow(model.module))
        self._x = x.detach()[: batch_limit(*x.shape[-2:])].to(*placement(self.model.module))
        self.layers = self._find()

    def _run(self, count: int | None = None) -> None:
        with recording(False):
            run(self.model.readout, self.model.module, self._x[:count].clone())

    def _find(self) -> list[Layer]:
        module = self.model.module
        holders: dict[int, list[tuple[nn.Module, str]]] = {}
        values: dict[int, Tensor] = {}
        names = {id(child): name for name, child in module.named_modules()}
        for child in module.modules():
            for name, value in [*child._parameters.items(), *_statistics(child).items()]:
                if value is not None and value.is_floating_point():
                    holders.setdefault(id(value), []).append((child, name))
                    values[id(value)] = value
        watch = _Uses(values)
        with watch:
            self._run(1)
        found: dict[Any, tuple[str, list[Slot]]] = {}
        for key in watch.order:
            owner, own = holders[key][0]
            place = ".".join(part for part in (names[id(owner)], own) if part)
            # a module with an initialiser is one layer; it stands where the last of its parameters is used
            unit, name = (id(owner), names[id(owner)] or place) if _initialiser(owner) or _statistics(owner) else (key, place)
            slots = found.pop(unit, (name, []))[1]
            found[unit] = (name, [*slots, Slot(tuple(holders[key]), values[key])])
        return [Layer(name, tuple(slots)) for name, slots in found.values()]

    def fresh(self, seed: int) -> Fresh:
        """Draw new values for all layers.

        Each layer's own initialiser draws them (`reset_parameters`). A parameter that none knows, such as a class token,
        has its own values shuffled: their law is matched exactly. Running statistics are those of the randomised network
        on the given images, as they would be after training it not at all: with the initialiser's 0 and 1, activations of
        a deep network fade to nothing, and so would every map, for a reason that has nothing to do with what was learned.

        Args:
            seed: of the draws; the global generator is left as it is.
        """
        drawn = [_draw(layer, seed * 1_000_003 + n) for n, layer in enumerate(self.layers)]
        with self.installed(drawn, range(len(self.layers))), self._calibrating():
            self._run()
        return drawn

    @contextmanager
    def installed(self, fresh: Fresh, which: Iterable[int]) -> Iterator[Model]:
        """Inside, the layers with these numbers have their fresh values, all others the learned ones."""
        which = list(which)
        _put(self.layers, fresh, which)
        try:
            yield self.model
        finally:
            _put(self.layers, [[slot.learned for slot in layer.slots] for layer in self.layers], which)

    @contextmanager
    def _calibrating(self) -> Iterator[None]:
        modules = [child for child in self.model.module.modules() if len(_statistics(child)) == 2]
        ours = {id(holder) for layer in self.layers for slot in layer.slots for holder, _ in slot.holders}
        handles = [child.register_forward_pre_hook(_calibrate) for child in modules if id(child) in ours]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Uses(TorchFunctionMode):
    """Which of the given tensors a computation uses, by when each is used last."""

    def __init__(self, tensors: dict[int, Tensor]) -> None:
        super().__init__()
        self._tensors, self.order = tensors, dict[int, None]()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # asking a weight for its type or shape is no use of it
        if any(isinstance(value, Tensor) for value in _flat(result)):
            for value in _flat((args, kwargs)):
                if id(value) in self._tensors:
                    self.order.pop(id(value), None)
                    self.order[id(value)] = None
        return result


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _flat(item)
    else:
        yield value


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    found = {name: module._buffers.get(name) for name in _STATISTICS}
    return {name: value for name, value in found.items() if value is not None}


def _initialiser(module: nn.Module) -> Callable[[], Any] | None:
    for name in ("reset_parameters", "_reset_parameters"):
        if callable(getattr(module, name, None)):
            return getattr(module, name)
    return None


def _put(layers: Sequence[Layer], values: Fresh, which: Iterable[int]) -> None:
    for n in which:
        for slot, value in zip(layers[n].slots, values[n], strict=True):
            for module, name in slot.holders:
                setattr(module, name, value)  # not into _parameters: recurrent layers keep lists of their own


def _draw(layer: Layer, seed: int) -> list[Tensor]:
    drawn = [_blank(slot.learned) for slot in layer.slots]
    module = layer.slots[0].holders[0][0]
    reset = _initialiser(module)
    if reset is not None:
        # an initialiser may reach into children, so everything below is a copy while it runs
        saved = [(child, name, value) for child in module.modules() for name, value in _tensors(child)]
        own = {id(slot.learned): value for slot, value in zip(layer.slots, drawn, strict=True)}
        for child, name, value in saved:
            setattr(child, name, own[id(value)] if id(value) in own else _like(value, value.detach().clone()))
        devices = [drawn[0].device] if drawn[0].device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), torch.no_grad():
                torch.default_generator.manual_seed(seed)  # torch.manual_seed also wakes every accelerator
                if devices:
                    torch.cuda.manual_seed(seed)
                reset()
            drawn = [getattr(*slot.holders[0]).detach() for slot in layer.slots]
        except Exception:  # an initialiser that wants arguments, or is none
            drawn = [_blank(slot.learned) for slot in layer.slots]
        finally:
            for child, name, value in saved:
                setattr(child, name, value)
    chance = seeds.generator(seed)
    return [_finished(slot, value, chance) for slot, value in zip(layer.slots, drawn, strict=True)]


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, v) for name, v in [*module._parameters.items(), *module._buffers.items()] if v is not None]


def _blank(value: Tensor) -> Tensor:
    """NaN everywhere, so that it shows what an initialiser left alone."""
    return _like(value, torch.full_like(value.detach(), torch.nan))


def _like(value: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=False) if isinstance(value, nn.Parameter) else new


def _finished(slot: Slot, value: Tensor, chance: torch.Generator) -> Tensor:
    name = slot.holders[0][1]
    if value.shape == slot.learned.shape and not torch.isnan(value).any():
        new = value.detach()
    elif name in _STATISTICS:
        new = torch.full_like(slot.learned, _STATISTICS[name])
    else:
        order = torch.randperm(slot.learned.numel(), generator=chance).to(slot.learned.device)
        new = slot.learned.detach().flatten()[order].view(slot.learned.shape)
    return _like(slot.learned, new)


def _calibrate(module: Any, inputs: tuple[Any, ...]) -> None:
    """Give a normalisation the statistics of what it sees now."""
    x = inputs[0].detach()
    if x.ndim < 2 or x.shape[1] != module.running_mean.numel() or x.numel() <= x.shape[1]:
        return
    var, mean = torch.var_mean(x.float(), [axis for axis in range(x.ndim) if axis != 1])
    module.running_mean.copy_(mean)
    module.running_var.copy_(var)
