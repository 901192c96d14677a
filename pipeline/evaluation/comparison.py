"""One model against another on the same documents: difference, interval, p-values, a sentence.

The interval resamples documents (bootstrap.py). The p-value is that of a permutation test: were
the two models alike, exchanging their answers to a document would change nothing, so the
difference is compared with those after exchanging at random. The sign test counts on how many
documents each is ahead. Models trained with several seeds are compared seed by seed.

A change is called resolved only where the interval leaves zero out *and* the p-value, corrected
for the number of comparisons, is below 0.05; anything else is inside noise.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.evaluation.bootstrap import (
    DRAWS,
    MIN_DOCUMENTS,
    SEED,
    Figure,
    Floats,
    Interval,
    difference,
    intervals,
    percentile_interval,
    resample,
    two_level_sample,
)

ALPHA = 0.05
BLOCK_CELLS = 2**23
# Differences of rounding only, so that an exchange that changes nothing counts as equal.
TIE = 1e-12


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a paired comparison found; JSON-ready by `as_json`.

    Attributes:
        difference: figure of the model - figure of the baseline.
        interval: 95 % of the difference; None where there are too few documents.
        p_value: of the permutation test, two-sided; of the two-level bootstrap with seeds.
        sign_p_value: exact binomial over documents ahead and behind; None with seeds, and for
            figures that a single document does not have.
        num_ahead: documents where the model's figure is larger.
        num_behind: documents where it is smaller.
        num_documents: documents compared.
        by_seed: the difference of each training seed; None without seeds.
        corrected_p_value: after the correction named with it; p_value until then.
    """

    difference: float
    interval: Interval | None
    p_value: float
    sign_p_value: float | None
    num_ahead: int | None
    num_behind: int | None
    num_documents: int
    by_seed: tuple[float, ...] | None = None
    corrected_p_value: float | None = None

    @property
    def resolved(self) -> bool:
        """Whether the change stands out of the noise, by interval and corrected p-value both."""
        p_value = self.p_value if self.corrected_p_value is None else self.corrected_p_value
        if self.interval is None:
            return False
        return not self.interval[0] <= 0 <= self.interval[1] and p_value < ALPHA

    def as_json(self) -> dict[str, Any]:
        """Return the fields and `resolved`."""
        return {**dataclasses.asdict(self), "resolved": self.resolved}


def compare(
    models: Mapping[str, Figure],
    baselines: Mapping[str, Figure],
    *,
    without_sign_test: Collection[str] = (),
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, Comparison]:
    """Return {figure name: model - baseline}; figures that either side lacks are left out.

    Args:
        models: the figures of one model, all over the same documents in the same order.
        baselines: the same figures of another model.
        without_sign_test: names of figures that a single document does not have.
        draws: resamples of the interval, and random exchanges of the permutation test.
        seed: of both.

    Raises:
        DataError: the figures have different numbers of documents.
    """
    pairs = _defined(models, baselines)
    changes = {name: difference(*pair) for name, pair in pairs.items()}
    if not changes:
        return {}
    found = intervals(changes, draws, seed)
    p_values = permutation_p_values(list(pairs.values()), draws, seed)
    results = {}
    for (name, pair), p_value in zip(pairs.items(), p_values, strict=True):
        ahead, behind = (None, None) if name in without_sign_test else _documents_ahead(*pair)
        same = np.array_equal(pair[0].sums_DS, pair[1].sums_DS)  # exactly, whatever the rounding
        results[name] = Comparison(
            difference=0.0 if same else _estimate(changes[name]),
            interval=(0.0, 0.0) if same and found[name] is not None else found[name],
            p_value=p_value,
            sign_p_value=None if ahead is None or behind is None else sign_test(ahead, behind),
            num_ahead=ahead,
            num_behind=behind,
            num_documents=len(changes[name].sums_DS),
        )
    return results


def _defined(
    models: Mapping[str, Figure], baselines: Mapping[str, Figure]
) -> dict[str, tuple[Figure, Figure]]:
    return {
        name: (models[name], baselines[name])
        for name in models
        if name in baselines
        and models[name].estimate is not None
        and baselines[name].estimate is not None
    }


def _estimate(figure: Figure) -> float:
    if figure.estimate is None:
        raise DataError("the figure is undefined: there is nothing to compare")
    return figure.estimate


def compare_over_seeds(
    models: Sequence[Mapping[str, Figure]],
    baselines: Sequence[Mapping[str, Figure]],
    *,
    draws: int = DRAWS,
    seed: int = SEED,
) -> dict[str, Comparison]:
    """Return {figure name: mean over training seeds of model - baseline}, paired by seed.

    Interval and p-value are of the two-level bootstrap (documents and seeds), by percentiles, of
    figures with reflected intervals by reflected draws, 2 * estimate - draw; the p-value is
    2 min(share of draws <= 0, share >= 0), at least 1 / draws.

    Raises:
        DataError: fewer than two seeds, unlike numbers of seeds or of documents.
    """
    if len(models) != len(baselines):
        raise DataError(
            f"{len(models)} training seeds against {len(baselines)}: must be the same seeds"
        )
    by_seed = [_defined(*both) for both in zip(models, baselines, strict=True)]
    results = {}
    for name in by_seed[0]:
        if all(name in pairs for pairs in by_seed):
            changes = [difference(*pairs[name]) for pairs in by_seed]
            results[name] = _over_seeds(changes, draws, seed)
    return results


