"""What the results cost: seconds of the teacher pass, of each training run and evaluation."""

from collections.abc import Iterator
from typing import Any

from pipeline.report.inputs import Inputs

Table = list[tuple[str, str]]


def cost_summary(inputs: Inputs) -> Table:
    """Return (name, value) lines of the sweep's own account, cost.json; [] without one."""
    return [] if inputs.cost is None else list(_flat(inputs.cost, ""))


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            # Seconds of single cells stand in the table of runs.
            if key not in ("cells", "format"):
                yield from _flat(part, f"{name} {key}".strip())
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield name.replace("_", " "), format_number(value)


def format_number(value: str | int | float) -> str:
    """Return a number with thousands separated and at most three decimals, or the text itself."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}".rstrip("0").rstrip(".")


def run_costs(inputs: Inputs) -> list[tuple[str, str, str, str]]:
    """Return (run, training, evaluation, response tokens a second) of every training run.

    Evaluation seconds are summed over the evaluations.
    """
    rows = []
    for cell in inputs.cells:
        record = cell.record or {}
        train = cell.document.get("train_s", record.get("seconds"))
        evaluated = cell.document.get("evaluate_s", _evaluation_seconds(inputs, cell.name))
        rows.append(
            (
                cell.name,
                _seconds(train),
                _seconds(evaluated),
                _rate(record.get("tokens_per_second")),
            )
        )
    return rows


def total_seconds(inputs: Inputs) -> tuple[float, float]:
    """Return the seconds of all training runs and of all evaluations that were recorded."""
    train = [c.document.get("train_s", (c.record or {}).get("seconds")) for c in inputs.cells]
    evaluate = [_evaluation_seconds(inputs, None)]
    return sum(s for s in train if s), sum(s for s in evaluate if s)


def _evaluation_seconds(inputs: Inputs, model: str | None) -> float | None:
    found = [
        entry.get("seconds")
        for evaluation in inputs.evaluations
        for name, entry in evaluation.models.items()
        if model in (None, name)
    ]
    known = [value for value in found if isinstance(value, int | float)]
    return sum(known) if known else None


def _seconds(value: Any) -> str:
    return f"{value:,.0f} s" if isinstance(value, int | float) else "–"


def _rate(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "–"
