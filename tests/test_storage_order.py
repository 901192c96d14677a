"""The shuffled order: permutations, windows, resuming anywhere, any number of processes."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_schema.layout import ROW_GROUP_RESPONSES
from storage_schema.order import BlockOrder, row_group_starts

orders = st.builds(
    BlockOrder,
    num_examples=st.integers(1, 1500),
    examples_per_shard=st.integers(1, 600),
    window_groups=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
epochs = st.integers(0, 50)


def make_order(**changes: int) -> BlockOrder:
    options = {"num_examples": 2000, "examples_per_shard": 600, "window_groups": 3, "seed": 7}
    return BlockOrder(**{**options, **changes})


def groups_of(order: BlockOrder, indices: list[int]) -> list[int]:
    starts = row_group_starts(order.num_examples, order.examples_per_shard)
    return (np.searchsorted(starts, indices, side="right") - 1).tolist()


def test_row_groups_are_those_of_the_shards() -> None:
    assert row_group_starts(700, 300).tolist() == [0, 128, 256, 300, 428, 556, 600, 700]
    assert row_group_starts(5, 2**31).tolist() == [0, 5]
    assert row_group_starts(256, 256).tolist() == [0, 128, 256]


@settings(deadline=None, max_examples=50)
@given(orders)
def test_row_groups_cut_all_examples(order: BlockOrder) -> None:
    starts = row_group_starts(order.num_examples, order.examples_per_shard)
    sizes = [
        min(ROW_GROUP_RESPONSES, order.examples_per_shard - row, order.num_examples - first - row)
        for first in range(0, order.num_examples, order.examples_per_shard)
        for row in range(
            0, min(order.examples_per_shard, order.num_examples - first), ROW_GROUP_RESPONSES
        )
    ]
    assert np.diff(starts).tolist() == sizes


@settings(deadline=None, max_examples=50)
@given(orders, epochs)
def test_an_epoch_is_every_example_once(order: BlockOrder, epoch: int) -> None:
    assert sorted(order.indices(epoch)) == list(range(len(order)))


@settings(deadline=None, max_examples=50)
@given(orders, epochs)
def test_a_row_group_is_visited_in_one_window_only(order: BlockOrder, epoch: int) -> None:
    """Holding `window_groups` row groups is enough to read each of them once."""
    groups = groups_of(order, list(order.indices(epoch)))
    first, last = {}, {}
    for position, group in enumerate(groups):
        first.setdefault(group, position)
        last[group] = position
    for position in range(len(groups)):
        begun = [g for g in first if first[g] <= position <= last[g]]
        assert len(begun) <= order.window_groups
        if position > 200:
            break


@settings(deadline=None, max_examples=50)
@given(orders, epochs, st.data())
def test_any_position_continues_the_same_order(order: BlockOrder, epoch: int, data) -> None:
    position = data.draw(st.integers(0, len(order)))
    assert list(order.indices(epoch, position)) == list(order.indices(epoch))[position:]


@settings(deadline=None, max_examples=50)
@given(orders, epochs)
def test_seed_and_epoch_decide_the_order(order: BlockOrder, epoch: int) -> None:
    again = BlockOrder(
        num_examples=order.num_examples,
        examples_per_shard=order.examples_per_shard,
        window_groups=order.window_groups,
        seed=order.seed,
    )
    assert list(again.indices(epoch)) == list(order.indices(epoch))


def test_other_seeds_and_epochs_give_other_orders() -> None:
    found = {tuple(make_order(seed=s).indices(e)) for s in range(5) for e in range(5)}
    assert len(found) == 25
    assert tuple(make_order(seed=2**64 + 1).indices(0)) in found  # taken modulo 2^64


def permutation(size: int, *words: int) -> list[int]:
    """SplitMix64 once more, in plain integers, as the document says it."""

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    gamma, state = 0x9E3779B97F4A7C15, 0
    for word in words:
        state = mix(((state ^ word) + gamma) % 2**64)
    return sorted(range(size), key=lambda i: mix((state + (i + 1) * gamma) % 2**64))


def test_the_order_never_changes() -> None:
    """A run that resumes with a later release goes on in the same order."""
    found = [list(islice(make_order().indices(epoch), 6)) for epoch in range(2)]
    assert found == [[541, 218, 538, 253, 3, 12], [1858, 1511, 85, 1913, 1830, 17]]
    one_group = make_order(num_examples=8)
    assert list(make_order(num_examples=8, seed=0).indices(0)) == permutation(8, 0, 0, 1)
    assert list(one_group.indices(5)) == permutation(8, 7, 5, 1)


def test_a_window_of_all_row_groups_is_a_full_shuffle() -> None:
    """Row groups come in no order, and first places go to all examples alike."""
    order = make_order(window_groups=10**6)
    groups = groups_of(order, list(order.indices(3)))
    changes = np.count_nonzero(np.diff(groups))
    assert changes > 0.8 * len(order)
    small = [
        next(BlockOrder(num_examples=10, examples_per_shard=10, window_groups=1, seed=s).indices(e))
        for s in range(40)
        for e in range(50)
    ]
    counts = np.bincount(small, minlength=10)
    assert (abs(counts - 200) < 60).all()  # over 4 standard deviations of a fair draw


def test_a_window_of_one_row_group_keeps_its_responses_together() -> None:
    order = make_order(window_groups=1)
    groups = groups_of(order, list(order.indices(0)))
    starts = row_group_starts(2000, 600)
    assert np.count_nonzero(np.diff(groups)) == len(starts) - 2
    visited = list(dict.fromkeys(groups))
    assert visited != sorted(visited)


@pytest.mark.parametrize("position", [-1, 2001])
def test_positions_outside_are_refused(position: int) -> None:
    with pytest.raises(IndexError, match=f"position {position} of an order of 2000 examples"):
        next(make_order().indices(0, position))
