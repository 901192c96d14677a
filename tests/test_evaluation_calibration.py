"""Calibration: a vector by hand, a brute-force loop, bin edges, ties, and the sampling floor."""

import math

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.evaluation.calibration import (
    TokenScores,
    ece_equal_mass,
    ece_equal_width,
    ece_floor,
    measure_calibration,
    pool,
)

PROBS = np.array(
    [
        [0.70, 0.19, 0.11],
        [0.62, 0.30, 0.08],
        [0.55, 0.26, 0.19],
        [0.95, 0.03, 0.02],
        [0.45, 0.34, 0.21],
    ]
)
LABELS = np.array([0, 1, 0, 0, 2])


def scores_of(probs: np.ndarray, labels: np.ndarray) -> TokenScores:
    return TokenScores(
        label_logprobs=np.log(probs[np.arange(len(labels)), labels]),
        confidences=probs.max(axis=1),
        correct=probs.argmax(axis=1) == labels,
        entropies_nats=-(probs * np.log(probs)).sum(axis=1),
        sum_squared_probs=(probs**2).sum(axis=1),
    )


def test_vector() -> None:
    tokens = scores_of(PROBS, LABELS)
    found = measure_calibration(tokens, num_bins=5)
    assert found["num_tokens"] == 5
    assert found["ece"] == pytest.approx(0.074, abs=1e-12)
    assert found["overconfidence_gap"] == pytest.approx(0.054, abs=1e-12)
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["response_nll_nats"] == pytest.approx(0.754085, abs=5e-7)
    assert found["perplexity"] == pytest.approx(math.exp(0.754085), abs=2e-6)
    assert found["brier"] == pytest.approx(0.45424, abs=5e-6)
    assert found["mean_entropy_nats"] == pytest.approx(0.789652, abs=5e-7)
    assert ece_equal_mass(tokens.confidences, tokens.correct, 2) == pytest.approx(0.194, abs=1e-12)


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_equal_width_is_the_brute_force_loop(num_bins: int) -> None:
    generator = np.random.default_rng(3)
    confidences = generator.random(997)
    correct = generator.random(997) < 0.4
    expected = 0.0
    for index in range(num_bins):
        inside = [
            i
            for i, c in enumerate(confidences)
            if min(math.floor(c * num_bins), num_bins - 1) == index
        ]
        if inside:
            accuracy = sum(bool(correct[i]) for i in inside) / len(inside)
            confidence = sum(float(confidences[i]) for i in inside) / len(inside)
            expected += len(inside) / 997 * abs(accuracy - confidence)
    assert ece_equal_width(confidences, correct, num_bins) == pytest.approx(expected, abs=1e-12)


def share_a_bin(first: float, second: float, num_bins: int) -> bool:
    """Errors of opposite sign cancel in a common bin only."""
    confidences, correct = np.array([first, second]), np.array([False, True])
    apart = (first + (1 - second)) / 2
    return ece_equal_width(confidences, correct, num_bins) < apart - 1e-9


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0.25, 0.2499, False),  # an edge belongs to the bin above it
        (0.25, 0.4999, True),
        (0.5, 0.4999, False),
        (1.0, 0.9, True),  # 1 has no bin of its own
        (1.0, 0.75, True),
        (0.75, 0.74, False),
    ],
)
def test_edges_of_equal_width_bins(first: float, second: float, expected: bool) -> None:
    assert share_a_bin(first, second, num_bins=4) is expected


def test_zero_confidence_is_in_the_first_bin() -> None:
    # alone errors 0 and |1 - .2|; together |1 - .2| too, so give the zero an error of its own
    confidences, correct = np.array([0.0, 0.2]), np.array([True, False])
    assert ece_equal_width(confidences, correct, 4) == pytest.approx((1 - 0.2) / 2)
    assert ece_equal_width(confidences, correct, 15) == pytest.approx((1 + 0.2) / 2)


def test_all_correct_and_all_wrong() -> None:
    confidences = np.array([0.9, 0.6, 0.7, 0.99])
    gap = confidences.mean()
    for measure in (ece_equal_width, ece_equal_mass):
        assert measure(confidences, np.ones(4), 15) == pytest.approx(1 - gap)
        assert measure(confidences, np.zeros(4), 15) == pytest.approx(gap)
    assert ece_equal_width(np.ones(3), np.ones(3), 15) == 0.0


def test_equal_mass_splits_ties_by_rank_and_puts_spare_tokens_first() -> None:
    confidences = np.full(5, 0.5)
    correct = np.array([1, 1, 1, 0, 0])  # halves of 3 and 2: errors 1.5 and -1.0
    assert ece_equal_mass(confidences, correct, 2) == pytest.approx(2.5 / 5)
    assert ece_equal_mass(confidences, correct[::-1], 2) == pytest.approx((0.5 + 1.0) / 5)
    assert ece_equal_mass(confidences, correct, 9) == pytest.approx(0.5)  # more bins than tokens


def test_floor() -> None:
    assert ece_floor(np.array([0.5]), 15) == 0.5  # one token is always half off
    assert ece_floor(np.ones(10), 15) == 0.0
    # One bin: E|Binomial(N, 1/2)/N - 1/2| = sqrt(1 / (2 pi N)).
    expected = math.sqrt(1 / (2 * math.pi * 400))
    assert ece_floor(np.full(400, 0.5), 15) == pytest.approx(expected, rel=0.15)
    confidences = np.random.default_rng(0).random(2000)
    assert ece_floor(confidences, 15) == ece_floor(confidences, 15)
    assert ece_floor(confidences, 15) > 2 * ece_floor(np.tile(confidences, 10), 15)


def test_a_calibrated_sample_shows_its_floor() -> None:
    generator = np.random.default_rng(7)
    confidences = generator.uniform(0.2, 1.0, 20_000)
    correct = generator.random(20_000) < confidences
    floor = ece_floor(confidences, 15)
    assert 0.3 * floor < ece_equal_width(confidences, correct, 15) < 2 * floor


def test_pooling_weighs_tokens_not_parts() -> None:
    tokens = scores_of(PROBS, LABELS)
    parts = [scores_of(PROBS[:1], LABELS[:1]), scores_of(PROBS[1:], LABELS[1:])]
    assert measure_calibration(pool(parts), 5) == measure_calibration(tokens, 5)


@pytest.mark.parametrize("measure", [ece_equal_width, ece_equal_mass])
def test_no_tokens_are_refused(measure: object) -> None:
    with pytest.raises(DataError, match="no response tokens"):
        measure(np.array([]), np.array([]), 15)  # type: ignore[operator]
    with pytest.raises(DataError, match="no response tokens"):
        ece_floor(np.array([]), 15)
    with pytest.raises(DataError, match="no response tokens"):
        measure_calibration(pool([]), 15)


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_a_confidence_outside_0_1_is_refused(value: float) -> None:
    with pytest.raises(DataError, match=f"confidence {value} of token 1"):
        ece_equal_width(np.array([0.5, value]), np.array([1, 1]), 15)
