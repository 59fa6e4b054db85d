"""What each operation does to relevance. Operations are known by name, whichever way they are called."""

import functools
from typing import Any

import torch
from torch import Tensor

from heatproof.lrp import elementwise, layers, products, recurrent
from heatproof.lrp.arguments import detached, replaced, signal, tensors
from heatproof.lrp.propagation import Propagation
from heatproof.lrp.tags import carry_gate, carry_pixels, drop_tags, mark_gate, pixels_of
from heatproof.models.operations import is_composed, opened, operation

SHAPES = frozenset(
    """__getitem__ view reshape permute transpose swapaxes swapdims movedim moveaxis flatten unflatten unsqueeze squeeze
    contiguous clone to float double half bfloat16 type type_as expand expand_as repeat tile flip rot90 roll chunk split
    tensor_split unbind narrow select slice t T.__get__ mT.__get__ H.__get__ mH.__get__ real.__get__ view_as reshape_as
    pixel_shuffle pixel_unshuffle channel_shuffle unfold fold diagonal index_select gather take_along_dim
    broadcast_to alias detach_copy repeat_interleave ravel view_as_real view_as_complex imag.__get__ conj resolve_conj
    atleast_3d as_strided hsplit vsplit dsplit unsafe_split unsafe_chunk native_channel_shuffle positive take masked_select
    cpu cuda""".split()
)
"""Values change places: nothing happens to relevance."""

HOMOGENEOUS = frozenset(
    """relu relu_ leaky_relu rrelu prelu abs max min amax amin cummax cummin kthvalue mode aminmax
    max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool1d_with_indices max_pool3d_with_indices
    adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool2d_with_indices adaptive_max_pool3d fractional_max_pool2d fractional_max_pool2d_with_indices max_unpool1d
    max_unpool2d max_unpool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d mean sum nansum cumsum neg negative __neg__ interpolate upsample topk sort norm vector_norm
    std std_mean median quantile dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
    feature_alpha_dropout trace tril triu diff trapezoid zero_ complex""".split()
)
"""`f(λa) = λ f(a)` for λ > 0: by Euler's theorem autograd's own backward conserves relevance."""

MIXES = frozenset(
    """cat concat concatenate stack hstack vstack dstack where masked_fill index_fill index_copy index_add index_put scatter
    scatter_add scatter_reduce masked_scatter select_scatter slice_scatter maximum minimum fmax fmin lerp addmm baddbmm addbmm
    addcmul addcdiv pad logsumexp logcumsumexp log_softmax dist""".split()
)
"""Constants may be mixed in, or the operation does not conserve: what it absorbs is measured."""

ACTIVATIONS = frozenset(
    """gelu silu mish hardswish elu celu selu hardtanh relu6 tanh softsign tanhshrink hardshrink softshrink softplus sigmoid
    hardsigmoid logsigmoid threshold exp exp2 expm1 log1p erf atan arctan sin cos tan asinh sinh cosh sqrt square pow __pow__
    __rpow__ clamp clip clamp_min clamp_max nan_to_num expit""".split()
)
"""Element by element: all relevance goes through, `R_in = R_out`; a value at zero is a constant. If that is infinite, as of
a negative power, all is held constant."""

FACTORS = frozenset(
    """rsqrt reciprocal log log2 log10 sign sgn round floor ceil trunc heaviside floor_divide __floordiv__ argmax
    affine_grid_generator""".split()
)
"""Never a signal: held constant."""

ADDS = frozenset({"add", "__add__", "__radd__", "sub", "subtract", "__sub__", "__rsub__", "rsub"})
_IN_PLACE_OPERATORS = {"__iadd__": "__add__", "__isub__": "__sub__", "__imul__": "__mul__", "__itruediv__": "__truediv__"}


