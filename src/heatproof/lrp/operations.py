"""What each operation does to relevance. Operations are known by name, whichever way they are called."""

import functools
import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from heatproof.lrp import products
from heatproof.lrp.affine import Affine
from heatproof.lrp.functions import LayerNorm, Ratio
from heatproof.lrp.propagation import Pixels, Propagation

Handler = Callable[[Propagation, Any, tuple, dict], Any]

SHAPES = frozenset(
    """__getitem__ view reshape permute transpose swapaxes swapdims movedim moveaxis flatten unflatten unsqueeze squeeze
    contiguous clone to float double half bfloat16 type type_as expand expand_as repeat tile flip rot90 roll chunk split
    tensor_split unbind narrow select slice t T.__get__ mT.__get__ H.__get__ mH.__get__ real.__get__ view_as reshape_as
    pixel_shuffle pixel_unshuffle channel_shuffle unfold fold diagonal index_select gather take_along_dim
    broadcast_to alias detach_copy repeat_interleave ravel view_as_real atleast_3d as_strided hsplit vsplit
    native_channel_shuffle positive""".split()
)
"""Values change places: nothing happens to relevance."""

HOMOGENEOUS = frozenset(
    """relu relu_ leaky_relu rrelu prelu abs max min amax amin maximum minimum max_pool1d max_pool2d max_pool3d
    max_pool2d_with_indices max_pool1d_with_indices max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d mean sum nansum cumsum neg negative __neg__ interpolate upsample grid_sample topk sort norm vector_norm
    std median quantile dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
    feature_alpha_dropout trace tril triu lp_pool2d diff zero_""".split()
)
"""`f(λa) = λ f(a)` for λ > 0: by Euler's theorem autograd's own backward conserves relevance."""

MIXES = frozenset(
    """cat concat concatenate stack hstack vstack dstack where masked_fill index_fill index_copy index_add scatter
    scatter_add masked_scatter lerp addmm baddbmm addbmm addcmul addcdiv pad logsumexp log_softmax dist""".split()
)
"""Constants may be mixed in, or the operation does not conserve: what it absorbs is measured."""

ACTIVATIONS = frozenset(
    """gelu silu mish hardswish elu celu selu hardtanh relu6 tanh softsign tanhshrink hardshrink softshrink softplus sigmoid
    hardsigmoid logsigmoid exp expm1 log1p erf atan arctan sin asinh sinh sqrt square pow __pow__ clamp clip clamp_min
    clamp_max nan_to_num""".split()
)
"""Element by element: all relevance goes through, `R_in = R_out`; a value at zero is a constant."""

GATES = frozenset({"sigmoid", "hardsigmoid", "softmax", "tanh"})
"""What a signal is multiplied with when it is gated."""

FACTORS = frozenset({"rsqrt", "reciprocal", "log", "log2", "log10", "sign", "__rpow__", "round", "floor", "ceil", "argmax"})
"""Never a signal: held constant."""

ADDS = frozenset({"add", "__add__", "__radd__", "sub", "subtract", "__sub__", "__rsub__", "rsub"})
NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize", "local_response_norm"})
WEIGHTED = {f"{kind}{axes}d": axes for kind in ("conv", "conv_transpose") for axes in (1, 2, 3)} | {"linear": 0}
_IN_PLACE_OPERATORS = {"__iadd__": "__add__", "__isub__": "__sub__", "__imul__": "__mul__", "__itruediv__": "__truediv__"}


@functools.cache
def operation(func: Any) -> str:
    """The bare name of an operation: `torch.Tensor.add_` is `add_`, the getter of `T` is `T.__get__`."""
    name = resolve_name(func) or getattr(func, "__name__", repr(func))
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1] == "__get__" else parts[-1]


