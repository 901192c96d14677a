"""The ways in which distillation is known to fail, each looked for in every report.

A sign is "seen" where the intervals say so, a "hint" where only the means do, else "not seen".
What a claim "distillation reduces hallucination here" needs is listed beside them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.report.arms import Arm
from pipeline.report.findings import (
    count_seeds,
    describe,
    find_results,
    join_first,
    judge_result,
    point_direction,
)
from pipeline.report.inputs import Evaluation
from pipeline.report.measures import (
    DENSITY,
    GAP,
    ROUGE,
    WORDS,
    Measure,
    find_measures,
    format_change,
)
from pipeline.report.predictions import Rows

State = Literal["seen", "hint", "not seen", "not measured"]
ENOUGH_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Sign:
    """One row: what was looked for, whether it is there, and the numbers."""

    name: str
    state: State
    detail: str


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that a claim of less hallucination needs; `met` is None if it was not measured."""

    name: str
    met: bool | None
    detail: str


def find_signs(evaluation: Evaluation, rows: Rows) -> list[Sign]:
    """Return the failure signs of one evaluation.

    Args:
        evaluation: the scores.
        rows: the answers by model name, for what students share with the teacher.
    """
    return [
        _divergence(evaluation),
        _collapse(evaluation),
        _shared_errors(evaluation, rows),
        _copying(evaluation),
        _overconfidence(evaluation),
    ]


def faithful_measures(evaluation: Evaluation) -> list[Measure]:
    """Return the measures of faithfulness in which a distilled arm is compared."""
    measures = find_measures(evaluation.models.values())
    return [m for m in measures if m.faithful and find_results(evaluation, m)]


def _divergence(evaluation: Evaluation) -> Sign:
    name = "Metrics diverge: ROUGE-L up, faithfulness down"
    rouge = {result["model"]: result for result in find_results(evaluation, ROUGE)}
    measures = faithful_measures(evaluation)
    if not rouge or not measures:
        return Sign(
            name, "not measured", "needs intervals of ROUGE-L and of a figure of faithfulness"
        )
    seen: list[str] = []
    hints: list[str] = []
    for measure in measures:
        for result in find_results(evaluation, measure):
            up = rouge.get(result["model"])
            if up is None or up["difference"] <= 0:
                continue
            if point_direction(evaluation, measure, result) != "worse":
                continue
            change = format_change(measure, result["difference"], result["interval"])
            text = f"{describe(ROUGE, up)}, but {change} {measure.label}"
            (seen if up["resolved"] and result["resolved"] else hints).append(text)
    return _sign(name, seen, hints, "no distilled arm gains in one and loses in the other")


def _sign(name: str, seen: Sequence[str], hints: Sequence[str], quiet: str) -> Sign:
    if seen:
        return Sign(name, "seen", join_first(seen))
    if hints:
        return Sign(name, "hint", "inside noise: " + join_first(hints))
    return Sign(name, "not seen", quiet)


def _collapse(evaluation: Evaluation) -> Sign:
    name = "Collapse at high alpha: the largest alpha below its baseline"
    arms = [arm for arm in evaluation.arms if arm.role == "kd"]
    if not arms:
        return Sign(name, "not measured", "there is no distilled arm")
    highest = max(arm.alpha or 0.0 for arm in arms)
    names = {arm.name for arm in arms if arm.alpha == highest}
    found = [
        (measure, result)
        for measure in [ROUGE, *faithful_measures(evaluation)]
        for result in find_results(evaluation, measure)
        if result["model"] in names
    ]
    if not found:
        return Sign(name, "not measured", f"no difference of alpha {highest:g} has an interval")
    seen: list[str] = []
    hints: list[str] = []
    for measure, result in found:
        if point_direction(evaluation, measure, result) == "worse":
            (seen if result["resolved"] else hints).append(describe(measure, result))
    return _sign(name, seen, hints, f"alpha {highest:g} is below in no figure")


def _shared_errors(evaluation: Evaluation, rows: Rows) -> Sign:
    """Count the invented names and numbers that the teacher invents too, for the same document."""
    name = "Students repeat the teacher's inventions"
    teacher = next((arm for arm in evaluation.arms if arm.role == "teacher"), None)
    if teacher is None:
        return Sign(name, "not measured", "the teacher was not evaluated beside the students")
    invented = _inventions(rows, teacher)
    if invented is None:
        return Sign(name, "not measured", "the teacher's answers are not here")
    parts: dict[str, str] = {}
    shares: dict[str, float] = {}
    for arm in evaluation.arms:
        own = _inventions(rows, arm) if arm.alpha is not None else None
        if own:
            shares[arm.name] = len(own & invented) / len(own)
            parts[arm.name] = f"{arm.label}: {len(own & invented)} of {len(own)}"
    if not parts:
        return Sign(name, "not measured", "no student's answers hold an invented name or number")
    text = "invented names and numbers that the teacher's answer to the document has too: "
    base = shares.get(evaluation.baseline)
    distilled = [arm.name for arm in evaluation.arms if arm.role == "kd" and arm.name in shares]
    more = [arm for arm in distilled if base is not None and shares[arm] > base]
    state: State = "not measured" if base is None or not distilled else "not seen"
    # Where not all are named, the baseline and those that repeat more are: they are the hint.
    order = sorted(parts, key=lambda arm: (arm != evaluation.baseline, arm not in more))
    text += join_first(parts[arm] for arm in order)
    # Without an interval it is never more than a hint.
    return Sign(name, "hint" if more else state, text)


