"""How a vision transformer is built: its blocks, its tokens, what reads them. Asked of the network, once per input size."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from heatproof.errors import MethodError, ModelError
from heatproof.models.sites import Site, read_shape
from heatproof.models.tape import Tape, as_tensor, recording, replace_tensor, run
from heatproof.tokens.attention import Attention
from heatproof.tokens.select import indices
from heatproof.tokens.tap import Tap

Call = tuple[str, int]
"""A module's name, and which of its runs in a forward."""

_LAYOUTS: WeakKeyDictionary[nn.Module, dict[tuple, "Layout"]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Layout:
    """A network whose blocks hand on a stream of tokens.

    Args:
        blocks: each attends once, and what it returns is what the next one gets.
        stream: what a block returns, as a map.
        tokens: in the stream, prefix included.
        reads: the tokens of the last block that the score reads: the class token, or those that are averaged; none where
            the head is all zeros, as in some fresh transformers.
        pooler: what attends to the tokens in place of a class token or a mean, None if nothing does.
        queries: of the pooler, those whose answers the score reads.
        stems: convolutions in front of the blocks, with the shape of what they return for one image.
        templates: what blocks return that is no plain tensor, without the stream.
    """

    blocks: tuple[Call, ...]
    stream: Site
    tokens: int
    reads: tuple[int, ...]
    pooler: Call | None
    queries: tuple[int, ...]
    stems: dict[str, tuple[int, ...]]
    templates: dict[Call, Any] = field(default_factory=dict)

    def batch_first(self, tokens: Tensor) -> Tensor:
        """The stream as `(B, N, K)`, or back."""
        return tokens.transpose(0, 1) if self.stream.kind == "nbk" else tokens

    @property
    def readers(self) -> tuple[int, ...]:
        """Where a walk back through the blocks begins: at the class token if the score reads it, else at all that it reads."""
        if self.stream.prefix > 0 and (0 in self.reads or not self.reads):
            return (0,)
        return self.reads or tuple(range(self.tokens))

    def to_map(self, columns: Tensor) -> Tensor:
        """`(…, N)` values of tokens as `(…, h, w)`; prefix tokens are left out."""
        return columns[..., self.stream.prefix :].unflatten(-1, (self.stream.height, self.stream.width))

    def numbers(self, layers: Any, default: Sequence[int] | None = None) -> list[int]:
        """Indices of blocks from 0, in order.

        Raises:
            MethodError: something else, or out of range.
        """
        count = len(self.blocks)
        return sorted(indices("layers", default if layers is None else layers, count))


def layout(tape: Tape) -> Layout:
    """Of the tape's network, for inputs of its size.

    Raises:
        MethodError: it has no such blocks; what it has instead is named.
    """
    known = _LAYOUTS.setdefault(tape.source, {})
    key = (tape.size, type(tape.readout), tuple(id(m) for m in tape.source.modules()))
    if key not in known:
        if len(known) >= 64:  # images of ever new sizes must not grow memory
            known.clear()
        found = _survey(tape)
        if not found.reads:  # it may read some once it is trained
            return found
        known[key] = found
    return known[key]


@dataclass(eq=False)
class _Seen:
    """What one call got and gave, and how many attentions there had been when it was done."""

    given: Tensor | None
    output: Any
    tensor: Tensor
    attentions: int


def _survey(tape: Tape) -> Layout:
    x = tape.x.detach()[:1]
    modules = dict(tape.module.named_modules())
    seen: dict[Call, _Seen] = {}

    def visit(name: str, run: int, args: tuple, kwargs: dict, output: Any) -> None:
        try:
            tensor = as_tensor(output)
        except (KeyError, IndexError, TypeError):
            return
        if isinstance(tensor, Tensor):
            seen[name, run] = _Seen(first_tensor(args, kwargs), output, tensor, len(tap.attentions))

    tap = Tap(tape.module, 1, visit=visit)
    with recording(True), tap:
        scores = run(tape.readout, tape.module, x)
    blocks = _blocks(tap.attentions, seen, modules)
    # a softmax behind the blocks is no business of theirs
    behind = _number(tap.attentions, blocks[-1]) if blocks else len(tap.attentions)
    unknown = [(place, what) for place, what in tap.unknown if (place, 1) not in seen or seen[place, 1].attentions <= behind]
    _check(tape, tap, blocks, unknown)
    last = seen[blocks[-1]]
    convolutions = [(call, one) for call, one in seen.items() if isinstance(modules[call[0]], nn.Conv2d)]
    stems = [(call, one) for call, one in convolutions if one.attentions == 0]
    grids = [(one.tensor.shape[-2], one.tensor.shape[-1]) for _, one in reversed(stems)]
    stream = read_shape(blocks[-1][0], last.tensor.shape, 1, tape.size, grids)
    if stream is None:
        raise MethodError(
            f"block {blocks[-1][0]!r} of the model returns {tuple(last.tensor.shape)}, which is no grid of tokens for an input "
            f"of {tape.size}; gradcam and lrp may fit."
        )
    before, after = tap.attentions[:behind], tap.attentions[behind + 1 :]
    for attention in before:
        if not any(call in blocks for call in attention.calls):
            raise _several_grids(attention, last.tensor)
    reads, reader, queries = _readers(scores, last.tensor, stream, after)
    pooler = None if reader is None else _outermost(reader, tap.attentions, lambda call: _gets(seen, call, last.tensor, reader))
    if reader is not None and pooler is None:
        raise MethodError(
            f"the attention in {reader.place!r} that reads the tokens of the last block is in no module that gets just these and "
            "attends once; wrap it into one, or use lrp or gradcam."
        )
    return Layout(
        tuple(blocks),
        stream,
        _count(last.tensor),
        reads,
        pooler,
        queries,
        {call[0]: tuple(one.tensor.shape[1:]) for call, one in stems if (call[0], 2) not in seen},
        {call: _template(seen[call].output) for call in blocks if not isinstance(seen[call].output, Tensor)},
    )


def _template(output: Any) -> Any:
    """What a block returned without the stream, and without the graph of the forward that it came from."""
    plain = tree_map_only(Tensor, Tensor.detach, output)
    return replace_tensor(plain, as_tensor(plain).new_empty(0))


def first_tensor(args: tuple, kwargs: dict) -> Tensor | None:
    """The first tensor among the arguments of a module."""
    return next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)


