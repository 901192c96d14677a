"""The answer in words: what distillation changed, with its interval, and nothing more.

Which figure answers is fixed beforehand (the first of factual consistency, factual rate and
invented names that was measured), not picked by its result. Every distilled arm counts, and a
negative finding is worded and shown like a positive one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.report.inputs import Evaluation
from pipeline.report.measures import (
    ECE,
    GAP,
    ROUGE,
    Measure,
    capital,
    find_measures,
    format_change,
)

Verdict = Literal["better", "worse", "mixed", "noise", "changed", "unmeasured"]
LEADS: dict[Verdict, str] = {
    "better": "Better",
    "worse": "Worse",
    "mixed": "Mixed",
    "noise": "Inside noise",
    "changed": "Changed",
    "unmeasured": "Not measured",
}
Result = dict[str, Any]
# Of so many arms or changes a sentence names each; of more, the first, and how many are left.
MOST = 6


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence of the answer.

    Attributes:
        verdict: of all distilled arms together.
        lead: the verdict in words.
        text: the rest of the sentence.
        measure: what it is about; None where nothing could be compared.
        largest: {verdict: the largest change of an arm with it, in words}.
    """

    verdict: Verdict
    lead: str
    text: str
    measure: Measure | None
    largest: dict[str, str] = field(default_factory=dict)


def find_results(evaluation: Evaluation, measure: Measure, against: str = "") -> list[Result]:
    """Return the comparisons of distilled arms in one figure, by rising alpha.

    Those without an interval (too few documents have the figure) are no evidence and left out.

    Args:
        evaluation: where.
        measure: the figure.
        against: behind the baseline's name: "" or " rescaled".
    """
    found = {
        result["model"]: result
        for result in evaluation.scores["comparisons"]["results"]
        if result["figure"] == measure.name
        and result["baseline"] == evaluation.baseline_of(result["model"]) + against
        and result.get("interval") is not None
    }
    return [found[arm.name] for arm in evaluation.arms if arm.role == "kd" and arm.name in found]


def judge_result(evaluation: Evaluation, measure: Measure, result: Result) -> Verdict:
    """Return whether one difference is better, worse or inside noise; "changed" has no direction.

    A figure that should be zero got better if its mean came closer to zero.
    """
    if not result["resolved"]:
        return "noise"
    return point_direction(evaluation, measure, result)


def point_direction(evaluation: Evaluation, measure: Measure, result: Result) -> Verdict:
    """Return the direction of the difference itself, whether or not it is inside noise."""
    change = float(result["difference"])
    if measure.better == "zero":
        before = _baseline_mean(evaluation, measure, result["model"])
        change = abs(before) - abs(before + change)
    elif measure.better == "lower":
        change = -change
    elif measure.better == "neither":
        return "changed"
    if change == 0:
        return "noise"
    return "better" if change > 0 else "worse"


def _baseline_mean(evaluation: Evaluation, measure: Measure, model: str) -> float:
    arm = next(arm for arm in evaluation.arms if arm.name == evaluation.baseline_of(model))
    values = [evaluation.models[model][measure.name] for model in arm.models.values()]
    return float(sum(values) / len(values))


def answer(evaluation: Evaluation) -> list[Finding]:
    """Return the findings of one evaluation: on invention first, then confidence, then ROUGE-L."""
    measures = find_measures(evaluation.models.values())
    faithful = [m for m in measures if m.faithful and find_results(evaluation, m)]
    findings = [find(evaluation, measure) for measure in faithful]
    findings += [find(evaluation, GAP), find(evaluation, ECE, " rescaled")]
    findings.append(find(evaluation, ROUGE))
    found = [finding for finding in findings if finding.verdict != "unmeasured"]
    if faithful and found:
        return found
    return [_unmeasured(evaluation), *found]


def opening(findings: Sequence[Finding]) -> tuple[str, str]:
    """Return the answer over all figures of faithfulness: a few words, and the largest changes.

    Where arms or figures disagree, the largest change to the better and to the worse both stand
    there, whichever is larger.
    """
    faithful = [f for f in findings if f.measure is not None and f.measure.faithful]
    if not faithful:
        return "Not measured", findings[0].text
    better, worse = (_largest(faithful, verdict) for verdict in ("better", "worse"))
    if better and worse:
        return "Both better and worse", f"{better}, but {worse}."
    count = sum(f.verdict in ("better", "worse") for f in faithful)
    figures = f"{count} of {len(faithful)} figures" if len(faithful) > 1 else "the one figure"
    if better:
        return "Yes", f"better by {figures}: {better}."
    if worse:
        return "No", f"worse by {figures}: {worse}."
    return "Not measurably", f"the largest change is that of {_largest(faithful, 'noise')}."


def _largest(findings: Sequence[Finding], verdict: str) -> str | None:
    """Return the first figure's largest change of this verdict: figures have a fixed order."""
    for finding in findings:
        if finding.measure is not None and verdict in finding.largest:
            return f"{finding.measure.label}, {finding.largest[verdict]}"
    return None