def _over_seeds(changes: Sequence[Figure], draws: int, seed: int) -> Comparison:
    sample_B = two_level_sample(np.stack(resample(changes, draws, seed), axis=1), seed)
    num_documents = len(changes[0].sums_DS)
    values = tuple(_estimate(change) for change in changes)
    mean = sum(values) / len(values)
    if changes[0].interval == "reflected":
        sample_B = 2 * mean - sample_B
    enough = num_documents >= MIN_DOCUMENTS and bool(np.isfinite(sample_B).all())
    share = 2 * min(float((sample_B <= 0).mean()), float((sample_B >= 0).mean()))
    return Comparison(
        difference=mean,
        interval=percentile_interval(sample_B) if enough else None,
        p_value=min(1.0, max(share, 1 / draws)),
        sign_p_value=None,
        num_ahead=None,
        num_behind=None,
        num_documents=num_documents,
        by_seed=values,
    )


def permutation_p_values(
    pairs: Sequence[tuple[Figure, Figure]], draws: int = DRAWS, seed: int = SEED
) -> list[float]:
    """Return (1 + exchanges with a difference at least as large) / (1 + exchanges), two-sided.

    An exchange swaps the two models' sums of each document with probability 1/2, the same
    documents for all figures. One that leaves a figure undefined counts as at least as large.

    Raises:
        DataError: figures over different numbers of documents, or an undefined one.
    """
    observed = [abs(_estimate(difference(*pair))) for pair in pairs]
    gaps_DS = [baseline.sums_DS - model.sums_DS for model, baseline in pairs]
    stacked_DS = np.concatenate(gaps_DS, axis=1)
    ends = np.cumsum([gap.shape[1] for gap in gaps_DS])[:-1]
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_CELLS // len(stacked_DS))
    as_large = np.zeros(len(pairs), dtype=np.int64)
    for start in range(0, draws, block):
        swaps = generator.integers(0, 2, (min(block, draws - start), len(stacked_DS)))
        moved = np.split(swaps.astype(np.float64) @ stacked_DS, ends, axis=1)
        for index, ((model, baseline), part) in enumerate(zip(pairs, moved, strict=True)):
            changes = model.value(model.sums_DS.sum(axis=0) + part)
            changes = np.abs(changes - baseline.value(baseline.sums_DS.sum(axis=0) - part))
            as_large[index] += (~(changes < observed[index] * (1 - TIE) - TIE)).sum()
    return [float((1 + count) / (1 + draws)) for count in as_large]


def sign_test(num_ahead: int, num_behind: int) -> float:
    """Return the exact two-sided binomial p-value of so many ahead and behind, ties left out."""
    trials, fewer = num_ahead + num_behind, min(num_ahead, num_behind)
    term, tail = 1, 0
    for successes in range(fewer + 1):
        tail += term
        term = term * (trials - successes) // (successes + 1)
    # In logs: for many documents the integers exceed a float.
    return min(1.0, math.exp(math.log(2 * tail) - trials * math.log(2)))


def _documents_ahead(model: Figure, baseline: Figure) -> tuple[int, int]:
    changes: Floats = model.value(model.sums_DS) - baseline.value(baseline.sums_DS)
    # A document without the figure (NaN) is ahead of nothing.
    return int((changes > 0).sum()), int((changes < 0).sum())


def describe(
    model: str, baseline: str, *, label: str, unit: str, scale: float, found: Comparison
) -> str:
    """Return the comparison as one sentence for people.

    Args:
        model: its name.
        baseline: name of the other.
        label: what the figure is.
        unit: of the figure times `scale`.
        scale: 100 for shares given in points, else 1.
        found: what to say.
    """
    text = f"{model} against {baseline}: {label} "
    unit = f" {unit}" if unit else ""
    if found.interval is None:
        few = f"only {found.num_documents} documents"
        reason = few if found.num_documents < MIN_DOCUMENTS else "too few documents have it"
        return text + f"{found.difference * scale:+.2f}{unit}, no interval ({reason})"
    low, high = (end * scale for end in found.interval)
    decimals = _decimals((high - low) / 2)
    text += f"{found.difference * scale:+.{decimals}f}{unit} "
    text += f"[{low:.{decimals}f}, {high:.{decimals}f}], p {_p_text(found.p_value)}"
    if found.corrected_p_value is not None and found.corrected_p_value != found.p_value:
        text += f", corrected p {_p_text(found.corrected_p_value)}"
    if found.by_seed is not None:
        values = ", ".join(f"{value * scale:+.{decimals}f}" for value in found.by_seed)
        text += f" (by seed: {values})"
    return text if found.resolved else text + ": inside noise"


def _decimals(half_width: float) -> int:
    """Return the decimals that give half an interval two digits, 1 to 4."""
    if half_width <= 0:
        return 1
    return min(4, max(1, 1 - math.floor(math.log10(half_width))))


def _p_text(p_value: float) -> str:
    if p_value < 0.001:
        return "< 0.001"
    return f"= {p_value:.3f}" if p_value < 0.01 else f"= {p_value:.2f}"