def _inventions(rows: Rows, arm: Arm) -> set[tuple[str, str]] | None:
    """Return {(document, name or number)} over all seeds of the arm, None without its rows."""
    lists = [rows[model] for model in arm.models.values() if model in rows]
    if not lists:
        return None
    return {(row.record_id, text) for answers in lists for row in answers for text in row.invented}


def _copying(evaluation: Evaluation) -> Sign:
    name = "Extractiveness rises: answers copy more, or get shorter"
    results = find_results(evaluation, DENSITY)
    if not results:
        return Sign(name, "not measured", "no difference in copying has an interval")
    seen: list[str] = []
    hints: list[str] = []
    for measure, sign in ((DENSITY, 1.0), (WORDS, -1.0)):
        for result in find_results(evaluation, measure):
            if result["difference"] * sign > 0:
                text = describe(measure, result)
                (seen if result["resolved"] else hints).append(text)
    return _sign(name, seen, hints, "no distilled arm copies more or answers shorter")


def _overconfidence(evaluation: Evaluation) -> Sign:
    name = "Confidence moves the wrong way"
    results = find_results(evaluation, GAP)
    if not results:
        return Sign(name, "not measured", "no difference in the gap has an interval")
    worse = [r for r in results if point_direction(evaluation, GAP, r) == "worse"]
    seen = [describe(GAP, r) for r in worse if r["resolved"]]
    hints = [describe(GAP, r) for r in worse if not r["resolved"]]
    return _sign(name, seen, hints, "the gap between confidence and accuracy widens in no arm")


def claim_requirements(evaluation: Evaluation) -> list[Requirement]:
    """Return what "distillation reduces hallucination here" needs, each met or not.

    They are asked of the distilled arm that meets most of them.
    """
    arms = [arm for arm in evaluation.arms if arm.role == "kd"]
    found = [_requirements(evaluation, arm) for arm in arms]
    return max(found, key=lambda rows: sum(row.met is True for row in rows), default=[])


def _requirements(evaluation: Evaluation, arm: Arm) -> list[Requirement]:
    def verdicts(measures: Iterable[Measure]) -> dict[str, str]:
        return {
            m.label: judge_result(evaluation, m, r)
            for m in measures
            for r in find_results(evaluation, m)
            if r["model"] == arm.name
        }

    seeds = count_seeds(evaluation)
    faithful = verdicts(faithful_measures(evaluation))
    better = [label for label, verdict in faithful.items() if verdict == "better"]
    worse = [label for label, verdict in faithful.items() if verdict == "worse"]
    judged = [label for label in faithful if "consistency" in label]
    gap = verdicts([GAP]).get(GAP.label)
    copied = [
        label
        for measure, sign in ((DENSITY, 1.0), (WORDS, -1.0))
        for result in find_results(evaluation, measure)
        if result["model"] == arm.name and result["difference"] * sign > 0 and result["resolved"]
        for label in (measure.label,)
    ]
    tasks = [
        one
        for one in evaluation.scores["comparisons"].get("tasks") or []
        if isinstance(one, dict)
        and one.get("model") == arm.name
        and one.get("figure") != GAP.name  # that is calibration, and lower may be better
    ]
    fell = [one for one in tasks if one.get("resolved") and (one.get("difference") or 0) < 0]
    return [
        Requirement(
            f"At least {ENOUGH_SEEDS} training seeds",
            seeds >= ENOUGH_SEEDS,
            f"the smallest arm has {seeds}",
        ),
        Requirement(
            "Two measures of faithfulness improve, their intervals clear of zero, none gets worse",
            len(better) >= 2 and not worse if len(faithful) >= 2 else None,
            f"{arm.label} improves in {len(better)} of {len(faithful)}"
            + (f" and is worse in {len(worse)}" if worse else ""),
        ),
        Requirement(
            "A judge of factual consistency is one of them",
            any(faithful[label] == "better" for label in judged) if judged else None,
            ", ".join(f"{label}: {faithful[label]}" for label in judged) or "no judge was given",
        ),
        Requirement(
            "Copying and length do not explain it",
            not copied if DENSITY.label in verdicts([DENSITY]) else None,
            "changed: " + ", ".join(copied) if copied else "no measurable change of either",
        ),
        Requirement(
            "Confidence comes closer to accuracy",
            None if gap is None else gap == "better",
            f"over-confidence gap: {'not compared' if gap is None else gap}",
        ),
        Requirement(
            "General ability does not fall",
            not fell if tasks else None,
            f"{len(fell)} of {len(tasks)} figures fall" if tasks else "no task was run",
        ),
    ]
