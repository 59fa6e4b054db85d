"""What a backward will read stays as it was, whatever is written, and is copied no oftener than it must."""

import gc

import torch

from heatproof.lrp.kept import Keeper, Kept


def pointer(kept: Kept) -> int:
    return kept.value.data_ptr()


def test_without_a_write_nothing_is_copied():
    x = torch.arange(6.0)
    kept = Keeper().keep(x)
    assert pointer(kept) == x.data_ptr()
    assert torch.equal(kept.take(final=False), x) and torch.equal(kept.take(final=True), x)
    assert kept.value is None


def test_a_write_copies_once_for_all_who_keep_the_same():
    x, other = torch.arange(6.0), torch.arange(6.0)
    keeper = Keeper()
    first, second, part, apart = keeper.keep(x), keeper.keep(x.view(6)), keeper.keep(x[2:]), keeper.keep(other)
    keeper.before_writing(x[:1])
    x.zero_()
    for kept, expected in ((first, range(6)), (second, range(6)), (part, range(2, 6)), (apart, range(6))):
        assert kept.value.tolist() == list(expected)
    assert pointer(first) == pointer(second) != pointer(part)
    assert pointer(apart) == other.data_ptr()


def test_a_copy_is_out_of_reach_of_later_writes():
    x = torch.arange(6.0)
    keeper = Keeper()
    old = keeper.keep(x)
    keeper.before_writing(x)
    new = keeper.keep(x.add_(1))
    keeper.before_writing(x)
    x.zero_()
    assert old.value.tolist() == [0, 1, 2, 3, 4, 5] and new.value.tolist() == [1, 2, 3, 4, 5, 6]


def test_who_is_spared_is_asked_again_at_the_next_write():
    x = torch.arange(-2.0, 2.0)
    keeper = Keeper()
    kept = keeper.keep(x)
    keeper.before_writing(x, spared=(kept, "value"))
    x.relu_()
    keeper.before_writing(x)
    x.fill_(9)
    assert kept.value.tolist() == [0, 0, 0, 1]


def test_who_is_gone_costs_nothing():
    x = torch.arange(6.0)
    keeper = Keeper()
    keeper.keep(x)
    gc.collect()
    keeper.before_writing(x)
    alive = keeper.keep(x)
    assert pointer(alive) == x.data_ptr()
