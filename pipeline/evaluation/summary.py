"""What `evaluate-student` prints when it is done."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.ability_figures import format_tasks
from pipeline.evaluation.confident_answers import RATE
from pipeline.evaluation.corrected_rates import format_corrected
from pipeline.evaluation.rouge import UNSCORED_LETTERS_WARNING
from pipeline.evaluation.table import format_table


def print_summary(scores: dict[str, Any], output: Path, skipped: Sequence[str]) -> None:
    """Print the table of all models, warnings, tasks, comparisons, and where the scores lie.

    Args:
        scores: the content of the scores file.
        output: where it lies.
        skipped: models that were not evaluated again.
    """
    models = scores["models"]
    print(format_table(models))
    share = max((entry["unscored_letter_share"] for entry in models.values()), default=0.0)
    if share > UNSCORED_LETTERS_WARNING:
        print(
            f"warning: {share:.0%} of the references' letters are outside a-z and count nothing in "
            "ROUGE-L"
        )
    print(*format_tasks(models), sep="\n", end="\n" if format_tasks(models) else "")
    for name, entry in models.items():
        for judge, about in entry.get("judges", {}).items():
            if "corrected" in about:
                observed = entry[f"{judge}_consistent_rate"]
                print(format_corrected(name, judge, observed, about["corrected"]))
    _print_confident(scores["confident_answers"])
    _print_comparisons(scores["comparisons"])
    if skipped:
        print(f"already there, not evaluated again: {', '.join(skipped)}")
    print(f"scores: {output}")


def _print_confident(found: dict[str, Any]) -> None:
    """Print how often each model is sure, by the median of all answers, of what is unsupported."""
    for name, targets in found["models"].items():
        parts = [
            f"{target.replace('_', ' ')} {100 * one[RATE]:.1f} %" for target, one in targets.items()
        ]
        if parts:
            print(f"{name}: answers surer than most and unsupported, by {', by '.join(parts)}")


def _print_comparisons(comparisons: dict[str, Any]) -> None:
    """Print the primary comparisons, one sentence a line, and what was not compared."""
    primary = [one for one in comparisons["results"] if one["family"] == "primary"]
    if primary:
        print(f"changes over documents, 95 % intervals; p corrected (Holm) for {len(primary)}:")
    for one in primary:
        print(f"  {one['sentence']}")
    for one in comparisons["tasks"]:
        print(f"  {one['sentence']}")
    for reason in comparisons["not_compared"]:
        print(f"note: {reason}")
