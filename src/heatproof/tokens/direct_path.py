"""The direct path: a forward in which everything that is not linear in the residual stream is a leaf.

What attention and the nonlinear parts of a network write into the residual stream reaches the score along the direct
path: sums, norms, the last projection. With the norms' statistics held constant this path is linear, so the score is
the sum of what each leaf adds to it, `s = Σ_leaf ⟨leaf, ∂s/∂leaf⟩`. Nothing else is in the graph: it has no weights
and no activations, and its backward is nearly free.

A tensor is in one of three states. *Direct*: in the graph. *Image*: depends on the image, but is cut from the graph.
Anything else is a constant. An image tensor or a constant that meets the direct path becomes a leaf there.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heatproof.tokens.attention import Attention, at_least
from heatproof.tokens.leaves import Leaf, live_rows, state
from heatproof.tokens.linear import handle
from heatproof.tokens.tap import Tap


@dataclass(frozen=True, eq=False)
class Term:
    """Something that is added to the score besides attention.

    Args:
        place: name of the module that runs, or of the parameter.
        op: the operation that adds it.
        part: `"embedding"`, `"mlp"` (any nonlinear part), `"bias"` or `"constant"` (class token, positions);
            of a whole score also `"mean"` (of all classes) and `"rounding"` (of a model in half precision).
    """

    place: str
    op: str
    part: str


class DirectPath(TorchFunctionMode):
    """One forward of `images` images with nothing but its direct path in the graph.

    Args:
        module: the shadow that runs; its submodules name the places.
        images: how many there are in the batch.
        outputs: whether what attention returns is kept; its queries, keys and values are.
    """

    def __init__(self, module: nn.Module, images: int, outputs: bool = False) -> None:
        super().__init__()
        self.module, self.images, self.outputs = module, images, outputs
        self.terms: list[Term] = []
        self.grids: list[tuple[int, int]] = []
        self._tap = Tap(module, images, self._attend)
        self._root = torch.zeros((), device=next(module.parameters()).device).requires_grad_()
        self._names = {p.untyped_storage().data_ptr(): name for name, p in module.named_parameters()}

    def __enter__(self) -> "DirectPath":
        super().__enter__()
        self._tap.__enter__()  # what it does to attention is done in operations that come here
        return self

    def __exit__(self, *error: Any) -> None:
        self._tap.__exit__(*error)
        super().__exit__(*error)

    @property
    def place(self) -> str:
        """Name of the innermost module that is running."""
        return self._tap.place

    @property
    def unknown(self) -> list[tuple[str, str]]:
        """Places with something like attention that is none as we know it, each with what was seen there."""
        return self._tap.unknown

    def backward(
        self,
        outputs: Tensor,
        towards: Tensor,
        read: Callable[[Attention, Tensor], Tensor],
        parts: Container[str] = ("embedding", "mlp", "bias", "constant"),
    ) -> tuple[dict[Attention, Tensor], dict[Term, Tensor]]:
        """What `⟨outputs, towards⟩` is made of, image by image.

        Args:
            outputs: `(B, E)` what the forward returned.
            towards: `(B, E)` a direction for each image, such as a one for the target.
            read: from an attention and the gradient at its output to what is wanted of it.
            parts: kinds of terms whose amounts are wanted.

        Returns:
            What was read, for the attentions that the gradient reaches, first to last; and the amount `(B,)` of every
            other term that it reaches, first to last.
        """
        self._amounts: dict[Term, Tensor] = {}
        self._found: dict[Attention, Tensor] = {}
        self._read, self._parts = read, parts
        torch.autograd.grad(outputs, self._root, towards, retain_graph=True, allow_unused=True)
        found = {attention: self._found[attention] for attention in self._tap.attentions if attention in self._found}
        return found, {term: self._amounts[term] for term in self.terms if term in self._amounts}

    def release(self) -> None:
        """Let go of all values: path and tap know each other, and the garbage collector would come too late."""
        self._tap.attentions.clear()
        self._found, self._amounts = {}, {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return handle(self, func, args, kwargs or {})

    # --- leaves -------------------------------------------------------------------------------------------------

    def term(self, op: str, part: str, place: str = "") -> Term:
        """A new line of the account."""
        self.terms.append(Term(place or self.place, op, part))
        return self.terms[-1]

    def leaf(self, value: Tensor, arrived: Callable[[Tensor], None]) -> Tensor:
        """The same value as the beginning of a direct path."""
        with torch.enable_grad():
            return Leaf.apply(self._root, [value], arrived)

    def _attend(self, attention: Attention, output: Tensor) -> Tensor:
        def arrived(gradient: Tensor) -> None:
            self._found[attention] = self._read(attention, gradient)

        if not self.outputs:
            attention.output = torch.empty(output.shape, device="meta")
        return self.leaf(output.detach(), arrived)

    def summand(self, value: Tensor, shape: torch.Size, op: str) -> Tensor:
        """A constant or a cut value that joins the direct path in a tensor of this shape."""
        kept = value.detach()
        name = self._names.get(value.untyped_storage().data_ptr(), "")
        constant = "bias" if name.endswith("bias") else "constant"
        part = {"image": "embedding", "nonlinear": "mlp"}.get(state(value) or "", constant)
        term = self.term(op, part, name.removesuffix(".bias"))
        return self.leaf(kept.expand(shape), self.account(term, kept))

    def account(self, term: Term, value: Tensor) -> Callable[[Tensor], None]:
        """What to do with a gradient at `value`: the term takes their product."""

        def arrived(gradient: Tensor) -> None:
            if term.part not in self._parts:
                return
            amount = self._inner(value.expand(gradient.shape), gradient)
            self._amounts[term] = amount + self._amounts.get(term, 0)

        return arrived

    def _inner(self, value: Tensor, gradient: Tensor) -> Tensor:
        """`⟨value, gradient⟩` of each image."""
        if self.images == 1:  # whatever lies along its axes, it belongs to that image
            value, gradient = value[None], gradient[None]
        first = gradient.ndim < 3 or gradient.shape[0] == self.images
        if gradient.shape[0 if first else 1] != self.images:
            raise Mixed
        rows = live_rows(gradient)
        if rows is None:
            value, gradient = (t if first else t.transpose(0, 1) for t in (value, gradient))
            return (value.to(at_least(value)) * gradient).flatten(1).sum(1)
        where = torch.unravel_index(rows, gradient.shape[:-1])
        amounts = (value[where].to(at_least(value)) * gradient[where]).sum(1)
        return amounts.new_zeros(self.images).index_add(0, where[0 if first else 1], amounts)


class Mixed(Exception):
    """The images of a batch do not lie along the first axes of some tensor, so they go one by one. Never seen outside."""
