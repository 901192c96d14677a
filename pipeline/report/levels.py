"""An arm's level in one figure: the mean over its seeds, with an interval.

A scores file has an interval over documents for every model, and over documents and seeds for
differences. For the *level* of an arm of A >= 2 seeds the two parts are put together:

    half width = sqrt(mean(half width over documents)^2 + (1.96 sd(seeds) / sqrt(A))^2)

on each side, with the sample standard deviation, within the limits of the figure. All seeds answer
the same documents, so their document parts are taken as fully dependent; both choices make the
interval wide, not narrow.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.arms import Arm
from pipeline.report.measures import Measure

NORMAL_QUANTILE = 1.96


@dataclass(frozen=True, slots=True)
class Level:
    """One arm in one figure, in the figure's own unit.

    Attributes:
        mean: over seeds.
        interval: 95 %; None where a seed has none.
        by_seed: {seed: value}.
    """

    mean: float
    interval: tuple[float, float] | None
    by_seed: dict[str, float]


def arm_level(models: Mapping[str, Mapping[str, Any]], arm: Arm, measure: Measure) -> Level | None:
    """Return the level of an arm, or None where no seed has the figure.

    Args:
        models: the entries of a scores file.
        arm: whose models are looked up there; those missing are left out.
        measure: the figure.
    """
    name = measure.name
    entries = {seed: models[model] for seed, model in arm.models.items() if model in models}
    by_seed = {s: float(e[name]) for s, e in entries.items() if e.get(name) is not None}
    if not by_seed:
        return None
    mean = statistics.fmean(by_seed.values())
    ends = [entries[seed]["intervals"].get(name) for seed in by_seed]
    if any(pair is None for pair in ends):
        return Level(mean, None, by_seed)
    values = list(by_seed.values())
    below = statistics.fmean(v - pair[0] for v, pair in zip(values, ends, strict=True))
    above = statistics.fmean(pair[1] - v for v, pair in zip(values, ends, strict=True))
    seeds = 0.0
    if len(values) > 1:
        seeds = NORMAL_QUANTILE * statistics.stdev(values) / math.sqrt(len(values))
    least, greatest = measure.limits
    low = max(least, mean - math.hypot(below, seeds))
    high = min(greatest, mean + math.hypot(above, seeds))
    return Level(mean, (low, high), by_seed)
