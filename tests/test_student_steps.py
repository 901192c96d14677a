"""Optimiser steps and their passes: what a step holds never depends on how it is cut."""

import threading
from functools import partial

import numpy as np
import pytest
import torch
from cache_factory import ResponsesInMemory, random_response, random_responses
from hypothesis import given
from hypothesis import strategies as st

from pipeline.student.batches import collate_labels, collate_teacher_rows
from pipeline.student.passes import PassLimit, divide
from pipeline.student.steps import Steps, StepSampler

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(LENGTHS, st.integers(60, 300), st.booleans(), st.integers(1, 5))
def test_passes_keep_the_limit_and_every_response_once(lengths, tokens, padded, num_processes):
    limit = PassLimit(responses=1, tokens=tokens, padded=padded)
    each = divide(np.array(lengths), limit, num_processes)
    assert len({len(passes) for passes in each}) == 1
    assert sorted(np.concatenate([p for passes in each for p in passes])) == [*range(len(lengths))]
    for places in (p for passes in each for p in passes if len(p)):
        held = [lengths[place] for place in places]
        assert (max(held) * len(held) if padded else sum(held)) <= tokens
    # No fewer passes would do: even unpadded and filled to the brim.
    assert len(each[0]) * num_processes * tokens >= sum(lengths)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 4))
