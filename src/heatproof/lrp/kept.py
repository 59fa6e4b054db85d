"""Values that a backward will read: kept without a copy, as long as the network does not write into them."""

from dataclasses import dataclass
from typing import Any
from weakref import ref

from torch import Tensor


@dataclass(eq=False)
class Kept:
    """A value that a backward will read."""

    value: Tensor | None

    def take(self, final: bool) -> Tensor:
        """The value; after the last backward it is gone."""
        value = self.value
        assert value is not None
        if final:
            self.value = None
        return value


class Keeper:
    """Knows what is kept in which memory, and copies it before something else is written there."""

    def __init__(self) -> None:
        self._holders: dict[int, list[tuple[ref[Any], str]]] = {}

    def keep(self, value: Tensor) -> Kept:
        """A value for the backward."""
        kept = Kept(value.detach())
        self.guard(kept, "value")
        return kept

    def guard(self, holder: Any, name: str) -> None:
        """Watch over a tensor that is an attribute of something."""
        # weakly: a convolution whose batch norm has made it part of another layer is done with
        pointer = getattr(holder, name).untyped_storage().data_ptr()
        self._holders.setdefault(pointer, []).append((ref(holder), name))

    def before_writing(self, target: Tensor, spared: tuple[Any, str] | None = None) -> None:
        """Something is about to write into a tensor: who still needs its values gets a copy, but for the one that is spared."""
        pointer = target.untyped_storage().data_ptr()
        copies: dict[tuple, Tensor] = {}  # an activation keeps what the layer below it keeps: one copy is enough for both
        for known, name in self._holders.pop(pointer, ()):
            holder = known()
            value = getattr(holder, name, None)
            if value is None or value.untyped_storage().data_ptr() != pointer:
                continue
            if spared is not None and holder is spared[0] and name == spared[1]:
                self.guard(holder, name)  # until the next write
            else:
                seen = (value.storage_offset(), value.shape, value.stride(), value.dtype)
                if seen not in copies:
                    copies[seen] = value.clone()
                setattr(holder, name, copies[seen])

    def clear(self) -> None:
        """The forward is over: nothing is written any more."""
        self._holders.clear()
