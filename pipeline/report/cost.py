"""What the results cost: the sweep's own account, and the seconds of each run."""

from typing import Any

from pipeline.report.inputs import Inputs

# Of cost.json's totals: name there, what it is, unit.
TOTALS = (
    ("teacher_s", "the teacher's pass over the data, once", "s"),
    ("train_s", "training of all students", "s"),
    ("evaluate_s", "evaluation of all students", "s"),
    ("from_cache_s", "teacher once and all training: from the cache", "s"),
    ("online_s", "the same with the teacher run beside every student (estimated)", "s"),
    ("ratio", "from the cache, as a share of that", ""),
)


def cost_summary(inputs: Inputs) -> list[tuple[str, str]]:
    """Return (what, value) lines of the sweep's account, cost.json; [] without one."""
    totals = {} if inputs.cost is None else inputs.cost["totals"]
    return [
        (label, f"{totals[name]:,.0f} {unit}" if unit else f"{totals[name]:.2f}")
        for name, label, unit in TOTALS
        if isinstance(totals.get(name), int | float)
    ]


def cost_note(inputs: Inputs) -> str:
    """Return how the account was made and what it lacks; "" without one."""
    if inputs.cost is None:
        return ""
    missing = ""
    if inputs.cost.get("teacher_pass") is None:
        missing = "What the teacher's pass took was not recorded, so the saving is unknown. "
    method = str(inputs.cost.get("method") or "")
    return missing + method[:1].upper() + method[1:]


def run_costs(inputs: Inputs) -> list[tuple[str, str, str, str]]:
    """Return (run, training, evaluation, response tokens a second) of every training run.

    Evaluation seconds are summed over the evaluations.
    """
    accounts = {} if inputs.cost is None else inputs.cost.get("cells") or {}
    rows = []
    for cell in inputs.cells:
        record, account = cell.record or {}, accounts.get(cell.name) or cell.document
        train = account.get("train_s", record.get("seconds"))
        evaluated = account.get("evaluate_s", _evaluation_seconds(inputs, cell.name))
        speed = record.get("tokens_per_second")
        rows.append((cell.name, _number(train, " s"), _number(evaluated, " s"), _number(speed, "")))
    return rows


def recorded_seconds(inputs: Inputs) -> tuple[str, str]:
    """Return the seconds of all training runs, and of the evaluations of all models."""
    train = [(cell.record or {}).get("seconds") or 0.0 for cell in inputs.cells]
    return _number(sum(train), " s"), _number(_evaluation_seconds(inputs, None), " s")


def _evaluation_seconds(inputs: Inputs, model: str | None) -> float | None:
    found = [
        entry.get("seconds")
        for evaluation in inputs.evaluations
        for name, entry in evaluation.models.items()
        if model in (None, name)
    ]
    known = [value for value in found if isinstance(value, int | float)]
    return sum(known) if known else None


def _number(value: Any, unit: str) -> str:
    return f"{value:,.0f}{unit}" if isinstance(value, int | float) else "–"
