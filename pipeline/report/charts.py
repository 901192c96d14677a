"""The charts of one evaluation: runs per alpha, alpha curves, Pareto front, reliability."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.arms import Arm
from pipeline.report.drawing import MARKERS, Chart, colour, draw, ramp_role
from pipeline.report.inputs import Evaluation
from pipeline.report.levels import Level, arm_level
from pipeline.report.measures import (
    ARROWS,
    FACTUAL_RATE,
    NEW_NAMES,
    NEW_NUMBERS,
    ROUGE,
    Measure,
    capital,
    find_measures,
    format_interval,
    format_value,
)

# Quartiles of fewer runs say nothing.
MIN_BOX_RUNS = 5
MAX_RELIABILITY_ARMS = 7


def roles(arms: Sequence[Arm]) -> dict[str, str]:
    """Return {arm: role of its colour}; distilled arms take blues, darker for a larger alpha."""
    alphas = sorted({arm.alpha or 0.0 for arm in arms if arm.role == "kd"})
    blues = {alpha: ramp_role(number, len(alphas)) for number, alpha in enumerate(alphas)}
    return {arm.name: blues[arm.alpha or 0.0] if arm.role == "kd" else arm.role for arm in arms}


def runs_chart(evaluation: Evaluation, measure: Measure) -> Chart | None:
    """Return box plots of training runs: SFT, all distilled together, each alpha; None without."""
    groups = run_groups(evaluation, measure)
    if not groups:
        return None

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for place, (_, role, values, interval) in enumerate(groups):
            _paint_runs(axes, place, role, values, interval, measure.scale)
        axes.set_xticks(range(len(groups)), [label for label, *_ in groups])
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel(axis_label(measure))

    rows = [
        (
            label,
            str(len(values)),
            format_value(measure, statistics.median(values)),
            format_value(measure, min(values)),
            format_value(measure, max(values)),
        )
        for label, _, values, _ in groups
    ]
    several = any(len(values) >= MIN_BOX_RUNS for _, _, values, _ in groups)
    box = (
        "box: quartiles, line: median, whiskers: all runs"
        if several
        else (f"no boxes, because no group has {MIN_BOX_RUNS} runs")
    )
    return draw(
        f"{evaluation.name}-runs-{measure.name}",
        capital(f"{measure.label} by alpha {ARROWS[measure.better]}".strip()),
        f"One dot a trained model (its mean over documents); {box}. A single dot has its interval "
        "over documents.",
        paint,
        header=("group", "runs", "median", "least", "largest"),
        rows=rows,
    )


Group = tuple[str, str, list[float], tuple[float, float] | None]


def run_groups(evaluation: Evaluation, measure: Measure) -> list[Group]:
    """Return (label, colour's role, one value a run, interval of a single run) of each group."""
    trained = [arm for arm in evaluation.arms if arm.alpha is not None]
    colours = roles(evaluation.arms)
    kd = [arm for arm in trained if arm.role == "kd"]
    groups = [("SFT", "sft", [arm for arm in trained if arm.role == "sft"])]
    if len({arm.alpha for arm in kd}) > 1:
        groups.append(("KD, all", "kd", kd))
    for alpha in sorted({arm.alpha or 0.0 for arm in kd}):
        same = [arm for arm in kd if arm.alpha == alpha]
        groups.append((f"α {alpha:g}", colours[same[0].name], same))
    found: list[Group] = []
    for label, role, arms in groups:
        levels = [arm_level(evaluation.models, arm, measure.name) for arm in arms]
        values = [v for level in levels if level is not None for v in level.by_seed.values()]
        single = levels[0].interval if len(values) == 1 and levels[0] is not None else None
        if values:
            found.append((label, role, values, single))
    return found


def _paint_runs(
    axes: Any,
    place: int,
    role: str,
    values: Sequence[float],
    interval: tuple[float, float] | None,
    scale: float,
) -> None:
    shown = [value * scale for value in values]
    line = {"color": colour(role), "linewidth": 1.4}
    if interval is not None:
        axes.vlines(place, interval[0] * scale, interval[1] * scale, **line)
    if len(shown) >= MIN_BOX_RUNS:
        axes.boxplot(
            [shown],
            positions=[place],
            widths=0.55,
            whis=(0, 100),
            boxprops=line,
            whiskerprops=line,
            capprops=line,
            medianprops={**line, "linewidth": 2.2},
            manage_ticks=False,
        )
    # Spread sideways in a fixed pattern, so that equal runs can be counted.
    width = 0.22 if len(shown) > 1 else 0.0
    steps = [((7 * number) % 11 / 10 - 0.5) * 2 * width for number in range(len(shown))]
    axes.plot(
        [place + step for step in steps],
        shown,
        linestyle="none",
        marker="o",
        markersize=4.5 if len(shown) < 20 else 3,
        markerfacecolor=colour(role),
        markeredgecolor=colour("paper"),
        markeredgewidth=0.6,
    )


def axis_label(measure: Measure) -> str:
    """Return the label of an axis: name, unit, good direction."""
    return f"{measure.label}, {measure.unit} {ARROWS[measure.better]}".strip()


def alpha_chart(evaluation: Evaluation, measure: Measure) -> Chart | None:
    """Return the curve of a figure over alpha with intervals; None without two alphas."""
    arms = [arm for arm in evaluation.arms if arm.alpha is not None]
    levels = {arm.name: arm_level(evaluation.models, arm, measure.name) for arm in arms}
    alphas = sorted({arm.alpha or 0.0 for arm in arms if levels[arm.name] is not None})
    if len(alphas) < 2:
        return None
    variants = list(dict.fromkeys(arm.variant for arm in arms))

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for number, variant in enumerate(variants):
            _paint_curve(axes, arms, levels, alphas, variant, (number, len(variants)), measure)
        for arm in evaluation.arms:
            level = arm_level(evaluation.models, arm, measure.name)
            if arm.alpha is None and level is not None:
                style = "--" if arm.role == "teacher" else ":"
                value = level.mean * measure.scale
                axes.axhline(value, color=colour(arm.role), linestyle=style, linewidth=1.2)
                axes.text(
                    1.0, value, arm.label, color=colour(arm.role), fontsize=9, ha="right",
                    va="bottom", transform=axes.get_yaxis_transform(),
                )  # fmt: skip
        axes.set_xticks(range(len(alphas)), [f"{a:g}" if a else "0 (SFT)" for a in alphas])
        axes.set_xlabel("alpha (not to scale)")
        axes.set_ylabel(axis_label(measure))
        axes.margins(x=0.08)
        if len(variants) > 1:
            axes.legend()

    rows = [
        (arm.label, format_value(measure, level.mean), format_interval(measure, level.interval))
        for arm in evaluation.arms
        if (level := arm_level(evaluation.models, arm, measure.name)) is not None
    ]
    return draw(
        f"{evaluation.name}-alpha-{measure.name}",
        capital(f"{measure.label} over alpha {ARROWS[measure.better]}".strip()),
        "Mean over seeds with 95 % intervals; small dots are single seeds; dashed and dotted lines "
        "are models that were not trained here.",
        paint,
        header=("arm", axis_label(measure), "95 %"),
        rows=rows,
    )


def _paint_curve(
    axes: Any,
    arms: Sequence[Arm],
    levels: Mapping[str, Level | None],
    alphas: Sequence[float],
    variant: str,
    order: tuple[int, int],
    measure: Measure,
) -> None:
    number, count = order
    role = ramp_role(number, count)
    # Curves of several variants stand a little beside each other, so that intervals can be seen.
    shift = (number - (count - 1) / 2) * 0.08
    xs, ys, lows, highs = [], [], [], []
    for arm in arms:
        level = levels[arm.name]
        if arm.variant != variant or level is None:
            continue
        x, y = alphas.index(arm.alpha or 0.0) + shift, level.mean * measure.scale
        low, high = level.interval or (level.mean, level.mean)
        xs.append(x)
        ys.append(y)
        lows.append(y - low * measure.scale)
        highs.append(high * measure.scale - y)
        if len(level.by_seed) > 1:
            seeds = [value * measure.scale for value in level.by_seed.values()]
            axes.plot([x] * len(seeds), seeds, ".", color=colour(role), markersize=4, alpha=0.6)
    axes.errorbar(
        xs, ys, yerr=[lows, highs], color=colour(role), marker=MARKERS[number % len(MARKERS)],
        markersize=5, capsize=3, linewidth=1.6, elinewidth=1.1, label=variant or "distilled",
    )  # fmt: skip


def pareto_measures(evaluation: Evaluation) -> tuple[Measure, Measure] | None:
    """Return the two measures of the Pareto plot: factual rate against factual consistency.

    Where one is missing, the next takes its place: names and numbers that the source has, at
    last ROUGE-L. None where fewer than two were measured.
    """
    found = find_measures(evaluation.models.values())
    judges = [m for m in found if m.faithful and m not in (FACTUAL_RATE, NEW_NAMES, NEW_NUMBERS)]
    wanted = [FACTUAL_RATE, *judges[:1], NEW_NAMES, ROUGE]
    there = [measure for measure in wanted if measure in found]
    return (there[0], there[1]) if len(there) >= 2 else None


def pareto_chart(evaluation: Evaluation) -> Chart | None:
    """Return each arm at its two faithfulness figures, with the front of those not dominated."""
    pair = pareto_measures(evaluation)
    if pair is None:
        return None
    first, second = pair
    colours = roles(evaluation.arms)
    points = [
        (arm, x, y)
        for arm in evaluation.arms
        if (x := arm_level(evaluation.models, arm, first.name)) is not None
        and (y := arm_level(evaluation.models, arm, second.name)) is not None
    ]
    if len(points) < 2:
        return None
    front = pareto_front([(x.mean * _sign(first), y.mean * _sign(second)) for _, x, y in points])

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        line = sorted((points[i][1].mean * first.scale, points[i][2].mean * second.scale)
                      for i in front)  # fmt: skip
        axes.plot(*zip(*line, strict=True), color=colour("front"), linewidth=1.2, linestyle="--")
        for number, (arm, x, y) in enumerate(points):
            role = colours[arm.name]
            axes.errorbar(
                x.mean * first.scale, y.mean * second.scale, xerr=_sides(x, first.scale),
                yerr=_sides(y, second.scale), color=colour(role), elinewidth=0.8, alpha=0.9,
                marker=MARKERS[number % len(MARKERS)], markersize=7 if number in front else 5,
                linestyle="none", label=arm.label,
            )  # fmt: skip
        for measure, invert in ((first, axes.invert_xaxis), (second, axes.invert_yaxis)):
            if measure.better == "lower":
                invert()  # up and right is better, whatever is measured
        axes.set_xlabel(axis_label(first))
        axes.set_ylabel(axis_label(second))
        axes.legend(ncols=2 if len(points) > 5 else 1)

    rows = [
        (
            arm.label,
            format_value(first, x.mean),
            format_value(second, y.mean),
            "on the front" if number in front else "",
        )
        for number, (arm, x, y) in enumerate(points)
    ]
    return draw(
        f"{evaluation.name}-pareto",
        capital(f"{first.label} against {second.label}"),
        "Up and right is better. The dashed line joins the arms that no other beats in both means; "
        "crosses are 95 % intervals, and where they overlap the front is not a finding.",
        paint,
        header=("arm", axis_label(first), axis_label(second), "front"),
        rows=rows,
        height=3.6,
    )


def _sign(measure: Measure) -> float:
    return -1.0 if measure.better == "lower" else 1.0


def _sides(level: Level, scale: float) -> list[list[float]] | None:
    if level.interval is None:
        return None
    low, high = level.interval
    return [[(level.mean - low) * scale], [(high - level.mean) * scale]]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which points no other is at least as good as in both and better in one.

    Args:
        points: larger is better in both.
    """
    return [
        i
        for i, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)
    ]


def reliability_chart(evaluation: Evaluation) -> Chart | None:
    """Return accuracy over confidence for teacher, SFT and distilled arms, tokens below."""
    num_bins = int(evaluation.scores["settings"]["calibration"].get("bins") or 0)
    arms = [arm for arm in evaluation.arms if arm.role != "untouched"]
    dropped = len(arms) - MAX_RELIABILITY_ARMS
    if dropped > 0:
        kd = [arm for arm in arms if arm.role == "kd"]
        others = [arm for arm in arms if arm.role != "kd"][: MAX_RELIABILITY_ARMS - 2]
        arms = others + spread(kd, MAX_RELIABILITY_ARMS - len(others))
    curves = {arm.name: pool_bins(evaluation.models, arm, num_bins) for arm in arms}
    arms = [arm for arm in arms if curves[arm.name]]
    if not arms or num_bins < 1:
        return None
    colours = roles(evaluation.arms)

    def paint(figure: Any) -> None:
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.plot([0, 1], [0, 1], color=colour("soft"), linewidth=1, linestyle="--")
        for number, arm in enumerate(arms):
            bins = curves[arm.name]
            look = {"color": colour(colours[arm.name]), "linewidth": 1.4}
            top.plot(
                [b[1] for b in bins], [b[2] for b in bins], markersize=4, label=arm.label,
                marker=MARKERS[number % len(MARKERS)], **look,
            )  # fmt: skip
            total = sum(b[3] for b in bins)
            shares = dict.fromkeys(range(num_bins), 0.0) | {b[0]: b[3] / total * 100 for b in bins}
            edges = [i / num_bins for i in range(num_bins + 1)]
            below.stairs([shares[i] for i in range(num_bins)], edges, baseline=None, **look)
        top.set_ylabel("accuracy")
        top.set_xlim(0, 1)
        top.set_ylim(0, 1)
        top.legend(loc="upper left")
        below.set_ylabel("tokens, %")
        below.set_xlabel("confidence")

    rows = [
        (arm.label, f"{b[1]:.3f}", f"{b[2]:.3f}", str(b[3]))
        for arm in arms
        for b in curves[arm.name]
    ]
    left_out = f" {dropped} distilled arms are left out, evenly over alpha." if dropped > 0 else ""
    return draw(
        f"{evaluation.name}-reliability",
        "Reliability on the gold tokens",
        "Below the diagonal a model is surer than it is right. Below: the share of tokens at each "
        "confidence; bins with few tokens scatter. Seeds are pooled." + left_out,
        paint,
        header=("arm", "confidence", "accuracy", "tokens"),
        rows=rows,
        height=4.2,
    )


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` of the items evenly spaced, the first and last among them."""
    if len(items) <= count:
        return list(items)
    if count <= 1:
        return list(items[:count])
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def pool_bins(
    models: Mapping[str, Mapping[str, Any]], arm: Arm, num_bins: int
) -> list[tuple[int, float, float, int]]:
    """Return (bin, mean confidence, accuracy, tokens) of the equal-width bins over all seeds."""
    sums: dict[int, list[float]] = {}
    for model in arm.models.values():
        for part in models[model]["reliability"]["equal_width"]:
            # The stored bins leave empty ones out; a bin's mean lies in it.
            index = min(int(part["mean_confidence"] * num_bins), num_bins - 1)
            totals = sums.setdefault(index, [0.0, 0.0, 0.0])
            tokens = part["num_tokens"]
            totals[0] += part["mean_confidence"] * tokens
            totals[1] += part["accuracy"] * tokens
            totals[2] += tokens
    return [
        (index, confidence / tokens, correct / tokens, int(tokens))
        for index, (confidence, correct, tokens) in sorted(sums.items())
    ]
