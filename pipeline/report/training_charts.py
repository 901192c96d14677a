"""Training curves: the parts of the loss over optimizer steps, one line an arm."""

import statistics
from collections.abc import Sequence
from typing import Any

from pipeline.report.arms import Arm, group_arms
from pipeline.report.charts import roles, spread
from pipeline.report.drawing import (
    HEIGHT_INCHES,
    Chart,
    add_legend,
    colour,
    draw,
    legend_height,
    marker,
    wrap,
)
from pipeline.report.inputs import Cell

PARTS = (
    ("ce", "cross-entropy on the gold tokens, nats"),
    ("kl", "divergence from the teacher, nats"),
)
# More points than that cannot be told apart on a screen.
MAX_POINTS = 120
MAX_LINES = 10

Curve = list[tuple[int, float]]


def training_charts(cells: Sequence[Cell]) -> list[Chart]:
    """Return a chart for each part of the loss that was recorded."""
    return [chart for part, label in PARTS if (chart := _chart(cells, part, label)) is not None]


def _chart(cells: Sequence[Cell], part: str, label: str) -> Chart | None:
    records = {cell.name: cell.record for cell in cells if cell.record is not None}
    arms = group_arms(records, records)
    curves = {arm.name: mean_curve([_curve(records[n], part) for n in arm.models.values()])
              for arm in arms}  # fmt: skip
    there = [arm for arm in arms if curves[arm.name]]
    arms = spread(there, MAX_LINES)
    if not arms:
        return None
    colours = roles(there)
    labels = [arm.label for arm in arms]

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for number, arm in enumerate(arms):
            steps, values = zip(*curves[arm.name], strict=True)
            axes.plot(
                steps, values, color=colour(colours[arm.name]), linewidth=1.4, markersize=4,
                label=wrap(arm.label), markevery=max(1, len(steps) // 8), **marker(number),
            )  # fmt: skip
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        add_legend(figure, axes, labels)

    left_out = f" {len(there) - len(arms)} arms are left out." if len(there) > len(arms) else ""
    return draw(
        f"training-{part}",
        label.partition(",")[0].capitalize() + " while training",
        "Mean over seeds at each recorded step." + left_out,
        paint,
        header=("arm", "first", "last", "steps"),
        rows=[_row(arm, curves[arm.name]) for arm in arms],
        height=HEIGHT_INCHES + legend_height(labels),
    )


def _row(arm: Arm, curve: Curve) -> tuple[str, ...]:
    return arm.label, f"{curve[0][1]:.3f}", f"{curve[-1][1]:.3f}", str(curve[-1][0])


def _curve(record: Any, part: str) -> Curve:
    history = record.get("history") or []
    return [
        (int(entry["step"]), float(entry[part]))
        for entry in history
        if isinstance(entry.get(part), int | float) and isinstance(entry.get("step"), int)
    ]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean at each step that all curves have, at most MAX_POINTS evenly spaced."""
    tables = [dict(curve) for curve in curves if curve]
    if not tables:
        return []
    steps = sorted(set.intersection(*(set(table) for table in tables)))
    shown = spread(steps, MAX_POINTS)
    return [(step, statistics.fmean(table[step] for table in tables)) for step in shown]