def tensors(*values: Any) -> list[Tensor]:
    """All tensors in arguments, however nested in lists and tuples."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors(*value)
        elif isinstance(value, dict):
            found += tensors(*value.values())
    return found


def signal(value: Any) -> bool:
    """Whether a value carries relevance."""
    return isinstance(value, Tensor) and value.requires_grad


def handle(prop: Propagation, func: Any, args: tuple, kwargs: dict) -> Any:
    """Run one operation so that its backward passes relevance.

    Raises:
        MethodError: there is no rule for it.
    """
    name = operation(func)
    if not any(t.requires_grad for t in tensors(args, kwargs)):
        return func(*args, **kwargs)
    if name == "__setitem__":
        return _set_item(prop, func, args)
    written = args[0] if (_in_place(name) or kwargs.get("inplace")) and args and isinstance(args[0], Tensor) else None
    if written is not None:
        prop.before_writing(written)
    bare = _IN_PLACE_OPERATORS.get(name, name[:-1] if written is not None and name.endswith("_") and name[:-1] else name)
    bare = "relu" if bare == "relu_" else bare
    if (written is not None and (bare in ("relu", "dropout") or bare in SHAPES)) or name in ("zero_", "requires_grad_"):
        return _drop_tags(func(*args, **kwargs))
    if name in ("copy_", "fill_"):
        return _overwrite(prop, written, args, kwargs)
    if written is not None and bare not in ADDS and bare not in ACTIVATIONS:
        args = (written.clone(), *args[1:])  # what the backward needs must not be overwritten by the result
    result = _outcome(prop, func, bare, args, {key: value for key, value in kwargs.items() if key != "inplace"}, written)
    if written is None or not isinstance(result, Tensor):
        return result
    return _drop_tags(written.copy_(result))


def _overwrite(prop: Propagation, target: Tensor, args: tuple, kwargs: dict) -> Tensor:
    """Every value of a tensor replaced: by a signal, which takes all relevance, or by constants, which absorb it."""
    values = args[1] if len(args) > 1 else kwargs.get("src", kwargs.get("value"))
    if not signal(values):
        row = prop.row("copy")
        added = torch.as_tensor(values, dtype=target.dtype, device=target.device).expand_as(target)
        values = torch.where(torch.zeros_like(target, dtype=torch.bool), target, added)  # on the graph, so that it is asked
        if values.requires_grad:
            prop.constant(values, added, "bias", row)
    return _drop_tags(target.copy_(values))


def _in_place(name: str) -> bool:
    return name in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__") and name != "requires_grad_")


def _outcome(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict, written: Tensor | None) -> Any:
    if written is not None:
        func = _out_of_place(func, name)
    if name in WEIGHTED:
        return _weighted(prop, func, name, args, kwargs)
    if name in SHAPES:
        return _shape(func, name, args, kwargs)
    if name in ADDS:
        return _add(prop, func, name, args, kwargs)
    if name in products.NAMES:
        return products.NAMES[name](prop, func, name, args, kwargs)
    if name in HOMOGENEOUS or (name == "var" or name == "var_mean"):
        row = prop.row(name)
        y = func(*args, **kwargs)
        if name.startswith("var"):
            y = y[0] / 2 + (y[0] / 2).detach() if isinstance(y, tuple) else y / 2 + (y / 2).detach()
        return _watched(prop, y, row, args)
    if name in MIXES:
        return _mix(prop, func, name, args, kwargs)
    if name in NORMS:
        return _norm(prop, func, name, args, kwargs)
    if name in ACTIVATIONS:
        return _activation(prop, func, name, args, kwargs)
    if name == "softmax":
        row = prop.row(name, "autograd (AttnLRP's softmax rule)")
        y = prop.measured(lambda x: func(x, *args[1:], **kwargs), [args[0]], "softmax", row)
        y._lrp_gate = True
        prop.watch(y, row)
        return y
    if name in FACTORS:
        prop.row(name, "held constant")
        return func(*_detached(args), **_detached(kwargs))
    return _unknown(prop, func, name, args, kwargs)


def _unknown(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    if isinstance(func, types.FunctionType) and any(key.startswith("has_torch_function") for key in func.__code__.co_names):
        # a function written in Python: the operations inside it have rules of their own
        with prop_again(prop):
            return _opened(func)(*args, **kwargs)
    result = func(*args, **kwargs)
    if any(t.requires_grad for t in tensors(result)):
        raise prop.no_rule(name)
    return result


class prop_again:
    """Watch again inside a handler, without entering the modules' hooks twice."""

    def __init__(self, prop: Propagation) -> None:
        self.prop = prop

    def __enter__(self) -> None:
        torch.overrides.TorchFunctionMode.__enter__(self.prop)

    def __exit__(self, *error: Any) -> None:
        torch.overrides.TorchFunctionMode.__exit__(self.prop, *error)


