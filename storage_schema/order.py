"""The order of a shuffled pass over a cache: a pure function of (seed, epoch), numpy only.

Block shuffle: the row groups are permuted, taken in windows of W, and the responses of each
window are permuted. Whoever holds W decoded row groups reads each of them once an epoch, and
position p of an epoch is found without replaying what came before. A window of all row groups
is a full shuffle.

Permutations sort the outputs of SplitMix64 (Steele, Lea and Flood 2014), so that the order
depends on no version of any library.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from storage_schema.layout import ROW_GROUP_RESPONSES

Int64Array = npt.NDArray[np.int64]

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15


def row_group_starts(num_examples: int, examples_per_shard: int) -> Int64Array:
    """Return int64 [row groups + 1]: the first example of each row group, and num_examples.

    Row groups are numbered through all shards; each holds consecutive examples.
    """
    shards = np.arange(0, num_examples, examples_per_shard, dtype=np.int64)
    within = np.arange(0, min(examples_per_shard, num_examples), ROW_GROUP_RESPONSES)
    starts = (shards[:, None] + within).ravel()
    return np.append(starts[starts < num_examples], num_examples)


@dataclass(frozen=True, kw_only=True)
class BlockOrder:
    """The shuffled orders of all epochs of a cache.

    Attributes:
        num_examples: of the cache, 1 or more.
        examples_per_shard: of its plan.
        window_groups: W, row groups shuffled together, 1 or more.
        seed: any integer; another seed gives other orders.
    """

    num_examples: int
    examples_per_shard: int
    window_groups: int
    seed: int

    def __len__(self) -> int:
        return self.num_examples

    def indices(self, epoch: int, position: int = 0) -> Iterator[int]:
        """Yield the examples of `epoch` in its order from `position` (0 to len) on.

        Starting late costs no more than starting at 0: one permutation of the row groups, and
        one of the window that holds the position.

        Raises:
            IndexError: the position is outside.
        """
        if not 0 <= position <= len(self):
            raise IndexError(f"position {position} of an order of {len(self)} examples")
        for chunk in self._windows(epoch, position):
            yield from chunk.tolist()

    def _windows(self, epoch: int, position: int) -> Iterator[Int64Array]:
        """Yield the shuffled examples of each window, the first one cut at `position`."""
        starts, sizes = self._row_groups
        groups = _permutation(len(sizes), self.seed, epoch, 0)
        ends = np.cumsum(sizes[groups])[self.window_groups - 1 :: self.window_groups]
        first = int(np.searchsorted(ends, position, side="right"))
        skipped = position - (int(ends[first - 1]) if first else 0)
        for window in range(first, -(-len(groups) // self.window_groups)):
            members = groups[window * self.window_groups : (window + 1) * self.window_groups]
            examples = np.concatenate(
                [np.arange(starts[g], starts[g] + sizes[g]) for g in members.tolist()]
            )
            yield examples[_permutation(len(examples), self.seed, epoch, 1 + window)][skipped:]
            skipped = 0

    @cached_property
    def _row_groups(self) -> tuple[Int64Array, Int64Array]:
        starts = row_group_starts(self.num_examples, self.examples_per_shard)
        return starts[:-1], np.diff(starts)


def _permutation(size: int, *words: int) -> Int64Array:
    """Return a permutation of 0 to size - 1, int64, that is a function of the words alone.

    The words are folded into one seed; the permutation sorts the numbers by the outputs of
    SplitMix64 from that seed on.
    """
    state = np.zeros(1, np.uint64)
    for word in words:
        state = _mix((state ^ np.uint64(word & _MASK)) + np.uint64(_GAMMA))
    steps = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    return np.argsort(_mix(state + steps), kind="stable")


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the output function of SplitMix64 of each value; arithmetic is modulo 2^64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