def test_without_a_token_budget_passes_count_responses(lengths, responses, num_processes):
    each = divide(np.array(lengths), PassLimit(responses=responses), num_processes)
    sizes = [len(places) for passes in each for places in passes]
    assert max(sizes) <= responses
    assert len(each[0]) == -(-len(lengths) // (responses * num_processes))
    assert max(sizes) == -(-len(lengths) // len(sizes))  # as even as they can be


@given(LENGTHS, st.integers(1, 9), st.none() | st.integers(60, 300), st.integers(0, 99))
def test_padding_is_weighed_within_the_limit(lengths, responses, tokens, fixed):
    limit = PassLimit(responses=responses, tokens=tokens, fixed_tokens=fixed)
    (passes,) = divide(np.array(lengths), limit, 1)
    assert sorted(np.concatenate(passes)) == [*range(len(lengths))]
    for places in passes:
        held = [lengths[place] for place in places]
        assert max(held) * len(held) <= tokens if tokens else len(held) <= responses

    def time(cut):
        return sum(lengths[places[0]] * len(places) + fixed for places in cut)

    fewest = PassLimit(responses=responses, tokens=tokens)
    assert time(passes) <= time(divide(np.array(lengths), fewest, 1)[0])
    assert time(passes) <= sum(lengths) + fixed * len(lengths)  # each by itself


def test_more_passes_only_where_they_save_padding():
    lengths = np.array([20, 100, 20, 19])

    def cut(**limit):
        return [places.tolist() for places in divide(lengths, PassLimit(**limit), 1)[0]]

    assert cut(responses=4) == [[1, 0, 2, 3]]  # 400 padded tokens
    assert cut(responses=4, fixed_tokens=16) == [[1], [0, 2, 3]]  # 160 and another pass
    assert cut(responses=4, fixed_tokens=0) == [[1], [0, 2], [3]]
    assert cut(responses=4, fixed_tokens=300) == [[1, 0, 2, 3]]
    assert cut(responses=2, fixed_tokens=300) == [[1, 0], [2, 3]]
    assert cut(responses=1, tokens=100, fixed_tokens=300) == [[1], [0, 2, 3]]
    assert cut(responses=4, padded=False, fixed_tokens=0) == [[1, 0, 2, 3]]
    each = divide(lengths, PassLimit(responses=4, fixed_tokens=0), 2)  # side by side: as before
    assert [[places.tolist() for places in passes] for passes in each] == [[[1, 0]], [[2, 3]]]


def test_passes_by_hand():
    """Lengths 9 8 7 | 3 2 2 1: three of nine padded are 27 tokens, four of three are 12."""
    lengths = np.array([2, 9, 3, 8, 1, 7, 2])
    ((one, two),) = divide(lengths, PassLimit(responses=1, tokens=30), 1)
    assert ([*one], [*two]) == ([1, 3, 5], [2, 0, 6, 4])
    ((one,), (two,)) = divide(lengths, PassLimit(responses=1, tokens=30), 2)  # side by side
    assert ([*one], [*two]) == ([1, 3, 5], [2, 0, 6, 4])
    ((whole,),) = divide(lengths, PassLimit(responses=1, tokens=32, padded=False), 1)
    assert [*whole] == [1, 3, 5, 2, 0, 6, 4]
    ((one,), (none,)) = divide(np.array([5]), PassLimit(responses=4), 2)
    assert (len(one), len(none)) == (1, 0)


def make_steps(responses, **changes) -> Steps:
    options = {"seed": 3, "responses_per_step": 5, "limit": PassLimit(responses=5), **changes}
    return Steps(responses, partial(collate_teacher_rows, alpha_mode="constant"), **options)


def tokens_of(step) -> list[int]:
    return sorted(label for batch in step.passes for label in batch["response_labels_N"].tolist())


@pytest.mark.parametrize("num_processes", [1, 2, 3, 7])
@pytest.mark.parametrize("tokens", [None, 40])
def test_a_step_holds_the_same_on_any_number_of_processes(num_processes, tokens):
    responses = random_responses(23)
    limit = PassLimit(responses=2, tokens=tokens)
    expected = make_steps(responses)
    each = [
        make_steps(responses, limit=limit, process=process, num_processes=num_processes)
        for process in range(num_processes)
    ]
    for number in range(7):  # across the end of an epoch of five steps, the last of three
        whole, parts = expected.make(number), [steps.make(number) for steps in each]
        assert sorted(sum((tokens_of(part) for part in parts), [])) == tokens_of(whole)
        assert len({len(part.passes) for part in parts}) == 1
        for part in parts:
            assert part.num_response_tokens == whole.num_response_tokens == len(tokens_of(whole))
            assert part.num_tokens == whole.num_tokens


def test_an_epoch_holds_every_response_once_in_the_order_of_the_seed():
    responses = random_responses(23)
    steps = make_steps(responses)
    assert steps.steps_per_epoch == 5
    order = list(responses.order(3).indices(1))
    for number in range(5, 10):
        held = order[(number - 5) * 5 : (number - 4) * 5]
        expected = [label for i in held for label in responses[i].input_ids[
            responses[i].response_start :]]  # fmt: skip
        assert tokens_of(steps.make(number)) == sorted(expected)


def test_held_out_responses_are_in_no_step():
    responses = random_responses(23)
    trained_on = np.arange(23) % 4 != 0
    steps = make_steps(responses, trained_on=trained_on)
    assert steps.steps_per_epoch == 4
    seen = sum((tokens_of(steps.make(number)) for number in range(4)), [])
    kept = [r for r, keep in zip(responses, trained_on, strict=True) if keep]
    assert sorted(seen) == sorted(t for r in kept for t in r.input_ids[r.response_start :])


def test_steps_are_put_together_ahead_and_none_beyond_the_last():
    reads, arrived = [], threading.Event()

    class Watched(ResponsesInMemory):
        def __getitem__(self, index):
            reads.append((threading.current_thread() is threading.main_thread(), index))
            if len(reads) == 10:
                arrived.set()
            return super().__getitem__(index)

    responses = Watched(random_responses(20))
    steps = make_steps(responses, max_steps=2)
    sampler = StepSampler(steps.steps_per_epoch)
    loader = iter(steps.loader(sampler))
    first = next(loader)
    assert set(first) == {"passes", "num_response_tokens", "num_tokens"}
    assert arrived.wait(10)  # the second step was read without being asked for
    next(loader)
    steps.close()
    assert [index for _, index in reads] == list(responses.order(3).indices(0))[:10]
    assert not any(in_main for in_main, _ in reads)
    assert steps.wait_seconds > 0
    assert len(sampler) == 4
    sampler.set_epoch(2)
    assert list(sampler) == [8, 9, 10, 11]


def test_an_error_of_the_thread_reaches_the_caller():
    class Broken(ResponsesInMemory):
        def __getitem__(self, index):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        make_steps(Broken(random_responses(5)))[0]


def test_padding_free_batches_hold_the_padded_ones_rows():
    rng = np.random.default_rng(0)
    responses = [random_response(rng, prompt=3, rows=2), random_response(rng, prompt=1, rows=7)]
    padded, free = (collate_teacher_rows(responses, "surprise", free) for free in (False, True))
    assert free["input_ids"].shape == (1, 13)
    assert free["position_ids"].tolist() == [[*range(5), *range(8)]]
    assert "attention_mask" not in free  # with one, documents would attend to each other
    assert free["response_positions_N"].tolist() == [2, 3, *range(5, 12)]
    shared = set(padded) - {"input_ids", "attention_mask", "labels", "response_positions_N"}
    assert len(shared) == 5
    for name in shared:
        assert torch.equal(free[name], padded[name]), name
    alone = collate_labels(responses, padding_free=True)
    assert set(alone) == {"input_ids", "position_ids", "response_positions_N", "response_labels_N"}
