"""The end of a network, behind its last block, applied to tokens of one's own choice."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from heatproof.models.tape import Readout, Tape, recording, replace_tensor, run
from heatproof.tokens.attention import Attention
from heatproof.tokens.layout import Layout, first_tensor
from heatproof.tokens.tap import Tap


def tail(
    tape: Tape, built: Layout, tokens: Float[Tensor, "rows tokens width"], readout: Readout | None = None
) -> tuple[Tensor, Attention | None]:
    """Scores `(R, C)` of tokens as if the last block had returned them, with a graph that begins at them.

    Where a pooler reads the tokens they enter there, as they are, without the norm in front of it.

    Returns:
        The scores, and the pooler's attention if there is a pooler.
    """
    # the pixels do not matter any more, only how many there are
    x = tape.x.detach().new_zeros(len(tokens), *tape.x.shape[1:])
    tap = Tap(tape.module, len(tokens))
    with recording(True), _shortened(tape, built, tokens), tap:
        scores = run(readout or tape.readout, tape.module, x)
    return scores, next((a for a in tap.attentions if built.pooler in a.calls), None)


@contextmanager
def _shortened(tape: Tape, built: Layout, tokens: Tensor) -> Iterator[None]:
    """Inside, blocks hand on what they get, the last one hands on the tokens, and there is nothing to embed."""
    modules = dict(tape.module.named_modules())
    rows, tokens = len(tokens), built.batch_first(tokens)
    runs = dict.fromkeys((name for name, _ in built.blocks), 0)

    def block(name: str) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            runs[name] += 1
            call = name, runs[name]
            given = first_tensor(args, kwargs)
            new = tokens if given is None or (call == built.blocks[-1] and built.pooler is None) else given
            template = built.templates.get(call)
            return new if template is None else replace_tensor(copy.copy(template), new)

        return forward

    def stem(shape: tuple[int, ...]) -> Any:
        return lambda *_args, **_kwargs: tokens.new_zeros(rows, *shape)

    def enter(_module: Any, args: tuple, kwargs: dict) -> Any:
        old = first_tensor(args, kwargs)
        return tuple(tokens if a is old else a for a in args), {k: tokens if a is old else a for k, a in kwargs.items()}

    short = {name: block(name) for name in runs} | {name: stem(shape) for name, shape in built.stems.items()}
    # an attribute of the instance comes before the method of its class; a module may have one already
    before = {name: modules[name].__dict__.get("forward") for name in short}
    handle = None if built.pooler is None else modules[built.pooler[0]].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        for name, forward in short.items():
            modules[name].__dict__["forward"] = forward
        yield
    finally:
        for name, own in before.items():
            del modules[name].__dict__["forward"]
            if own is not None:
                modules[name].__dict__["forward"] = own
        if handle is not None:
            handle.remove()