def _unmeasured(evaluation: Evaluation) -> Finding:
    if not any(arm.role == "kd" for arm in evaluation.arms):
        reason = (
            "The scores file holds no distilled arm: a model named alpha-X with X above 0, or one "
            "with the record of such a training beside its weights."
        )
    elif not find_measures(evaluation.models.values()):
        reason = "No figure of faithfulness is in the scores file."
    elif any(r.get("interval") is None for r in evaluation.scores["comparisons"]["results"]):
        documents = max(entry["num_documents"] for entry in evaluation.models.values())
        reason = (
            f"No difference in a figure of faithfulness has an interval: {documents} documents are "
            "too few, or too few of them have names and numbers."
        )
    else:
        reason = (
            f"No distilled arm is compared with {evaluation.baseline} in any figure of "
            "faithfulness."
        )
    return Finding("unmeasured", LEADS["unmeasured"], reason, None)


def find(evaluation: Evaluation, measure: Measure, against: str = "") -> Finding:
    """Return the finding on one figure over all distilled arms."""
    results = find_results(evaluation, measure, against)
    if not results:
        return Finding("unmeasured", LEADS["unmeasured"], measure.label, measure)
    verdicts = [judge_result(evaluation, measure, result) for result in results]
    seen = set(verdicts) - {"noise"}
    verdict: Verdict = "noise"
    if seen:
        verdict = next(iter(seen)) if len(seen) == 1 else "mixed"
    against = f"{evaluation.baseline} rescaled by one temperature" if against else ""
    largest: dict[str, str] = {}
    pairs = zip(results, verdicts, strict=True)
    for result, own in sorted(pairs, key=lambda pair: -abs(pair[0]["difference"])):
        change = format_change(measure, result["difference"], result["interval"])
        largest.setdefault(own, f"{change} ({result['model']})")
    text = _sentence(measure, results, verdicts, against)
    return Finding(verdict, LEADS[verdict], text, measure, largest)


def describe_baseline(evaluation: Evaluation) -> str:
    """Return what the distilled arms are compared with, for people."""
    names = {evaluation.baseline_of(arm.name) for arm in evaluation.arms if arm.role == "kd"}
    names = names or {evaluation.baseline}
    plain = all(arm.role == "sft" for arm in evaluation.arms if arm.name in names)
    if len(names) > 1:
        return "plain fine-tuning of the same further settings" if plain else "several baselines"
    (name,) = names
    return f"plain fine-tuning ({name})" if plain else name


def describe_pairs(evaluation: Evaluation) -> str:
    """Return what each arm is compared with, where plain fine-tuning is compared, too."""
    text = describe_baseline(evaluation)
    plain = [arm.name for arm in evaluation.arms if arm.role == "sft"]
    compared = [name for name in plain if name != evaluation.baseline_of(name)]
    several = evaluation.baseline not in text
    return f"{text} ({evaluation.baseline} for that itself)" if compared and several else text


def _sentence(
    measure: Measure, results: Sequence[Result], verdicts: Sequence[Verdict], against: str
) -> str:
    label = measure.label + (f", against {against}" if against else "")
    pairs = list(zip(results, verdicts, strict=True))
    loud = [(result, verdict) for result, verdict in pairs if verdict != "noise"]
    quiet = [result for result, verdict in pairs if verdict == "noise"]
    if not loud:
        largest = max(quiet, key=lambda result: abs(result["difference"]))
        change = format_change(measure, largest["difference"], largest["interval"])
        if len(results) == 1:
            return f"The {label} of {largest['model']} changed by {change}."
        return (
            f"None of {len(results)} distilled arms differs measurably in {label}; the largest "
            f"change is {change} ({largest['model']})."
        )
    # Where not all are named, those that changed most are.
    loud = sorted(loud, key=lambda pair: -abs(pair[0]["difference"])) if len(loud) > MOST else loud
    text = join_first(
        f"{result['model']} {format_change(measure, result['difference'], result['interval'])}"
        + ("" if len(loud) == 1 else f" ({verdict})")
        for result, verdict in loud
    )
    names = join_first((result["model"] for result in quiet), ", ")
    verb = "is" if len(quiet) == 1 else "are"
    return f"{capital(label)}: {text}" + (f"; {names} {verb} inside noise." if quiet else ".")


def join_first(parts: Iterable[str], joint: str = "; ") -> str:
    """Return the first MOST parts in one text, and how many more there are."""
    there = list(parts)
    more = [f"and {len(there) - MOST} more"] if len(there) > MOST else []
    return joint.join(there[:MOST] + more)


def describe(measure: Measure, result: Result) -> str:
    """Return "arm: difference unit [interval] label"."""
    change = format_change(measure, result["difference"], result["interval"])
    return f"{result['model']} {change} {measure.label}"


def describe_basis(evaluation: Evaluation) -> str:
    """Return what the sentences rest on: baseline, seeds, documents."""
    seeds = sorted({len(arm.models) for arm in evaluation.arms if arm.alpha is not None} or {0})
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    documents = sorted({entry["num_documents"] for entry in evaluation.models.values()})
    return (
        f"Changes are against {describe_baseline(evaluation)}, with 95 % intervals, over "
        f"{documents[-1]} documents and {count} training {'seed' if seeds == [1] else 'seeds'}"
        + (", so the scatter between seeds is not in them" if seeds[-1] <= 1 else "")
        + ". Inside noise means: not measured to differ, which is not the same as equal."
    )


def count_seeds(evaluation: Evaluation) -> int:
    """Return the least number of seeds of any arm that was trained; 0 without one."""
    return min((len(arm.models) for arm in evaluation.arms if arm.alpha is not None), default=0)