@functools.cache
def _opened(func: types.FunctionType) -> types.FunctionType:
    """A Python function of torch without its own dispatch, so that what it calls is seen one by one."""
    closed = {key: (lambda *_: False) for key in func.__globals__ if key.startswith("has_torch_function")}
    opened = types.FunctionType(func.__code__, {**func.__globals__, **closed}, func.__name__, func.__defaults__, func.__closure__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


@functools.cache
def _out_of_place(func: Any, name: str) -> Any:
    """The same operation without writing."""
    for home in (Tensor, torch, torch.nn.functional):
        if hasattr(home, name):
            return getattr(home, name)
    return func


def _shape(func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    y = func(*args, **kwargs)
    source = args[0] if args and isinstance(args[0], Tensor) else None
    if source is not None and isinstance(y, Tensor):
        if hasattr(source, "_lrp_gate"):
            y._lrp_gate = True
        _carry_pixels(source, y, lambda t: func(t, *args[1:], **kwargs))
    elif source is not None and hasattr(source, "_lrp_pixels") and isinstance(y, list | tuple):
        for n, part in enumerate(y):
            _carry_pixels(source, part, lambda t, n=n: func(t, *args[1:], **kwargs)[n])
    return y


def _carry_pixels(source: Tensor, y: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    pixels = getattr(source, "_lrp_pixels", None)
    if pixels is not None:
        y._lrp_pixels = pixels.map(change)


def _watched(prop: Propagation, y: Any, row: Any, args: tuple) -> Any:
    for t in tensors(y):
        if t.requires_grad and t.is_floating_point():
            prop.watch(t, row)
            if args and hasattr(args[0], "_lrp_gate"):
                t._lrp_gate = True
            break
    return y


def _add(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    y = func(*args, **kwargs)
    first, second = args[0], args[1] if len(args) > 1 else kwargs["other"]
    row = prop.row(name.strip("_"))
    if not (signal(first) and signal(second)):
        before = first if signal(first) else second
        added = _constant_part(func, args, kwargs, y, before)
        prop.constant(y, added, "bias", row)
        pixels = getattr(before, "_lrp_pixels", None)
        if pixels is not None and y.shape == before.shape:
            y._lrp_pixels = pixels.scaled(lambda t: func(*(t if value is before else value for value in args), **kwargs))
        if hasattr(before, "_lrp_gate"):
            y._lrp_gate = True
    prop.watch(y, row)
    return y


def _constant_part(func: Any, args: tuple, kwargs: dict, y: Tensor, before: Tensor) -> Tensor:
    """What an addition gives when its signal is zero."""
    with torch.no_grad():
        zero = torch.zeros((), dtype=y.dtype, device=y.device)
        return torch.as_tensor(func(*(zero if value is before else value for value in args), **kwargs)).detach().to(y)


def _weighted(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    if "transpose" not in name:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | kwargs
    a, weight, bias = given["input"], given["weight"].detach(), given.get("bias")
    if not a.requires_grad:
        return func(*_detached(args), **_detached(kwargs))
    geometry: tuple[Any, ...] = ()
    axes = WEIGHTED[name]
    if axes:
        a = _unsame(a, weight, given, axes)
        values = [_tuple(given.get(key, default), axes) for key, default in
                  (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0))]  # fmt: skip
        geometry = (*values[:3], "transpose" in name, values[3], given.get("groups", 1))
    layer = Affine("", "convolution" if axes else "linear", weight, None if bias is None else bias.detach(), geometry)
    with torch.no_grad():
        z = layer.forward(a, weight)
        if bias is not None:
            z += layer.per_channel(layer.bias, z)
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
        _carry_pixels(a, y, lambda t: torch.nn.functional.pad(t, sides))
        return y
    return a


def _tuple(value: Any, axes: int) -> tuple[int, ...]:
    return (int(value),) * axes if isinstance(value, int) else tuple(int(v) for v in value) * (axes if len(value) == 1 else 1)


def _activation(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    x = args[0] if args else kwargs["input"]
    rest = args[1:]
    if any(signal(value) for value in tensors(rest, kwargs) if value is not x) or not signal(x):
        raise prop.no_rule(name)
    with torch.no_grad():
        y = func(x, *rest, **kwargs)
        at_zero = float(func(torch.zeros(1, dtype=x.dtype, device=x.device), *rest, **kwargs))
    if not math.isfinite(at_zero):
        raise prop.no_rule(name)
    row = prop.row(name, "R_in = R_out")
    z = Ratio.apply(x, y, at_zero)
    if at_zero:
        prop.constant(z, torch.full((), at_zero, dtype=z.dtype, device=z.device), "bias", row)
    if name in GATES:
        z._lrp_gate = True
    prop.watch(z, row)
    return z


def _mix(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    flat = [t for t in tensors(args, kwargs) if t.requires_grad]
    row = prop.row(name)
    joins = name in ("cat", "concat", "concatenate", "stack")
    zeros = name == "pad" and not (kwargs.get("value") or (len(args) > 3 and args[3]))
    if zeros or (joins and len(flat) == len(tensors(args, kwargs))):
        y = func(*args, **kwargs)  # nothing is mixed in
        sources = [getattr(t, "_lrp_pixels", None) for t in flat]
        if all(sources):
            parts = ([getattr(source, key) for source in sources] for key in ("carrier", "low", "high", "inside"))
            y._lrp_pixels = Pixels(*(func(*replaced(args, flat, part), **replaced(kwargs, flat, part)) for part in parts))
    else:
        y = prop.measured(lambda *taps: func(*replaced(args, flat, taps), **replaced(kwargs, flat, taps)), flat, "bias", row)
    prop.watch(y, row)
    return y


def replaced(value: Any, old: Sequence[Tensor], new: Sequence[Tensor]) -> Any:
    """Arguments with some tensors replaced, however nested."""
    if isinstance(value, Tensor):
        return next((n for o, n in zip(old, new, strict=True) if o is value), value)
    if isinstance(value, list | tuple):
        return type(value)([replaced(item, old, new) for item in value]) if type(value) in (list, tuple) else value
    if isinstance(value, dict):
        return {key: replaced(item, old, new) for key, item in value.items()}
    return value


def _norm(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
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
        y = func(*_detached(args), **_detached(kwargs))
    if name == "group_norm":
        given = dict(zip(("input", "num_groups", "weight", "bias", "eps"), args, strict=False)) | kwargs
        z = _centred(x, given["num_groups"], given.get("eps", 1e-5))
        return _scaled(prop, z, given, row)
    if name == "instance_norm":
        keys = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
        given = dict(zip(keys, args, strict=False)) | kwargs
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


def _batch_norm(prop: Propagation, func: Any, args: tuple, kwargs: dict) -> Any:
    keys = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(keys, args, strict=False)) | kwargs
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
    with torch.no_grad():
        z = torch.nn.functional.batch_norm(x, mean, variance, given.get("weight"), given.get("bias"), False, 0.0, eps)
    merged = prop.merged(x, scale, mean, shift, z)
    if merged is not None:
        return merged
    row = prop.row("batch_norm", "running statistics constant")
    y = x * scale.view(view) + ((0 if shift is None else shift) - mean * scale).view(view)
    if shift is not None:
        prop.constant(y, shift.view(view), "bias", row)
    prop.constant(y, (-mean * scale).view(view), "norm", row)
    prop.watch(y, row)
    return y


def _set_item(prop: Propagation, func: Any, args: tuple) -> None:
    target, index, value = args
    prop.before_writing(target)
    row = prop.row("setitem")
    around, within = signal(target), signal(value)
    func(target, index, value)
    if not (around and within):
        # what is no signal now lies among what is: constants at the index, or all around it
        added = torch.zeros_like(target) if around else target.detach().clone()
        added[index] = target.detach()[index] if around else 0
        prop.constant(target, added, "bias", row)
    _drop_tags(target)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    return tuple(_detached(item) for item in value) if isinstance(value, tuple) else value


def _drop_tags(x: Any) -> Any:
    """After a write: what was known of the tensor, and of the one that it is a view of, no longer holds."""
    for written in (x, x._base) if isinstance(x, Tensor) and x._is_view() else (x,):
        for tag in ("_lrp_gate", "_lrp_pixels", "_lrp_layer"):
            if hasattr(written, tag):
                delattr(written, tag)
    return x
