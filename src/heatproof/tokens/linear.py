"""What each operation does to the direct path. Operations are known by name, whichever way they are called."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from heatproof.models.operations import operation
from heatproof.tokens.leaves import LayerNorm, Linear, mark, state

if TYPE_CHECKING:
    from heatproof.tokens.direct_path import DirectPath

KEEPS = frozenset(
    """__getitem__ view reshape permute transpose swapaxes swapdims movedim moveaxis flatten unflatten unsqueeze squeeze
    contiguous clone to float double half bfloat16 type type_as expand expand_as repeat tile flip rot90 roll chunk split
    tensor_split unbind narrow select slice t T.__get__ mT.__get__ view_as reshape_as unfold fold index_select gather
    broadcast_to alias repeat_interleave ravel dropout dropout1d dropout2d feature_dropout mean sum neg negative __neg__
    avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d interpolate upsample pixel_shuffle pixel_unshuffle""".split()
)
"""Linear in their first argument, whatever the others are."""

LIKE = frozenset({"to", "type_as", "view_as", "expand_as", "reshape_as"})
"""Of a second tensor they only take the shape, the type or the device."""

FRESH = frozenset(
    """zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty new_tensor""".split()
)
"""What comes out depends on no values at all."""

AFFINE = frozenset({"conv1d", "conv2d", "conv3d", "batch_norm", "pad"})
"""Linear in their first argument up to a constant: what they return for zeros."""

WEIGHTED = frozenset({"linear", "conv1d", "conv2d", "conv3d", "matmul", "__matmul__", "mm", "bmm", "addmm"})
"""Where a nonlinear part ends: what comes out is one term of the score."""

_SUMS = {"add", "__add__", "__radd__", "__iadd__", "sub", "subtract", "__sub__", "__rsub__", "__isub__", "rsub"}
_PRODUCTS = {"mul", "multiply", "__mul__", "__rmul__", "__imul__"}
_QUOTIENTS = {"div", "divide", "true_divide", "__truediv__", "__itruediv__"}
_MATRIX_PRODUCTS = {"matmul", "__matmul__", "mm", "bmm", "einsum"}
_OUT_OF_PLACE = {"__iadd__": "__add__", "__isub__": "__sub__", "__imul__": "__mul__", "__itruediv__": "__truediv__"}


def tensors(*values: Any) -> list[Tensor]:
    """All tensors in arguments, however nested in lists, tuples and dictionaries."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors(*value)
        elif isinstance(value, dict):
            found += tensors(*value.values())
    return found


