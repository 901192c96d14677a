"""Figures of general ability from stored items, with intervals over items, and comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.evaluation.bootstrap import Figure, intervals, ratio
from pipeline.evaluation.comparison import Comparison, compare, compare_over_seeds, describe
from pipeline.evaluation.comparisons import group_seeds, pair_seeds
from pipeline.evaluation.correction import benjamini_hochberg
from pipeline.evaluation.multiple_choice import Question, multiple_choice_figures
from pipeline.evaluation.scores import read_rows
from pipeline.evaluation.scores_file import predictions_path

# Calibration over the options, of their log-likelihoods per character as acc_norm has them.
CALIBRATION = ("mean_confidence", "overconfidence_gap", "ece", "brier")


def items_path(output: Path, task: str, model: str) -> Path:
    """Return where the items lie: predictions/<scores file>/<model>.<task>.items.jsonl."""
    return predictions_path(output, f"{model}.{task.replace('/', '_')}.items")


def task_figures(items: Sequence[dict[str, Any]], num_bins: int) -> dict[str, Figure]:
    """Return the means of the metrics that all items have, and calibration over the options."""
    names = [name for name in items[0]["metrics"] if all(name in i["metrics"] for i in items)]
    figures = {name: ratio([item["metrics"][name] for item in items]) for name in names}
    options = [item["options"] for item in items if item["options"] is not None]
    if len(options) == len(items):
        found = multiple_choice_figures(
            [Question(o["loglikelihoods"], o["gold"], o["characters"]) for o in options], num_bins
        )
        figures |= {name: found[name] for name in CALIBRATION}
    return figures


def summarize(items: Sequence[dict[str, Any]], num_bins: int) -> dict[str, Any]:
    """Return the number of items, the figures and their intervals."""
    figures = task_figures(items, num_bins)
    return {
        "num_items": len(items),
        **{name: figure.estimate for name, figure in figures.items()},
        "intervals": intervals(figures),
    }


def compare_tasks(
    scores: dict[str, Any],
    output: Path,
    baseline: str,
    baseline_of: Mapping[str, str],
    num_bins: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return every arm against its baseline on each task that both have, item by item.

    Compared are acc_norm, or else the first metric that both have, and the over-confidence gap.
    Arms are paired as `compare_models` does, seed by seed. All comparisons are exploratory: one
    family, corrected by Benjamini and Hochberg.

    Returns:
        The results, and a line for each arm and task that is not compared.
    """
    found: list[tuple[str, str, str, str, Comparison]] = []
    not_compared = []
    entries = scores["models"].items()
    for task in dict.fromkeys(task for _, entry in entries for task in entry.get("tasks", {})):
        arms = group_seeds(
            {
                name: task_figures(read_rows(items_path(output, task, name)), num_bins)
                for name, entry in entries
                if task in entry.get("tasks", {})
            }
        )
        for arm, seeds in arms.items():
            own = baseline_of.get(arm, baseline)
            if arm == own:
                continue
            try:
                results = _compare_on(arm, seeds, own, arms.get(own, {}))
                found += [(arm, own, task, figure, result) for figure, result in results.items()]
            except DataError as error:
                not_compared.append(f"{task}: {error}")
    p_values = benjamini_hochberg([result.p_value for *_, result in found])
    return [
        _as_json(arm, own, task, figure, replace(result, corrected_p_value=p_value))
        for (arm, own, task, figure, result), p_value in zip(found, p_values, strict=True)
    ], not_compared


def _compare_on(
    arm: str,
    seeds: Mapping[str, Mapping[str, Figure]],
    baseline: str,
    baselines: Mapping[str, Mapping[str, Figure]],
) -> dict[str, Comparison]:
    """Return {figure: comparison}.

    Raises:
        DataError: the baseline lacks the task, or they have no metric in common.
    """
    if not baselines:
        raise DataError(f"{arm} is not compared with {baseline}, which has no figures of it")
    pairs = pair_seeds(arm, seeds, baseline, baselines)
    common = [f for f in pairs[0][0] if all(f in one for pair in pairs for one in pair)]
    metrics = [figure for figure in common if figure not in CALIBRATION]
    if not metrics:
        raise DataError(f"{arm} is not compared with {baseline}: no metric in common")
    chosen = ["acc_norm" if "acc_norm" in metrics else metrics[0]]
    chosen += [figure for figure in common if figure == "overconfidence_gap"]
    models, others = (
        [{figure: one[figure] for figure in chosen} for one in side]
        for side in zip(*pairs, strict=True)
    )
    return compare_over_seeds(models, others) if len(pairs) > 1 else compare(models[0], others[0])


def _as_json(
    model: str, baseline: str, task: str, figure: str, result: Comparison
) -> dict[str, Any]:
    label = f"{task} {figure}".replace("overconfidence_gap", "over-confidence gap")
    return {
        "model": model,
        "baseline": baseline,
        "task": task,
        "figure": figure,
        "family": "exploratory",
        "correction": "benjamini-hochberg",
        **result.as_json(),
        "sentence": describe(
            model, baseline, label=label, unit="points", scale=100.0, found=result
        ),
    }


def format_tasks(models: dict[str, Any]) -> list[str]:
    """Return one line for each model and task; [] without tasks."""
    return [
        f"{name}, {task} ({one['num_items']} items): "
        + ", ".join(
            f"{metric} {100 * one[metric]:.1f}{_ends(one['intervals'][metric])}"
            for metric in ("acc", "acc_norm")
            if one.get(metric) is not None
        )
        for name, entry in models.items()
        for task, one in entry.get("tasks", {}).items()
    ]


def _ends(interval: Any) -> str:
    return "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
