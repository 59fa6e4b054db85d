"""One attention of one forward, in one layout: `O = softmax(scale · Q Kᵀ + bias) V`, whoever computed it and however."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(eq=False)
class Attention:
    """What one attention saw and gave.

    Args:
        place: name of the module that ran it.
        value: `(B, H, M, d)`.
        output: `(B, H, N, d)`; in a forward that records gradients it is a leaf, from which all that follows was computed.
        query: `(B, H, N, e)`, None where the model itself made the weights.
        key: `(B, H, M, e)`, likewise.
        scale: of the products of queries and keys.
        bias: added to them, broadcastable to `(B, H, N, M)`; None is nothing.
        given: the weights `(B, H, N, M)` where the model itself made them.
        calls: `(name, run)` of every module that was running, from the outermost to the innermost.
    """

    place: str
    value: Tensor
    output: Tensor
    query: Tensor | None = None
    key: Tensor | None = None
    scale: float = 1.0
    bias: Tensor | None = None
    given: Tensor | None = None
    calls: tuple[tuple[str, int], ...] = ()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Images, heads, queries, keys."""
        return *self.output.shape[:3], self.value.shape[2]

    def weights(self, queries: slice | Tensor = slice(None)) -> Float[Tensor, "batch heads queries keys"]:
        """`A = softmax(scale · Q Kᵀ + bias)` of some queries, computed when asked for; every row sums to 1.

        Args:
            queries: which, as a slice or indices; a method that needs all of them asks for a few at a time.
        """
        if self.given is not None:
            return self.given[:, :, queries].detach().to(at_least(self.given))
        assert self.query is not None and self.key is not None
        kind = at_least(self.query)
        with torch.no_grad(), torch.autocast(self.query.device.type, enabled=False):
            products = self.query[:, :, queries].detach().to(kind) @ self.key.detach().to(kind).transpose(-1, -2) * self.scale
            if self.bias is not None:
                bias = self.bias if self.bias.shape[-2] == 1 else self.bias[..., queries, :]
                products = products + bias.to(kind)
            return products.softmax(-1)


def at_least(x: Tensor) -> torch.dtype:
    """The type to compute in: half precision is not enough, better is kept."""
    return torch.promote_types(x.dtype, torch.float32)
