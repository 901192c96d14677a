"""The charts of one evaluation over alpha: box plots of runs, and curves with intervals."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.arms import Arm
from pipeline.report.drawing import (
    HEIGHT_INCHES,
    Chart,
    add_legend,
    colour,
    draw,
    legend_height,
    marker,
    ramp_role,
    shorten,
    wrap,
)
from pipeline.report.inputs import Evaluation
from pipeline.report.levels import Level, arm_level
from pipeline.report.measures import (
    ARROWS,
    Measure,
    capital,
    format_interval,
    format_value,
)

# Quartiles of fewer runs say nothing.
MIN_BOX_RUNS = 5


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
        levels = [arm_level(evaluation.models, arm, measure) for arm in arms]
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
    levels = {arm.name: arm_level(evaluation.models, arm, measure) for arm in arms}
    alphas = sorted({arm.alpha or 0.0 for arm in arms if levels[arm.name] is not None})
    if len(alphas) < 2:
        return None
    curves = _curves(arms)
    labels = [label for label, _, _ in curves]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for number, curve in enumerate(curves):
            _paint_curve(axes, curve, levels, alphas, (number, len(curves)), measure)
        for arm in evaluation.arms:
            level = arm_level(evaluation.models, arm, measure)
            if arm.alpha is None and level is not None:
                style = "--" if arm.role == "teacher" else ":"
                value = level.mean * measure.scale
                axes.axhline(value, color=colour(arm.role), linestyle=style, linewidth=1.2)
                axes.text(
                    1.0, value, shorten(arm.label), color=colour(arm.role), fontsize=9, ha="right",
                    va="bottom", transform=axes.get_yaxis_transform(),
                )  # fmt: skip
        axes.set_xticks(range(len(alphas)), [f"{a:g}" if a else "0 (SFT)" for a in alphas])
        axes.set_xlabel("alpha (not to scale)")
        axes.set_ylabel(axis_label(measure))
        axes.margins(x=0.08)
        if len(curves) > 1:
            add_legend(figure, axes, labels)

    rows = [
        (arm.label, format_value(measure, level.mean), format_interval(measure, level.interval))
        for arm in evaluation.arms
        if (level := arm_level(evaluation.models, arm, measure)) is not None
    ]
    return draw(
        f"{evaluation.name}-alpha-{measure.name}",
        capital(f"{measure.label} over alpha {ARROWS[measure.better]}".strip()),
        "Mean over seeds with 95 % intervals; small dots are single seeds; dashed and dotted lines "
        "are models that were not trained here.",
        paint,
        header=("arm", axis_label(measure), "95 %"),
        rows=rows,
        height=HEIGHT_INCHES + (legend_height(labels) if len(curves) > 1 else 0.0),
    )


Curve = tuple[str, str, list[Arm]]


def _curves(arms: Sequence[Arm]) -> list[Curve]:
    """Return (label, colour's role, arms) of each curve: the arms of one variant.

    Plain fine-tuning has a curve of its own where it has no settings of the teacher's term.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.variant, []).append(arm)
    kd = [variant for variant, same in groups.items() if any(a.role == "kd" for a in same)]
    blues = {variant: ramp_role(number, len(kd)) for number, variant in enumerate(kd)}
    return [
        (variant.replace(",", ", ") or "distilled", blues[variant], same)
        if variant in blues
        else (same[0].label, "sft", same)
        for variant, same in groups.items()
    ]


def _paint_curve(
    axes: Any,
    curve: Curve,
    levels: Mapping[str, Level | None],
    alphas: Sequence[float],
    order: tuple[int, int],
    measure: Measure,
) -> None:
    number, count = order
    label, role, arms = curve
    # Curves of several variants stand a little beside each other, so that intervals can be seen.
    shift = (number - (count - 1) / 2) * 0.08
    xs, ys, lows, highs = [], [], [], []
    for arm in arms:
        level = levels[arm.name]
        if level is None:
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
        xs, ys, yerr=[lows, highs], color=colour(role), **marker(number), markersize=5,
        capsize=3, linewidth=1.6, elinewidth=1.1, label=wrap(label),
    )  # fmt: skip


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` of the items evenly spaced, the first and last among them."""
    if len(items) <= count:
        return list(items)
    if count <= 1:
        return list(items[:count])
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