def changed(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Arguments with every tensor changed, however nested."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(changed(item, change) for item in value)
    return {key: changed(item, change) for key, item in value.items()} if type(value) is dict else value


def handle(path: "DirectPath", func: Any, args: tuple, kwargs: dict) -> Any:
    """Run one operation, and keep of it what belongs to the direct path."""
    given = tensors(args, kwargs)
    states = {state(t) for t in given}
    if states <= {None}:
        return func(*args, **kwargs)
    name = operation(func)
    if name in FRESH or (name in LIKE and args and state(args[0]) is None):
        return func(*changed(args, Tensor.detach), **changed(kwargs, Tensor.detach))
    bare = _bare(name)
    if "direct" not in states:
        return _cut(path, func, name, args, kwargs, states)
    for names, handler in _HANDLERS:
        if bare in names:
            result = handler(path, func, name, args, kwargs)
            break
    else:
        result = NotImplemented
    if result is NotImplemented:
        return _nonlinear(path, func, name, args, kwargs)
    for t in tensors(result):
        if t.grad_fn is None:
            mark(t, "nonlinear")
    return result


def _cut(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict, states: set) -> Any:
    """Among what is cut from the graph anything goes; a weighted layer brings it back."""
    y = func(*args, **kwargs)
    written, name = args[:1] if name != _bare(name) else (), _bare(name)
    one = sum(state(t) is not None for t in tensors(args, kwargs)) == 1
    plain = name in KEEPS | AFFINE | _SUMS or (one and name in WEIGHTED | _PRODUCTS | _QUOTIENTS)
    kind = "image" if plain and "nonlinear" not in states else "nonlinear"
    if one and name in WEIGHTED:
        if name == "conv2d" and isinstance(y, Tensor) and y.ndim == 4:
            path.grids.append((y.shape[2], y.shape[3]))
        term = path.term(name, "embedding" if kind == "image" else "mlp")
        return path.leaf(y, path.account(term, y))
    for t in tensors(y, written):
        mark(t, kind)
    return y


def _nonlinear(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    """Not linear, or not known to be: the path ends here, and what comes out of it begins a new one."""
    with torch.no_grad():
        y = func(*changed(args, Tensor.detach), **changed(kwargs, Tensor.detach))
    for t in tensors(y):
        mark(t, "nonlinear")
    return y


def _only_first(args: tuple, kwargs: dict, name: str = "") -> bool:
    """Whether the first argument is direct and all others are constants."""
    rest = [] if name in LIKE else tensors(args[1:], kwargs)
    return bool(args) and state(args[0]) == "direct" and not any(state(t) for t in rest)


def _keep(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    return func(*args, **kwargs) if _only_first(args, kwargs, name) else NotImplemented


def _join(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    """Concatenation: what is not direct becomes a leaf."""
    parts = args[0] if args else kwargs["tensors"]
    parts = [t if state(t) == "direct" else path.summand(t, t.shape, name) for t in parts]
    return func(parts, *args[1:], **{key: value for key, value in kwargs.items() if key != "tensors"})


def _sum(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    given = [args[0], args[1] if len(args) > 1 else kwargs["other"]]
    rest = {key: value for key, value in kwargs.items() if key != "other"}
    like = next(t for t in given if state(t) == "direct")
    shape = torch.broadcast_shapes(*(t.shape for t in tensors(given)))
    summands = []
    for value in given:
        if state(value) != "direct" and (isinstance(value, Tensor) or value != 0):
            number = value if isinstance(value, Tensor) else torch.tensor(value, dtype=like.dtype, device=like.device)
            value = path.summand(number, shape, name.strip("_"))
        summands.append(value)
    if state(given[0]) != "direct":  # what is cut cannot be written into; `x += y` binds what comes out in its place
        func = _out_of_place(func, name)
    return func(*summands, *args[2:], **rest)


def _product(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    """A constant or a statistic (fewer values than the path itself) scales; a gate is nonlinear."""
    first, second = args[0], args[1] if len(args) > 1 else kwargs["other"]
    if state(first) == state(second) == "direct":
        return NotImplemented
    direct, other = (first, second) if state(first) == "direct" else (second, first)
    if state(other) is not None and other.numel() >= direct.numel():
        return NotImplemented
    return _out_of_place(func, name)(first, second)


def _quotient(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    above, below = args[0], args[1] if len(args) > 1 else kwargs["other"]
    if state(above) != "direct" or kwargs.get("rounding_mode"):
        return NotImplemented
    return above / (below.detach() if isinstance(below, Tensor) else below)


def _matrix_product(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    given = tensors(args, kwargs)
    return func(*args, **kwargs) if sum(state(t) is not None for t in given) == 1 else NotImplemented


def _linear(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    if not _only_first(args, kwargs):
        return NotImplemented
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    weight, bias = given["weight"], given.get("bias")
    a = given["input"]
    arrived = None if bias is None else path.account(path.term("linear", "bias"), bias.detach())
    return Linear.apply(a, weight.detach(), None if bias is None else bias.detach(), arrived)


def _affine(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    if not _only_first(args, kwargs) or (name == "batch_norm" and _named(args, kwargs, _BATCH_NORM).get("training")):
        return NotImplemented
    y = func(*args, **kwargs)
    with torch.no_grad():
        constant = func(torch.zeros_like(args[0][:1]), *args[1:], **kwargs)
    if bool(constant.any()):
        y.register_hook(path.account(path.term(name, "bias"), constant))
    return y


def _layer_norm(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    if not _only_first(args, kwargs):
        return NotImplemented
    given = _named(args, kwargs, ("input", "normalized_shape", "weight", "bias", "eps"))
    weight, bias = (None if given.get(key) is None else given[key].detach() for key in ("weight", "bias"))
    arrived = (lambda _: None) if bias is None else path.account(path.term(name, "bias"), bias)
    return LayerNorm.apply(args[0], list(given["normalized_shape"]), weight, bias, given.get("eps", 1e-5), arrived)


def _rms_norm(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    if not _only_first(args, kwargs):
        return NotImplemented
    given = _named(args, kwargs, ("input", "normalized_shape", "weight", "eps"))
    x, axes = given["input"], tuple(range(-len(given["normalized_shape"]), 0))
    eps = torch.finfo(x.dtype).eps if given.get("eps") is None else given["eps"]
    scale = x.detach().square().mean(axes, keepdim=True).add(eps).rsqrt()
    return x * scale if given.get("weight") is None else x * scale * given["weight"]


def _normalise(path: "DirectPath", func: Any, name: str, args: tuple, kwargs: dict) -> Any:
    if not _only_first(args, kwargs):
        return NotImplemented
    given = _named(args, kwargs, ("input", "p", "dim", "eps"))
    x = given["input"]
    norm = torch.linalg.vector_norm(x.detach(), given.get("p", 2.0), given.get("dim", 1), keepdim=True)
    return x / norm.clamp_min(given.get("eps", 1e-12))


def _named(args: tuple, kwargs: dict, names: tuple[str, ...]) -> dict[str, Any]:
    return dict(zip(names, args, strict=False)) | kwargs


@functools.cache
def _out_of_place(func: Any, name: str) -> Any:
    """The same operation without writing."""
    return func if _bare(name) == name else getattr(Tensor, _bare(name))


def _bare(name: str) -> str:
    """The name of the operation that does the same without writing."""
    return _OUT_OF_PLACE.get(name, name[:-1] if name.endswith("_") and not name.endswith("__") else name)


_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training")
_HANDLERS: tuple[tuple[frozenset[str] | set[str], Callable[..., Any]], ...] = (
    (KEEPS, _keep),
    (_SUMS, _sum),
    ({"linear"}, _linear),
    ({"layer_norm"}, _layer_norm),
    (_PRODUCTS, _product),
    ({"cat", "concat", "concatenate", "stack"}, _join),
    (_QUOTIENTS, _quotient),
    (_MATRIX_PRODUCTS, _matrix_product),
    (AFFINE, _affine),
    ({"rms_norm"}, _rms_norm),
    ({"normalize"}, _normalise),
)
"""Names of operations that may be linear in the direct path, and what takes care of them."""