def handle(prop: Propagation, func: Any, args: tuple, kwargs: dict) -> Any:
    """Run one operation on a signal so that its backward passes relevance.

    Raises:
        MethodError: there is no rule for it.
    """
    name = operation(func)
    if not args and "input" in kwargs and "condition" not in kwargs:
        kwargs = dict(kwargs)
        args = (kwargs.pop("input"),)
    if name == "__setitem__":
        elementwise.set_item(prop, func, args)
        return None
    written = args[0] if (_in_place(name) or kwargs.get("inplace")) and args and isinstance(args[0], Tensor) else None
    bare = _IN_PLACE_OPERATORS.get(name, name[:-1] if written is not None and name.endswith("_") and name[:-1] else name)
    bare = "relu" if bare == "relu_" else bare
    if bare in ("max", "min") and isinstance(args[1] if len(args) == 2 else kwargs.get("other"), Tensor):
        bare += "imum"  # of two tensors
    if _rectifies(bare, args, kwargs):
        prop.rectified(args[0])
    if (written is not None and (bare in ("relu", "dropout") or bare in SHAPES)) or name in ("zero_", "requires_grad_"):
        if written is not None:
            prop.before_writing(written, rectifying=bare == "relu")
        return drop_tags(func(*args, **kwargs))
    if bare in ADDS and written is not None and len(args) > 1 and signal(written) and signal(args[1]):
        return elementwise.add_to(prop, func, bare, args, kwargs)
    if written is not None and name in ("copy_", "fill_"):
        return elementwise.overwrite(prop, written, args, kwargs)
    if written is not None and bare not in ADDS and bare not in ACTIVATIONS:
        before = written.clone()  # what the backward needs must not be overwritten by the result
        carry_pixels(written, before, lambda t: t)
        args = replaced(args, [written], [before])
    result = _outcome(prop, func, bare, args, {key: value for key, value in kwargs.items() if key != "inplace"}, written)
    if written is None or not isinstance(result, Tensor):
        return result
    return elementwise.put(prop, written, result)


def _rectifies(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether an operation hands nothing down to negative values."""
    if name == "hardtanh":
        return (args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)) == 0
    return name in ("relu", "relu6")


def _in_place(name: str) -> bool:
    return name in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__") and name != "requires_grad_")


def _outcome(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict, written: Tensor | None) -> Any:
    if written is not None:
        func = _out_of_place(func, name)
    for names, handler in _HANDLERS:
        if name in names:
            return handler(prop, func, name, args, kwargs)
    if name in products.NAMES:
        return products.NAMES[name](prop, func, name, args, kwargs)
    if name in SHAPES:
        return _shape(func, name, args, kwargs)
    if name in HOMOGENEOUS or (name == "var" or name == "var_mean"):
        row = prop.row(name)
        y = func(*args, **kwargs)
        if name == "var_mean":
            y = (_halved(y[0]), y[1])
        elif name == "var":
            y = _halved(y)
        return _watched(prop, y, row, args)
    if name == "softmax":
        row = prop.row(name, "autograd (AttnLRP's softmax rule)")
        y = prop.measured(lambda x: func(x, *args[1:], **kwargs), [args[0]], "softmax", row)
        mark_gate(y)
        prop.watch(y, row)
        return y
    if name == "grid_sample":  # linear in what is sampled, once it is settled where
        row = prop.row(name, "grid constant" if any(map(signal, (*args[1:], *kwargs.values()))) else "autograd")
        return _watched(prop, func(args[0], *detached(args[1:]), **detached(kwargs)), row, args)
    if name in FACTORS:
        prop.row(name, "held constant")
        return func(*detached(args), **detached(kwargs))
    return _unknown(prop, func, name, args, kwargs)


def _unknown(prop: Propagation, func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    if is_composed(func):  # the operations inside it have rules of their own
        with prop_again(prop):
            return opened(func)(*args, **kwargs)
    if name in recurrent.NAMES:
        with prop_again(prop):
            result = recurrent.written_out(name, args)
        if result is not None:
            return result
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
        carry_gate(source, y)
        carry_pixels(source, y, lambda t: func(t, *args[1:], **kwargs))
    elif source is not None and pixels_of(source) is not None and isinstance(y, list | tuple):
        for n, part in enumerate(y):

            def same_part(t: Tensor, n: int = n) -> Tensor:
                return func(t, *args[1:], **kwargs)[n]

            carry_pixels(source, part, same_part)
    return y


def _halved(y: Tensor) -> Tensor:
    """A value of degree two, `f(λa) = λ² f(a)`: autograd alone would hand down twice its relevance."""
    return y / 2 + (y / 2).detach()


def _watched(prop: Propagation, y: Any, row: Any, args: tuple) -> Any:
    for t in tensors(y):
        if t.requires_grad and t.is_floating_point():
            prop.watch(t, row)
            if args:
                carry_gate(args[0], t)
            break
    return y


_HANDLERS = (
    (layers.WEIGHTED, layers.weighted),
    (layers.NORMS, layers.norm),
    (ADDS, elementwise.add),
    (MIXES, elementwise.mix),
    (ACTIVATIONS, elementwise.activation),
)
"""Names, and what takes care of them."""
