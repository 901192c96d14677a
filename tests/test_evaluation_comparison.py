"""Paired comparisons: scipy's tests, false alarms under no difference, seeds, sentences."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

import pipeline.evaluation.comparison as comparison
from pipeline.errors import DataError
from pipeline.evaluation.bootstrap import Figure, Floats, difference, intervals, ratio
from pipeline.evaluation.comparison import (
    Comparison,
    compare,
    compare_over_seeds,
    describe,
    permutation_p_values,
    sign_test,
)
from pipeline.evaluation.correction import benjamini_hochberg, holm


def noise(size: int, seed: int, scale: float = 1.0) -> Floats:
    return np.random.default_rng(seed).normal(0, scale, size)


def one(model: Figure, baseline: Figure, **options: object) -> Comparison:
    return compare({"x": model}, {"x": baseline}, **options)["x"]  # type: ignore[arg-type]


def test_a_clear_change_is_resolved() -> None:
    base = noise(60, 0)
    found = one(ratio(base + 0.5 + noise(60, 1, 0.2)), ratio(base))
    assert found.difference == pytest.approx(0.5, abs=0.08)
    assert found.interval is not None
    assert 0.4 < found.interval[0] < found.difference < found.interval[1] < 0.65
    assert found.p_value == 1 / 10_001
    assert (found.num_ahead, found.num_behind, found.num_documents) == (59, 1, 60)
    assert found.resolved


def test_direction() -> None:
    base, other = noise(40, 0), noise(40, 0) + 1
    assert one(ratio(other), ratio(base)).difference == pytest.approx(1)
    back = one(ratio(base), ratio(other))
    assert back.difference == pytest.approx(-1)
    assert (back.num_ahead, back.num_behind) == (0, 40)


def test_identical_models_differ_by_exactly_nothing() -> None:
    values = noise(30, 0)
    found = one(ratio(values), ratio(values.copy()))
    assert found == Comparison(0.0, (0.0, 0.0), 1.0, 1.0, 0, 0, 30)
    assert not found.resolved


def test_permutation_p_value_is_scipys_exact_one() -> None:
    first, second = noise(9, 1) + 0.6, noise(9, 2)
    exact = scipy.stats.permutation_test(
        (first, second),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
    ).pvalue
    (found,) = permutation_p_values([(ratio(first), ratio(second))], draws=40_000)
    assert found == pytest.approx(exact, abs=0.01)
    assert exact == 10 / 512


def test_permutation_of_a_ratio_is_all_exchanges() -> None:
    tops, bottoms = np.array([[3, 5, 1, 4], [2, 1, 1, 0.0]]), np.array([[4, 6, 3, 5.0]] * 2)
    bottoms[1] += [0, 2, 0, 1]
    observed = abs(tops[0].sum() / bottoms[0].sum() - tops[1].sum() / bottoms[1].sum())
    as_large = 0
    for swap in itertools.product((0, 1), repeat=4):
        rows = np.array(swap), 1 - np.array(swap)
        a, b = (tops[r, range(4)].sum() / bottoms[r, range(4)].sum() for r in rows)
        as_large += abs(a - b) >= observed - 1e-12
    figures = ratio(tops[0], bottoms[0]), ratio(tops[1], bottoms[1])
    (found,) = permutation_p_values([figures], draws=40_000)
    assert found == pytest.approx(as_large / 16, abs=0.01)


@pytest.mark.parametrize(
    ("ahead", "behind"), [(0, 0), (1, 0), (3, 3), (10, 2), (2, 10), (600, 500), (6000, 5800)]
)
def test_sign_test_is_scipys(ahead: int, behind: int) -> None:
    expected = 1.0
    if ahead + behind:
        expected = scipy.stats.binomtest(ahead, ahead + behind).pvalue
    assert sign_test(ahead, behind) == pytest.approx(expected, rel=1e-9)


def test_holm_and_benjamini_hochberg_by_hand() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p_values) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.8, 0.9]) == [1.0, 1.0]
    assert holm([]) == benjamini_hochberg([]) == []


def test_benjamini_hochberg_is_scipys() -> None:
    p_values = list(np.random.default_rng(0).random(30) ** 2)
    expected = scipy.stats.false_discovery_control(p_values)
    assert benjamini_hochberg(p_values) == pytest.approx(list(expected))


@pytest.mark.parametrize("correct", [holm, benjamini_hochberg])
@pytest.mark.parametrize("value", [-0.1, 1.2, math.nan])
def test_a_p_value_outside_0_1_is_refused(correct: object, value: float) -> None:
    with pytest.raises(DataError, match=f"p-value {value} of comparison 1"):
        correct([0.5, value])  # type: ignore[operator]


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_promised() -> None:
    """Two models that differ by noise only: p < .05 in 5 %, by interval or permutation."""
    by_p = by_interval = by_bca = resolved = 0
    for repeat in range(300):
        generator = np.random.default_rng([5, repeat])
        shared = generator.lognormal(0, 1, 50)
        first, second = (ratio(shared * generator.lognormal(0, 0.5, 50)) for _ in range(2))
        found = one(first, second, draws=800, seed=repeat)
        assert found.interval is not None
        by_p += found.p_value < 0.05
        by_interval += not found.interval[0] <= 0 <= found.interval[1]
        bca = replace(difference(first, second), interval="bca")
        low, high = intervals({"x": bca}, draws=800, seed=repeat)["x"] or (0, 0)
        by_bca += not low <= 0 <= high
        resolved += found.resolved
    assert by_p <= 0.09 * 300
    assert by_interval <= 0.11 * 300  # outliers: the percentiles of 50 documents are too narrow
    assert by_bca > by_interval  # why differences do not take BCa
    assert resolved <= min(by_p, by_interval)


def test_several_figures_are_those_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"x": ratio(noise(30, 0) + 0.4), "y": ratio(noise(30, 1), noise(30, 2) ** 2 + 1)}
    baselines = {"x": ratio(noise(30, 3)), "y": ratio(noise(30, 4), noise(30, 2) ** 2 + 1)}
    both = compare(models, baselines)
    assert both["x"].interval == pytest.approx(one(models["x"], baselines["x"]).interval)
    assert both["x"].p_value == one(models["x"], baselines["x"]).p_value
    monkeypatch.setattr(comparison, "BLOCK_CELLS", 100)
    assert compare(models, baselines)["y"].p_value == both["y"].p_value


def test_undefined_figures_are_left_out() -> None:
    full, none = ratio(noise(20, 0)), ratio(np.zeros(20), np.zeros(20))
    assert compare({"x": full, "y": none, "z": full}, {"x": none, "y": full}) == {}
    with pytest.raises(DataError, match="figure is undefined"):
        permutation_p_values([(full, none)])


def test_a_figure_of_no_single_document_has_no_sign_test() -> None:
    found = one(ratio(noise(20, 0)), ratio(noise(20, 1)), without_sign_test=["x"])
    assert (found.sign_p_value, found.num_ahead, found.num_behind) == (None, None, None)


def test_other_documents_are_refused() -> None:
    with pytest.raises(DataError, match="figures over 20 and 21 documents"):
        one(ratio(noise(20, 0)), ratio(noise(21, 0)))


def test_few_documents_are_never_resolved() -> None:
    found = one(ratio(noise(9, 0) + 50), ratio(noise(9, 1)))
    assert found.interval is None
    assert not found.resolved


def seeds(offsets: list[float], size: int = 80) -> list[dict[str, Figure]]:
    shared = noise(size, 0)
    return [{"x": ratio(shared + offset + noise(size, 9, 0.05))} for offset in offsets]


def test_seeds_are_a_level_of_their_own() -> None:
    """Each seed alone is far from zero, in both directions: over seeds there is no effect."""
    model, base = seeds([0.3, -0.28, 0.02]), seeds([0.0, 0.0, 0.0])
    assert one(model[0]["x"], base[0]["x"]).p_value < 0.001
    found = compare_over_seeds(model, base)["x"]
    assert found.by_seed == pytest.approx((0.3, -0.28, 0.02))
    assert found.difference == pytest.approx(0.04 / 3)
    assert found.interval is not None
    assert found.interval[0] < -0.2 < 0.2 < found.interval[1]
    assert not found.resolved
    agreed = compare_over_seeds(seeds([0.3, 0.28, 0.32]), base)["x"]
    assert agreed.resolved
    assert agreed.p_value == 1 / 10_000


def test_over_seeds_too_a_reflected_figure_has_reflected_ends() -> None:
    model, base = seeds([0.3, 0.2, 0.1]), seeds([0.0, 0.0, 0.0])
    plain = compare_over_seeds(model, base)["x"]
    turned = [{"x": replace(one["x"], interval="reflected")} for one in model]
    found = compare_over_seeds(turned, base)["x"]
    assert found.difference == plain.difference
    assert found.interval == pytest.approx(
        [2 * plain.difference - end for end in plain.interval[::-1]]
    )


def test_seeds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(DataError, match="3 training seeds against 2"):
        compare_over_seeds(seeds([0, 0, 0]), seeds([0, 0]))
    with pytest.raises(DataError, match="1 training seed: the seed level"):
        compare_over_seeds(seeds([0]), seeds([0]))


@pytest.mark.parametrize(
    ("found", "scale", "sentence"),
    [
        (
            Comparison(0.013, (0.002, 0.024), 0.02, 0.1, 30, 20, 100),
            100,
            "alpha 0.1 against SFT: factual consistency +1.3 points [0.2, 2.4], p = 0.02",
        ),
        (
            Comparison(0.013, (0.002, 0.024), 0.02, 0.1, 30, 20, 100, None, 0.08),
            100,
            "alpha 0.1 against SFT: factual consistency +1.3 points [0.2, 2.4], p = 0.02, "
            "corrected p = 0.08: inside noise",
        ),
        (
            Comparison(-0.013, (-0.028, 0.002), 0.2, 0.1, 30, 20, 100),
            100,
            "alpha 0.1 against SFT: factual consistency -1.3 points [-2.8, 0.2], p = 0.20: "
            "inside noise",
        ),
        (
            Comparison(0.5123, (0.5078, 0.5172), 0.0001, 0.1, 30, 20, 100, (0.51, 0.5146)),
            1,
            "alpha 0.1 against SFT: factual consistency +0.5123 points [0.5078, 0.5172], "
            "p < 0.001 (by seed: +0.5100, +0.5146)",
        ),
        (
            Comparison(0.013, None, 0.02, 0.1, 3, 2, 5),
            100,
            "alpha 0.1 against SFT: factual consistency +1.30 points, no interval "
            "(only 5 documents)",
        ),
        (
            Comparison(0.013, None, 0.02, 0.1, 3, 2, 50),
            100,
            "alpha 0.1 against SFT: factual consistency +1.30 points, no interval "
            "(too few documents have it)",
        ),
        (
            Comparison(0.0, (0.0, 0.0), 1.0, 1.0, 0, 0, 50),
            100,
            "alpha 0.1 against SFT: factual consistency +0.0 points [0.0, 0.0], p = 1.00: "
            "inside noise",
        ),
    ],
)
def test_sentences(found: Comparison, scale: float, sentence: str) -> None:
    text = describe(
        "alpha 0.1", "SFT", label="factual consistency", unit="points", scale=scale, found=found
    )
    assert text == sentence


def test_interval_and_p_value_must_both_speak() -> None:
    assert Comparison(1, (0.1, 2), 0.01, None, None, None, 50).resolved
    assert not Comparison(1, (0.1, 2), 0.06, None, None, None, 50).resolved
    assert not Comparison(1, (-0.1, 2), 0.01, None, None, None, 50).resolved
    assert not Comparison(1, (0.1, 2), 0.01, None, None, None, 50, None, 0.06).resolved
    assert not Comparison(1, (0.0, 2), 0.01, None, None, None, 50).resolved
