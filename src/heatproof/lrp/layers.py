"""Weighted layers and norms."""

from typing import Any

import torch
from torch import Tensor

from heatproof.lrp.affine import Affine
from heatproof.lrp.arguments import detached
from heatproof.lrp.functions import LayerNorm
from heatproof.lrp.propagation import Propagation
from heatproof.lrp.tags import carry_pixels, scale_pixels

WEIGHTED = {f"{kind}{axes}d": axes for kind in ("conv", "conv_transpose") for axes in (1, 2, 3)} | {"linear": 0}
"""Operations with weights, and how many spatial axes they have."""

NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize", "local_response_norm"})


def weighted(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    """A convolution or a linear layer: its rule is chosen when the backward comes."""
    last = ("output_padding", "groups", "dilation") if "transpose" in name else ("dilation", "groups")
    names = ("input", "weight", "bias", "stride", "padding", *last)
    given = dict(zip(names, args, strict=False)) | kwargs
    a, weight, bias = given["input"], given["weight"].detach(), given.get("bias")
    if weight.ndim == 1:  # one output, without an axis of its own
        return weighted(prop, func, name, (a, weight[None], None if bias is None else bias[None]), {}).squeeze(-1)
    if not a.requires_grad:
        return func(*detached(args), **detached(kwargs))
    geometry: tuple[Any, ...] = ()
    axes = WEIGHTED[name]
    if axes:
        a = _unsame(a, weight, given, axes)
        values = [_tuple(given.get(key, default), axes) for key, default in
                  (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0))]  # fmt: skip
        geometry = (*values[:3], "transpose" in name, values[3], given.get("groups", 1))
    layer = Affine("", "convolution" if axes else "linear", weight, None if bias is None else bias.detach(), geometry)
    with torch.no_grad():
        z = layer.forward(a, weight, layer.bias)
    return prop.through(layer, a, z, name)


def _unsame(a: Tensor, weight: Tensor, given: dict, axes: int) -> Tensor:
    """Padding by name to padding by numbers; what is uneven is padded beforehand."""
    padding = given.get("padding", 0)
    if padding == "valid":
        given["padding"] = 0
    elif padding == "same":
        totals = [d * (k - 1) for d, k in zip(_tuple(given.get("dilation", 1), axes), weight.shape[2:], strict=True)]
        sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
        given["padding"] = 0
        y = torch.nn.functional.pad(a, sides)
        carry_pixels(a, y, lambda t: torch.nn.functional.pad(t, sides))
        return y
    return a


def _tuple(value: Any, axes: int) -> tuple[int, ...]:
    return (int(value),) * axes if isinstance(value, int) else tuple(int(v) for v in value) * (axes if len(value) == 1 else 1)


def norm(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    """A normalisation: its statistics are constants, what is left is linear."""
    if name == "batch_norm":
        return _batch_norm(prop, func, args, kwargs)
    x = args[0]
    if name == "layer_norm":
        given = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False)) | kwargs
        weight, bias = (None if given.get(key) is None else given[key].detach() for key in ("weight", "bias"))
        row = prop.row(name, "standard deviation constant")
        y = LayerNorm.apply(x, list(given["normalized_shape"]), weight, bias, given.get("eps", 1e-5))
        if bias is not None:
            prop.constant(y, bias, "bias", row)
        prop.watch(y, row)
        return y
    row = prop.row(name, "statistics constant")
    with torch.no_grad():
        y = func(*detached(args), **detached(kwargs))
    if name == "group_norm":
        given = dict(zip(("input", "num_groups", "weight", "bias", "eps"), args, strict=False)) | kwargs
        z = _centred(x, given["num_groups"], given.get("eps", 1e-5))
        return _scaled(prop, z, given, row)
    if name == "instance_norm":
        given = _given(func, args, kwargs, "use_input_stats")
        if not given.get("use_input_stats", True):
            return _batch_norm(prop, torch.nn.functional.batch_norm,
                               (x, given["running_mean"], given["running_var"], given.get("weight"), given.get("bias")),
                               {"eps": given.get("eps", 1e-5)})  # fmt: skip
        return _scaled(prop, _centred(x, x.shape[1], given.get("eps", 1e-5)), given, row)
    # what remains divides by a size: a constant factor for each value
    factor = torch.where(x == 0, 0.0, y / torch.where(x == 0, 1.0, x)).detach()
    z = x * factor
    prop.watch(z, row)
    return z


def _centred(x: Tensor, groups: int, eps: float) -> Tensor:
    grouped = x.reshape(x.shape[0], groups, -1)
    deviation = (grouped.detach().var(-1, correction=0, keepdim=True) + eps).sqrt()
    return ((grouped - grouped.mean(-1, keepdim=True)) / deviation).reshape(x.shape)


def _scaled(prop: Propagation, z: Tensor, given: dict, row: Any) -> Tensor:
    view = [1, -1] + [1] * (z.ndim - 2)
    if given.get("weight") is not None:
        z = z * given["weight"].detach().view(view)
    if given.get("bias") is not None:
        bias = given["bias"].detach().view(view)
        z = z + bias
        prop.constant(z, bias, "bias", row)
    prop.watch(z, row)
    return z


def _given(func: Any, args: tuple, kwargs: dict, training: str) -> dict:
    """Arguments by name: `torch.batch_norm` takes them in another order than `torch.nn.functional.batch_norm`."""
    own, running = ("weight", "bias"), ("running_mean", "running_var")
    pairs = (*running, *own) if getattr(func, "__module__", None) == "torch.nn.functional" else (*own, *running)
    return dict(zip(("input", *pairs, training, "momentum", "eps"), args, strict=False)) | kwargs


def _batch_norm(prop: Propagation, func: Any, args: tuple, kwargs: dict) -> Any:
    given = _given(func, args, kwargs, "training")
    x, eps = given["input"], given.get("eps", 1e-5)
    if given.get("training") or given["running_mean"] is None:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        mean, variance = x.detach().mean(axes), x.detach().var(axes, correction=0)
    else:
        mean, variance = given["running_mean"], given["running_var"]
    scale = (variance + eps).rsqrt()
    scale = scale if given.get("weight") is None else scale * given["weight"].detach()
    shift = None if given.get("bias") is None else given["bias"].detach()
    view = [1, -1] + [1] * (x.ndim - 2)

    def whole() -> Tensor:
        return torch.batch_norm(x, given.get("weight"), given.get("bias"), mean, variance, False, 0.0, eps, True)

    merged = prop.merged(x, scale, mean, shift, whole)
    if merged is not None:
        return merged
    row = prop.row("batch_norm", "running statistics constant")
    added = ((0 if shift is None else shift) - mean * scale).view(view)
    y = x * scale.view(view) + added
    if x.ndim == 4:  # pixels, if it is the image, are scaled one by one
        scale_pixels(x, y, lambda t: t * scale.view(view) + added)
    if shift is not None:
        prop.constant(y, shift.view(view), "bias", row)
    prop.constant(y, (-mean * scale).view(view), "norm", row)
    prop.watch(y, row)
    return y
