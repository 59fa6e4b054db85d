"""The engine: watches one forward, operation by operation, and gives each the backward that its rule asks for.

Relevance is `R = a ⊙ g`. In this form linear maps, sums, pooling, selection and every change of shape need nothing
but autograd's own backward. What is left are weighted layers (their rules), activations (`g · y/x`), products,
norms, and whatever adds a constant, which absorbs relevance and is accounted for, operation by operation.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heatproof.errors import HeatproofError, MethodError
from heatproof.lrp.affine import Affine, dot
from heatproof.lrp.arguments import replaced, tensors
from heatproof.lrp.composites import Composite, Layer
from heatproof.lrp.functions import Tap, Through
from heatproof.lrp.kept import Keeper
from heatproof.lrp.ledger import LayerRow, Row
from heatproof.lrp.rules import Rule
from heatproof.lrp.seen import Seen, transformed
from heatproof.lrp.tags import Origin, Pixels, origin_of, pixels_of, set_origin, set_pixels
from heatproof.models.operations import operation

_LOOKS = frozenset(
    """dim size numel stride is_floating_point is_complex is_contiguous element_size __len__ shape.__get__ ndim.__get__
    dtype.__get__ device.__get__ layout.__get__ is_cuda.__get__ requires_grad.__get__ is_nested.__get__""".split()
)
"""What is asked of a tensor without touching its values: half of all that a network calls."""


class MixedBatch(HeatproofError):
    """The images of a batch do not lie along the first axis of some tensor, so they go one by one. Never seen outside."""


def on_gradient(y: Tensor, then: Callable[[Tensor], None]) -> None:
    """Call `then` with the gradient of `y`, if one comes: below a rule for pixels there is none."""

    def hook(gradient: Tensor | None) -> None:
        if gradient is not None:
            then(gradient)

    y.register_hook(hook)


class Propagation(TorchFunctionMode):
    """One forward under watch.

    Args:
        module: the shadow that runs; its submodules name the places.
        composite: which rule goes where.
        box: `(low, high)` of the input, each broadcastable to it, for rules that need them.
        ledger: whether to keep a row for every operation.
        tolerant: whether an operation without a rule gets a row that says so, instead of raising.
    """

    def __init__(
        self,
        module: nn.Module,
        composite: Composite,
        box: tuple[Tensor, Tensor] | None = None,
        ledger: bool = False,
        tolerant: bool = False,
    ) -> None:
        super().__init__()
        self.module, self.composite, self.box, self.ledger, self.tolerant = module, composite, box, ledger, tolerant
        self.layers: list[LayerRow] = []
        self.rows: list[Row] = []
        self.batch = 1
        self.seen = Seen()
        self._places = [""]
        self.final = False
        self.heads: list[Any] = []
        self.met: set[str] = set()
        self.keeper = Keeper()
        self._stack = ExitStack()

    def begin(self, x: Tensor) -> Tensor:
        """Make `x` the input: what the module must be run on."""
        self.batch = len(x)
        self.leaf = x.detach().requires_grad_()
        self.carrier = x.new_zeros(()).expand_as(x).requires_grad_()  # only its gradient is ever read
        root = self.leaf.clone()
        self.seen.add(root)
        if self.composite.pixels is not None or self.composite.choose is not None:
            low, high = self.box or (x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
            inside = x.new_ones(1, 1, 1, 1).expand_as(x)
            set_pixels(root, Pixels(self.carrier, low.to(x).expand_as(x), high.to(x).expand_as(x), inside))
        return root

    def __enter__(self) -> "Propagation":
        for name, module in self.module.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks; what it computes is found out where it is used
            for handle in (
                module.register_forward_pre_hook(lambda _m, inputs, name=name: self._enter(name, inputs)),
                module.register_forward_hook(self._leave),
            ):
                self._stack.callback(handle.remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()
        self.keeper.clear()
        self.seen.clear()

    def _enter(self, name: str, inputs: Any) -> None:
        self._look(inputs)
        self._places.append(name)

    def _leave(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._look(output)
        self._places.pop()

    def _look(self, values: Any) -> None:
        with torch._C.DisableTorchFunction():  # looking at a value is an operation too
            self.check_seen(*(t for t in tensors(values) if t.requires_grad))

    @property
    def place(self) -> str:
        """Name of the innermost module that is running."""
        return self._places[-1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from heatproof.lrp.operations import handle  # which needs this file

        kwargs = kwargs or {}
        if operation(func) in _LOOKS:
            return func(*args, **kwargs)
        given = tensors(args, kwargs)
        signals = [t for t in given if t.requires_grad]
        weights = [t for t in signals if self.seen.is_weight(t)]
        if weights:  # that the shadow could not freeze
            frozen = [t.detach() for t in weights]
            args, kwargs = replaced(args, weights, frozen), replaced(kwargs, weights, frozen)
            signals = [t for t in signals if not self.seen.is_weight(t)]
        if not signals:
            return func(*args, **kwargs)
        try:
            self.check_seen(*signals)
            self.count_reads(*signals)
            result = handle(self, func, args, kwargs)
        except MethodError:
            if not self.tolerant:
                raise
            self.row(operation(func), "none")
            result = func(*args, **kwargs)
        self.seen.add(*given, *tensors(result))  # arguments too: they may have been written into
        return result

    def check_seen(self, *signals: Tensor) -> None:
        """Raise unless watched operations made these values.

        Raises:
            MethodError: a scripted function, a custom `autograd.Function` or the like made one.
        """
        for value in signals:
            maker = "vmap" if transformed(value) else self.seen.unseen(value)
            if maker is None:
                continue
            if not self.tolerant:
                raise self.no_rule(maker, "It was not announced: a scripted function or a custom autograd.Function hides it. ")
            self.row(maker, "none")
            self.seen.add(value)

    @property
    def has_attention(self) -> bool:
        """Whether the forward had any attention."""
        return any(row.op in ("attention", "softmax") for row in self.rows)

    # --- accounts -----------------------------------------------------------------------------------------------

    def row(self, op: str, rule: str = "autograd") -> Row:
        """A line of the ledger for an operation that runs now."""
        row = Row(self.place, op, rule)
        self.rows.append(row)
        return row

    def clear(self) -> None:
        """Empty the accounts before another backward."""
        for row in self.rows:
            row.arrived, row.absorbed = None, {}

    def absorb(self, row: Row, column: str, amount: Tensor) -> None:
        """Book what an operation absorbed of each image's relevance."""
        before = row.absorbed.get(column)
        row.absorbed[column] = amount if before is None else before + amount

    def relevance(self, value: Tensor, gradient: Tensor) -> Tensor:
        """`Σ a · g` for each image."""
        shape = torch.broadcast_shapes(value.shape, gradient.shape)
        self.check_batch(shape)
        amount = dot(value.expand(shape), gradient.expand(shape), self.batch)
        if bool(amount.isfinite().all()):
            return amount
        # a mask or a padding of −∞, which nothing takes anything from: there, 0 · ∞ is nothing
        return dot(value.masked_fill(value.isinf(), 0).expand(shape), gradient.expand(shape), self.batch)

    def check_batch(self, shape: torch.Size) -> None:
        """Raise `MixedBatch` unless the first axis is that of the images."""
        if self.batch > 1 and (not shape or shape[0] != self.batch or (len(shape) in (3, 5) and shape[1] == self.batch)):
            raise MixedBatch

    def watch(self, y: Tensor, row: Row) -> None:
        """In the full ledger, note what relevance arrives at an operation's output."""
        if self.ledger:
            kept = self.keeper.keep(y)

            def arrived(gradient: Tensor) -> None:
                amount = self.relevance(kept.take(self.final), gradient)
                row.arrived = amount if row.arrived is None else row.arrived + amount

            on_gradient(y, arrived)

    def constant(self, y: Tensor, added: Tensor, column: str, row: Row) -> None:
        """`y` contains a constant: book `constant · g` when the backward passes."""
        if bool((added != 0).any()):
            on_gradient(y, lambda gradient: self.absorb(row, column, self.relevance(added, gradient)))

    def measured(self, func: Callable[..., Any], inputs: list[Tensor], column: str, row: Row) -> Any:
        """Run an operation and book the difference between what arrives and what it hands down."""

        def handed_down(value: Tensor, gradient: Tensor) -> None:
            self.absorb(row, column, -self.relevance(value, gradient))

        y = func(*(Tap.apply(t, handed_down) if t.requires_grad else t for t in inputs))
        kept = self.keeper.keep(y)
        on_gradient(y, lambda gradient: self.absorb(row, column, self.relevance(kept.take(self.final), gradient)))
        return y

    # --- weighted layers ----------------------------------------------------------------------------------------

    def through(self, layer: Affine, a: Tensor, z: Tensor, op: str) -> Tensor:
        """The output of a weighted layer, with its rule in the backward."""
        self.check_batch(z.shape)
        if z._is_view():  # of nothing else: as such it could not be written into, and networks do
            z = z.new_empty(0).set_(z.untyped_storage(), z.storage_offset(), z.shape, z.stride())
        pixels = pixels_of(a)
        layer.place, layer.batch, layer.shape = self.place, self.batch, a.shape
        layer.kept_pixels = None if pixels is None else (pixels.low, pixels.high, pixels.inside)
        if pixels is not None or self.composite.needs_input:
            layer.kept_input = a.detach()
            self.keeper.guard(layer, "kept_input")
        if pixels is not None or self.composite.needs_output or self.ledger:
            layer.kept_output = z.detach()
            self.keeper.guard(layer, "kept_output")
        row = LayerRow(self.place, op, layer=layer)
        self.rows.append(row)
        self.layers.append(row)
        carrier = None if pixels is None else pixels.carrier
        # the graph must not hold the input: for a batch norm to come it is on the output's tag, which goes with the output
        y: Tensor = Through.apply(a, carrier, [z], lambda gradient: self._back(row, gradient))
        set_origin(y, Origin(row, a, y._version))
        return y

    def merged(self, y: Tensor, scale: Tensor, mean: Tensor, shift: Tensor | None, norm: Callable[[], Tensor]) -> Tensor | None:
        """The output of a batch norm right above a weighted layer with output `y`, as one layer; None where it is not."""
        origin = origin_of(y)
        if origin is None:
            return None
        row: LayerRow = origin.row
        layer = row.layer
        if layer.scale is not None or (layer.kind == "linear" and y.ndim != 2):
            return None
        if row in self.layers:
            self.layers.remove(row)
            self.rows.remove(row)
        fresh = replace(layer, scale=scale, mean=mean, shift=shift, memory={}, kept_output=None, kept_input=None)
        place, self._places[-1] = self._places[-1], row.place
        try:
            with torch.no_grad():
                z = norm()
            merged = self.through(fresh, origin.input, z, f"{row.op}+batch_norm")
        finally:
            self._places[-1] = place
        row.merged = self.layers[-1]
        for limit in origin.conditions:
            limit(merged)
        return merged

    def rule(self, row: LayerRow) -> Rule:
        """The rule that a weighted layer gets, known once the forward is over."""
        number, last = self.layers.index(row.merged or row), len(self.layers) - 1
        layer = row.layer
        seen = Layer(row.place, layer.kind, number / max(last, 1), layer.kept_pixels is not None, number == last)
        return self.composite.rule(seen)

    def _back(self, row: LayerRow, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rule, layer = self.rule(row), row.layer
        # asked of the class itself: a rule derived from another, or made of several, may read on
        layer.rectified, layer.final = row.rectified, self.final and vars(type(rule)).get("uses_up", False)
        if self.ledger:
            row.arrived = layer.dot(layer.output, gradient)
        passed = rule(layer, gradient.contiguous())
        row.rule = repr(rule)
        if row.merged is not None and row not in self.rows:
            # something else reads the layer without its norm, a shortcut around the block
            self.rows.insert(self.rows.index(row.merged), row)
        for column in ("bias", "epsilon", "norm"):
            self.absorb(row, column, getattr(passed, column))
        if self.final:
            layer.release()
        return passed.gradient, passed.relevance

    def count_reads(self, *values: Tensor) -> None:
        """Something takes the outputs of these layers."""
        for value in values:
            origin = origin_of(value)
            if origin is not None:
                origin.row.reads += 1

    def rectified(self, value: Tensor) -> None:
        """What takes this output hands nothing down to negative values."""
        origin = origin_of(value)
        if origin is not None:
            origin.row.relus += 1

    def before_writing(self, target: Tensor, rectifying: bool = False) -> None:
        """Something is about to write into a tensor.

        A layer that nothing but this ReLU reads needs no copy: where its output was negative there will be no relevance.
        """
        origin = origin_of(target)
        spared = rectifying and origin is not None and origin.row.rectified
        self.keeper.before_writing(target, (origin.row.layer, "kept_output") if spared and origin else None)

    @staticmethod
    def where(place: str) -> str:
        """A place in words."""
        return f"module {place!r}" if place else "the model's own forward"

    def no_rule(self, op: str, hint: str = "") -> MethodError:
        """The error for an operation that relevance cannot pass."""
        return MethodError(
            f"lrp has no rule for the operation {op!r} in {self.where(self.place)}; hp.lrp.coverage(model) lists what each "
            f"operation gets. {hint}integrated-gradients works on any differentiable model."
        )
