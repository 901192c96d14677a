"""The order of a teacher's epochs, and which examples are held out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.training.epochs import EpochSampler
from pipeline.training.held_out import split_held_out

LENGTHS = [int(n) for n in np.random.default_rng(0).integers(5, 500, 256)]


@dataclass
class Sequence:
    input_ids: Any
    response_start: int


@pytest.mark.parametrize("group_size", [None, 8])
def test_every_example_once_in_an_order_of_seed_and_epoch(group_size):
    sampler = EpochSampler(LENGTHS, 3, group_size)
    first = list(sampler)
    assert sorted(first) == list(range(len(LENGTHS))) != first
    assert list(sampler) == first == list(EpochSampler(LENGTHS, 3, group_size))
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(second) == list(range(len(LENGTHS)))
    assert second != first != list(EpochSampler(LENGTHS, 4, group_size))
    sampler.set_epoch(0)
    assert list(sampler) == first


def padding(order: list[int], size: int) -> int:
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return sum(max(LENGTHS[i] for i in b) * len(b) - sum(LENGTHS[i] for i in b) for b in batches)


def test_groups_save_padding_and_the_longest_comes_first():
    grouped = list(EpochSampler(LENGTHS, 0, 8))
    assert padding(grouped, 8) < 0.5 * padding(list(EpochSampler(LENGTHS, 0)), 8)
    assert LENGTHS[grouped[0]] == max(LENGTHS)


def documents(num: int, copies: int) -> list[Sequence]:
    """Each prompt `copies` times, with other responses."""
    return [
        Sequence(np.array([1, 2 + place % num, 7, 100 + place], np.int32), 3)
        for place in range(num * copies)
    ]


def prompts(examples: list[Sequence]) -> set[tuple[int, ...]]:
    return {tuple(one.input_ids[: one.response_start].tolist()) for one in examples}


def test_a_prompt_is_never_on_both_sides():
    examples = documents(20, 5)
    kept, held_out = split_held_out(examples, 0.2, 0)
    assert len(held_out) == 20
    assert len(kept) == 80
    assert len(prompts(held_out)) == 4
    assert not prompts(kept) & prompts(held_out)
    last_tokens = [one.input_ids[-1] for one in kept]
    assert last_tokens == sorted(last_tokens)  # in the order given
    again = split_held_out(examples[::-1], 0.2, 0)[1]
    assert prompts(again) == prompts(held_out) != prompts(split_held_out(examples, 0.2, 1)[1])
    assert len(split_held_out(examples, 0.001, 0)[1]) == 5


def test_running_text_is_held_out_a_text_at_a_time():
    texts = [Sequence(np.array([1, 50 + place], np.int32), 1) for place in range(10)]
    assert [len(side) for side in split_held_out(texts, 0.3, 0)] == [7, 3]
    opened = [Sequence(np.array([1, 2, 50 + place], np.int32), 2) for place in range(10)]
    assert [len(side) for side in split_held_out(opened, 0.3, 0)] == [7, 3]


def test_a_single_document_cannot_be_split():
    with pytest.raises(DataError, match=r"--eval-share 0.5 of 3 examples with 1 different prompts"):
        split_held_out(documents(1, 3), 0.5, 0)
