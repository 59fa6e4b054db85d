"""A weighted layer as rules see it: an affine map with any weights one cares to put into it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from heatproof.errors import MethodError

_CHANNEL = 1
_TINY = 1e-30
"""Of a smaller scale nothing would be left after a division by it."""


@dataclass(eq=False)
class Affine:
    """One run of a convolution or a linear layer, `z = scale · (W a + b − μ) + β`.

    A batch norm that follows directly is part of the layer (`scale = γ/σ`), so that a network gives the same
    relevance before and after the two have been fused.

    Args:
        place: name of the module that ran it.
        kind: `"convolution"` or `"linear"`.
        weight, bias: `W` and `b`.
        geometry: of the convolution: stride, padding, dilation, transposed, output padding, groups.
        kept_input, kept_output: values of `a` and `z`, None where no rule declared that it reads them.
        scale, mean, shift: of the batch norm, None without one.
        kept_pixels: low and high bound of each input value, and 0 where it is padding, where the input is the image itself.
        rectified: whether a ReLU is all that reads the output: then no negative output has relevance, and `z` may have been
            overwritten by the ReLU's own result.
        batch: number of images.
        shape: of the input.
        memory: what a rule computes once for all targets.
        final: whether this is the last of them and its rule the only one to read: what was kept may be used up.
    """

    place: str
    kind: str
    weight: Tensor
    bias: Tensor | None
    geometry: tuple[Any, ...] = ()
    kept_input: Tensor | None = None
    kept_output: Tensor | None = None
    scale: Tensor | None = None
    mean: Tensor | None = None
    shift: Tensor | None = None
    kept_pixels: tuple[Tensor, Tensor, Tensor] | None = None
    rectified: bool = False
    batch: int = 1
    shape: torch.Size = field(default_factory=torch.Size)
    memory: dict[Any, Any] = field(default_factory=dict)
    final: bool = False

    @property
    def input(self) -> Tensor:
        """`a`, for rules with `needs_input`."""
        return self._kept(self.kept_input, "input", "needs_input = True")

    @property
    def output(self) -> Tensor:
        """`z`, for rules with `needs_output`; where no relevance arrives it may be 0 instead."""
        return self._kept(self.kept_output, "output", "needs_output = True")

    @property
    def pixels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Low and high bound of each input value, and 0 where it is padding, for rules with `pixels_only`."""
        return self._kept(self.kept_pixels, "pixels", "pixels_only = True")

    def _kept(self, value: Any, name: str, declaration: str) -> Any:
        if value is None:
            raise MethodError(
                f"a rule reads the {name} of the layer {self.place!r}, which was not kept; its class has to say `{declaration}`."
            )
        return value

    def output_read(self) -> None:
        """A rule has read the output for the last time: the convolution that follows may have the memory."""
        if self.final:
            self.kept_output = None

    def release(self) -> None:
        """Let go of all values, once the last backward has passed."""
        self.kept_input = self.kept_output = self.kept_pixels = None
        self.memory.clear()

    @property
    def channel_axis(self) -> int:
        """Axis of the output channels in `z`."""
        return _CHANNEL if self.kind == "convolution" else -1

    @property
    def whole_weight(self) -> Tensor:
        """`scale · W`."""
        return self.weight if self.scale is None else self.weight * self._rows(self.scale)

    @property
    def own_weight(self) -> Tensor:
        """`sign(scale) · W`: the weights in units of `|scale|`, nearly always `W` itself."""
        if self.scale is None or not bool((self.scale < 0).any()):
            return self.weight
        return self.weight * self._rows(torch.where(self.scale < 0, -1.0, 1.0).to(self.weight))

    @cached_property
    def size(self) -> Tensor | None:
        """`|scale|`, and next to nothing instead of 0."""
        return None if self.scale is None else self.scale.abs().clamp_min(max(_TINY, torch.finfo(self.scale.dtype).tiny))

    @cached_property
    def added(self) -> Tensor | None:
        """All that is added to `own_weight · a`, in units of `|scale|`, one number per output channel."""
        bias = self.whole_bias
        return bias if bias is None or self.size is None else bias / self.size

    def _rows(self, values: Tensor) -> Tensor:
        """One number per output channel, shaped to multiply the weights."""
        axis = 1 if self.kind == "convolution" and self.geometry[3] else 0
        if axis == 1 and self.geometry[5] > 1:  # a grouped transposed convolution keeps its output channels per group
            groups = self.geometry[5]
            inputs, outputs = self.weight.shape[:2]
            per_group = values.view(groups, 1, outputs).expand(groups, inputs // groups, outputs)
            return per_group.reshape(inputs, outputs, *[1] * (self.weight.ndim - 2))
        view = [1] * self.weight.ndim
        view[axis] = -1
        return values.view(view)

    @cached_property
    def whole_bias(self) -> Tensor | None:
        """All that is added to `scale · W a`: the layer's bias and the norm's, one number per output channel."""
        parts = [part for part in (self.own_bias, self.norm_shift) if part is not None]
        return sum(parts[1:], parts[0]) if parts else None

    @property
    def own_bias(self) -> Tensor | None:
        """`scale · b + β`: what parameters named bias add."""
        scaled = self.bias if self.bias is None or self.scale is None else self.bias * self.scale
        return scaled if self.shift is None else self.shift if scaled is None else scaled + self.shift

    @property
    def norm_shift(self) -> Tensor | None:
        """`−scale · μ`: what the norm's running mean takes away."""
        return None if self.mean is None or self.scale is None else -self.mean * self.scale

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`weight · a + bias`."""
        if self.kind == "linear":
            return torch.nn.functional.linear(a, weight, bias)
        stride, padding, dilation, transposed, output_padding, groups = self.geometry
        return torch.convolution(a, weight, bias, stride, padding, dilation, transposed, output_padding, groups)

    def transposed(self, s: Tensor, weight: Tensor, channels: int | None = None) -> Tensor:
        """`weightᵀ · s`, in the shape of the input, or with another number of channels, as the weight has."""
        if self.kind == "linear":
            return s @ weight
        stride, padding, dilation, transposed, output_padding, groups = self.geometry
        # only the shape of the input counts here, so it need not have been kept
        shape = self.shape if channels is None else (len(s), channels, *self.shape[2:])
        hollow = s.new_empty(1).expand(shape)
        return torch.ops.aten.convolution_backward(
            s, hollow, weight, None, stride, padding, dilation, transposed, output_padding, groups, (True, False, False)
        )[0]

    def transposed_both(self, s: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """`firstᵀ · s` and `secondᵀ · s` in one pass: for few input channels a convolution's price is that of its outputs."""
        if self.kind == "linear" or self.geometry[3]:
            return self.transposed(s, first), self.transposed(s, second)
        both = self.transposed(s, torch.cat([first, second], 1), 2 * self.shape[1])
        one, other = both.unflatten(1, (self.geometry[5], 2, -1)).unbind(2)
        return one.flatten(1, 2), other.flatten(1, 2)

    def back(self, s: Tensor) -> Tensor:
        """`(scale · W)ᵀ s`; what is smaller is scaled."""
        if self.scale is None or self.weight.numel() < s.numel():
            return self.transposed(s, self.whole_weight)
        return self.transposed(s * self.per_channel(self.scale, s), self.weight)

    def per_channel(self, values: Tensor, like: Tensor) -> Tensor:
        """One number per output channel, shaped to multiply `z`."""
        view = [1] * like.ndim
        view[self.channel_axis] = -1
        return values.view(view)

    def sums(self, s: Tensor) -> Tensor:
        """`Σ s` over everything but images and output channels, `(batch, channels)`."""
        # channels first: then nothing of the layer's size is written
        if self.kind == "convolution":
            s = s.flatten(2).sum(2)  # of windows and tokens, too, that lie where the images should
        return s.reshape(self.batch, -1, s.shape[-1]).sum(1).double()

    def absorbed(self, values: Tensor | None, sums: Tensor) -> Tensor:
        """`Σ_k values_k s_k` for each image: what something that is added to `z` takes of the relevance."""
        return sums.new_zeros(self.batch) if values is None else sums @ values.double()

    def dot(self, first: Tensor, second: Tensor) -> Tensor:
        """`Σ first · second` for each image."""
        return dot(first, second, self.batch)


def dot(first: Tensor, second: Tensor, batch: int) -> Tensor:
    """`Σ first · second` for each image, `(batch,)`, without writing the product."""
    images = zip(*(t.reshape(batch, -1) for t in (first, second)), strict=True)
    total = torch.stack([torch.vdot(*image) for image in images])  # `vecdot` writes it
    return (total.real if total.is_complex() else total).double()


def per_image(values: Tensor, batch: int) -> Tensor:
    """Sum of everything that belongs to each image: `(batch,)`."""
    return values.reshape(batch, -1).sum(1).double()
