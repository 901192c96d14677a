"""The charts of one evaluation in which arms stand against each other: Pareto, reliability."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.arms import Arm
from pipeline.report.charts import axis_label, roles, spread
from pipeline.report.drawing import (
    Chart,
    add_legend,
    colour,
    draw,
    legend_height,
    marker,
    wrap,
)
from pipeline.report.inputs import Evaluation
from pipeline.report.levels import Level, arm_level
from pipeline.report.measures import (
    FACTUAL_RATE,
    NEW_NAMES,
    NEW_NUMBERS,
    ROUGE,
    Measure,
    capital,
    find_measures,
    format_value,
)

MAX_RELIABILITY_ARMS = 7


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
        if (x := arm_level(evaluation.models, arm, first)) is not None
        and (y := arm_level(evaluation.models, arm, second)) is not None
    ]
    if len(points) < 2:
        return None
    labels = [arm.label for arm, _, _ in points]
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
                **marker(number), markersize=7 if number in front else 5,
                linestyle="none", label=wrap(arm.label),
            )  # fmt: skip
        for measure, invert in ((first, axes.invert_xaxis), (second, axes.invert_yaxis)):
            if measure.better == "lower":
                invert()  # up and right is better, whatever is measured
        axes.set_xlabel(axis_label(first))
        axes.set_ylabel(axis_label(second))
        add_legend(figure, axes, labels, ncols=2 if len(labels) > 5 else 1)

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
        height=3.6 + legend_height(labels),
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
    labels = [arm.label for arm in arms]

    def paint(figure: Any) -> None:
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.plot([0, 1], [0, 1], color=colour("soft"), linewidth=1, linestyle="--")
        for number, arm in enumerate(arms):
            bins = curves[arm.name]
            look = {"color": colour(colours[arm.name]), "linewidth": 1.4}
            top.plot(
                [b[1] for b in bins], [b[2] for b in bins], markersize=4,
                label=wrap(arm.label), **marker(number), **look,
            )  # fmt: skip
            total = sum(b[3] for b in bins)
            shares = dict.fromkeys(range(num_bins), 0.0) | {b[0]: b[3] / total * 100 for b in bins}
            edges = [i / num_bins for i in range(num_bins + 1)]
            below.stairs([shares[i] for i in range(num_bins)], edges, baseline=None, **look)
        top.set_ylabel("accuracy")
        top.set_xlim(0, 1)
        top.set_ylim(0, 1)
        add_legend(figure, top, labels, loc="upper left")
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
        height=4.2 + legend_height(labels),
    )


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
