"""The headline table: every arm in every figure, with intervals; and all primary comparisons."""

from dataclasses import dataclass

from pipeline.report.findings import judge_result
from pipeline.report.inputs import Evaluation
from pipeline.report.levels import arm_level
from pipeline.report.measures import ARROWS, capital, find_measures, format_interval, format_value


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One arm: its label, role, number of seeds, and (value, interval, verdict) a column.

    A verdict is "" for arms that are not compared or have not changed measurably.
    """

    label: str
    name: str
    role: str
    num_seeds: int
    cells: list[tuple[str, str, str]]


def headline(evaluation: Evaluation) -> tuple[list[tuple[str, str]], list[ArmRow]]:
    """Return the columns (label, unit and good direction) and one row an arm."""
    measures = find_measures(evaluation.models.values())
    verdicts = {}
    for result in evaluation.scores["comparisons"]["results"]:
        for measure in measures:
            own = evaluation.baseline_of(result["model"])
            same = result["figure"] == measure.name and result["baseline"] == own
            if same and result.get("interval") is not None:
                verdict = judge_result(evaluation, measure, result)
                verdicts[result["model"], measure.name] = "" if verdict == "noise" else verdict
    rows = []
    for arm in evaluation.arms:
        cells = []
        for measure in measures:
            level = arm_level(evaluation.models, arm, measure)
            if level is None:
                cells.append(("–", "", ""))
                continue
            value = format_value(measure, level.mean, signed=measure.better == "zero")
            interval = format_interval(measure, level.interval)
            cells.append((value, interval, verdicts.get((arm.name, measure.name), "")))
        rows.append(ArmRow(arm.label, arm.name, arm.role, len(arm.models), cells))
    columns = [(capital(m.label), f"{m.unit} {ARROWS[m.better]}".strip()) for m in measures]
    return columns, rows


def other_comparisons(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return (family, sentence) of every comparison of the scores file, primary ones first."""
    results = evaluation.scores["comparisons"]["results"]
    results = sorted(results, key=lambda result: result["family"] != "primary")
    found = [(result["family"], result["sentence"]) for result in results]
    tasks = evaluation.scores["comparisons"].get("tasks") or []
    return found + [("tasks", str(task.get("sentence"))) for task in tasks]