def _count(tokens: Tensor) -> int:
    """How many tokens one image's stream has, whichever axis they lie along."""
    return tokens.shape[1] if tokens.shape[0] == 1 else tokens.shape[0]


def _number(attentions: Sequence[Attention], call: Call) -> int:
    return next(n for n, attention in enumerate(attentions) if call in attention.calls)


def _like_stream(seen: dict[Call, _Seen], call: Call, tokens: Tensor) -> bool:
    """Whether the first thing that a call got is shaped like the stream."""
    given = seen[call].given if call in seen else None
    return given is not None and given.shape == tokens.shape


def _gets(seen: dict[Call, _Seen], call: Call, tokens: Tensor, attention: Attention) -> bool:
    """Whether the first thing that a call got is the stream, or what of it an attention attends to."""
    given = seen[call].given if call in seen else None
    axis = 1 if tokens.shape[0] == 1 else 0
    return given is not None and given.shape == tokens.narrow(axis, 0, attention.shape[3]).shape


def _outermost(attention: Attention, attentions: Sequence[Attention], fits: Any) -> Call | None:
    """The outermost call that has this attention and no other, and fits."""
    crowd = Counter(call for one in attentions for call in one.calls)
    return next((call for call in attention.calls if crowd[call] == 1 and fits(call)), None)


def _blocks(attentions: Sequence[Attention], seen: dict[Call, _Seen], modules: dict[str, nn.Module]) -> list[Call]:
    """One call per attention of tokens to each other: it gets a stream and returns it, and is one of a row if there is one."""

    def keeps(call: Call) -> bool:
        one = seen.get(call)
        return one is not None and one.tensor.ndim == 3 and 1 in one.tensor.shape[:2] and _like_stream(seen, call, one.tensor)

    def in_a_row(call: Call) -> bool:
        return keeps(call) and isinstance(modules.get(call[0].rpartition(".")[0]), nn.ModuleList | nn.Sequential)

    found = []
    for attention in attentions:
        call = _outermost(attention, attentions, in_a_row) or _outermost(attention, attentions, keeps)
        if call and attention.shape[2] == attention.shape[3] == _count(seen[call].tensor):
            found.append(call)
    shape = Counter(seen[call].tensor.shape for call in found).most_common(1)
    found = [call for call in found if seen[call].tensor.shape == shape[0][0]]
    for one, other in pairwise(found):
        given = seen[other].given
        if given is not None and given is not seen[one].tensor and not torch.equal(given, seen[one].tensor):
            return []  # residuals or mixers lie outside these modules: what they return is not the stream
    return found


def _check(tape: Tape, tap: Tap, blocks: list[Call], unknown: list[tuple[str, str]]) -> None:
    if unknown:
        place, what = unknown[0]
        raise MethodError(
            f"the attention of module {place!r} is of a kind that the token methods do not know: {what}. They need a vision "
            "transformer whose tokens attend to one another in one grid; lrp and gradcam fit."
        )
    if blocks:
        return
    if not tap.attentions:
        kind = type(tape.module).__name__
        raise MethodError(
            f"{kind} has no attention that can be seen, and a token method needs a vision transformer; gradcam fits."
        )
    places = ", ".join(repr(attention.place) for attention in tap.attentions[:3])
    raise MethodError(
        f"the model attends in {places}, but in no row of modules that each get a stream of tokens and return it with one "
        "attention and its residual added; wrap those steps into one module per block, or use lrp or gradcam."
    )


def _readers(
    scores: Tensor, tokens: Tensor, stream: Site, after: list[Attention]
) -> tuple[tuple[int, ...], Attention | None, tuple[int, ...]]:
    """The tokens that the top score reads; or the attention behind the blocks through which it does, and for which queries."""
    if not scores.requires_grad:
        raise ModelError(
            "the scores do not depend differentiably on the tokens (a detach(), argmax or numpy step inside the model cuts the "
            "graph); use scorecam or ablationcam, which need no gradient."
        )
    wanted = [tokens, *(attention.output for attention in after)]
    with recording(True):
        found = torch.autograd.grad(scores.max(), wanted, allow_unused=True)
    live = [(attention, gradient) for attention, gradient in zip(after, found[1:], strict=True) if gradient is not None]
    if live:
        attention, gradient = live[-1]
        if len(live) > 1 or attention.shape[3] not in (_count(tokens), _count(tokens) - stream.prefix):
            raise _several_grids(attention, tokens)
        return tuple(range(_count(tokens))), attention, _moved(gradient.transpose(1, 2)[0]) or (0,)
    return () if found[0] is None else _moved(found[0].reshape(_count(tokens), -1)), None, ()


def _several_grids(attention: Attention, tokens: Tensor) -> MethodError:
    return MethodError(
        f"the model attends over {_count(tokens)} tokens in its blocks and in another way, over {attention.shape[3]}, in "
        f"{attention.place!r}. The token methods need one grid from the first block to the last, and no more than one pooler "
        "behind it; lrp and gradcam fit."
    )


def _moved(gradient: Tensor) -> tuple[int, ...]:
    """Rows that are not all zero."""
    return tuple((gradient.flatten(1) != 0).any(1).nonzero().flatten().tolist())
