"""Cut the responses of one optimiser step into forward passes, the same number on every process.

A step's responses do not depend on how it is cut, and its loss is a mean over all of its tokens:
the cut decides memory and speed and nothing else. Responses of like length share a pass, so little
is padded; passes of like size run side by side, so no process waits for another. Where a pass is
known to cost little beside its tokens, a process by itself makes more of them than the limit asks
for, as long as that saves more padding than it costs.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLimit:
    """What one forward pass on one device may hold at most.

    Attributes:
        responses: how many, where `tokens` is None.
        tokens: tokens of prompts and responses.
        padded: whether padding counts: each response takes the length of the longest.
        fixed_tokens: how many tokens' time a pass takes beside its tokens; None where that is not
            known, and then as few passes are made as the limit allows.
    """

    responses: int
    tokens: int | None = None
    padded: bool = True
    fixed_tokens: int | None = None

    @property
    def size(self) -> int:
        """The limit, in tokens or responses."""
        return self.responses if self.tokens is None else self.tokens

    def cost(self, longest: int, total: int, count: int) -> int:
        """Return what a pass takes of the limit, from its longest response, tokens and count."""
        if self.tokens is None:
            return count
        return longest * count if self.padded else total


def divide(
    lengths: npt.NDArray[np.integer], limit: PassLimit, num_processes: int
) -> list[list[Int64Array]]:
    """Return for each process the passes it makes, each as places in `lengths`.

    Every process makes the same number, the least that the limit allows; at that number the
    largest pass is as small as it can be. Some are empty where there are fewer responses. One
    process that knows what a pass costs makes those that take the least time instead. A function
    of the arguments alone, so that all processes agree.

    Args:
        lengths: int [R], tokens of each response of the step, each within the limit.
        limit: what a pass may hold.
        num_processes: 1 or more.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    descending = np.asarray(lengths, np.int64)[order].tolist()
    if num_processes == 1 and limit.padded and limit.fixed_tokens is not None:
        return [np.split(order, _quickest_starts(descending, limit)[1:])]
    starts = _starts(descending, limit, limit.size)
    num_each = -(-len(starts) // num_processes)
    low, high = limit.cost(descending[0], descending[0], 1), limit.size
    while low < high:
        middle = (low + high) // 2
        if len(_starts(descending, limit, middle)) <= num_each * num_processes:
            high = middle
        else:
            low = middle + 1
    passes = np.split(order, _starts(descending, limit, high)[1:])
    passes += [order[:0]] * (num_each * num_processes - len(passes))
    return [passes[process::num_processes] for process in range(num_processes)]


def _starts(descending: list[int], limit: PassLimit, size: int) -> list[int]:
    """Return where passes of at most `size` begin when each is filled up in turn."""
    starts, total = [0], 0
    for place, length in enumerate(descending):
        total += length
        if limit.cost(descending[starts[-1]], total, place - starts[-1] + 1) > size:
            starts.append(place)
            total = length
    return starts


def _quickest_starts(descending: list[int], limit: PassLimit) -> list[int]:
    """Return where the passes begin whose padded tokens and fixed costs are the least together.

    The best cut of the first n responses ends with a pass of the last few of them, after the best
    cut of those before (exact, by dynamic programming).
    """
    lengths = np.array(descending, np.int64)
    places = np.arange(len(lengths))
    least = np.zeros(len(lengths) + 1, np.int64)  # time of the first n responses, in tokens
    starts = np.zeros(len(lengths) + 1, np.int64)  # where the last pass of those begins
    for end in range(1, len(lengths) + 1):
        counts = end - places[:end]
        padded = lengths[:end] * counts
        fits = counts <= limit.responses if limit.tokens is None else padded <= limit.tokens
        times = np.where(fits, least[:end] + padded, np.iinfo(np.int64).max)
        starts[end] = times.argmin()
        least[end] = times[starts[end]] + (limit.fixed_tokens or 0)
    found = [len(lengths)]
    while found[-1]:
        found.append(int(starts[found[-1]]))
    return found[:0:-1]
