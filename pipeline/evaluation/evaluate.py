"""The stage `evaluate-student`: every model answers the dataset's prompts and reads its gold text.

One model after the other is loaded, answers, reads the gold text and, with a lens, its own
answers; what is there already is left as it is. Then judges read the stored answers, tasks are
run, and all models of the scores file are compared with the baseline.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import OutputExistsError
from pipeline.evaluation.ability import find_tasks, measure_ability
from pipeline.evaluation.ability_figures import compare_tasks
from pipeline.evaluation.baselines import Baselines, pick_baselines
from pipeline.evaluation.comparisons import compare_models, read_scored
from pipeline.evaluation.confident_answers import compared_figures, describe_confident_answers
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.corrected_rates import correct_rate, read_validation
from pipeline.evaluation.cost import format_costs
from pipeline.evaluation.inputs import ModelInputs, find_inputs
from pipeline.evaluation.judges.loading import FoundJudge, find_judge
from pipeline.evaluation.judges.protocol import read_judge_flags
from pipeline.evaluation.judging import check_judges, judge_models
from pipeline.evaluation.lookback_answers import add_lens, check_lens, load_lens
from pipeline.evaluation.lookback_lens import LookbackLens
from pipeline.evaluation.model_in_use import ModelInUse
from pipeline.evaluation.model_scores import score_model
from pipeline.evaluation.rouge import load_scorer
from pipeline.evaluation.scores import measure_references, read_rows
from pipeline.evaluation.scores_file import (
    describe_settings,
    is_finished,
    pick_engine_of,
    predictions_path,
    read_scores,
)
from pipeline.evaluation.summary import print_summary
from pipeline.evaluation.validation import validate_judges
from pipeline.locking import LOCK_WAIT_SECONDS, locked
from pipeline.models.engines import pick_engine
from pipeline.models.memory import memory_advice
from pipeline.run_record import write_json
from storage_schema.publish import remove_stale_temporaries


def run(config: EvaluateStudentConfig) -> dict[str, Any]:
    """Evaluate every model of `config`, print the table, and return the scores with their path.

    Raises:
        ConfigError: a prompt and the longest prediction exceed a model's positions, or a baseline
            is no model.
        DataError: the dataset cannot be read, or no document is left; kept answers are damaged.
        EngineError: vLLM does not start, or stops.
        MissingPackageError: rouge-score, or the engine asked for, is not installed.
        ModelError: a model or tokenizer is not found, does not load, or does not fit.
        OutputExistsError: the scores file was made with other settings or models, or another
            process writes it.
    """
    output = Path(config.output).expanduser()
    if output.is_dir():
        raise OutputExistsError(f"--output {output} is a directory: expected a file name")
    if config.validate_judge is not None:
        return validate_judges(config, output)
    judges = [find_judge(choice) for choice in read_judge_flags(config.judge)]
    tasks = find_tasks(config.task)
    load_scorer(stem=False)
    inputs = find_inputs(config)
    lens = load_lens(config.lookback_lens, inputs)
    if not output.exists():  # then the engine is needed: that it is not here is said at once
        pick_engine(pick_engine_of(output, config.engine)[0])
    output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output.with_suffix(".lock"), f"the scores file {output}", LOCK_WAIT_SECONDS):
        return _evaluate(config, output, inputs, judges, tasks, lens)


def _evaluate(
    config: EvaluateStudentConfig,
    output: Path,
    inputs: Sequence[ModelInputs],
    judges: Sequence[FoundJudge],
    tasks: dict[str, Any],
    lens: LookbackLens | None,
) -> dict[str, Any]:
    """Evaluate what the scores file lacks; no other process writes it meanwhile."""
    for folder in (output.parent, predictions_path(output, "").parent):
        remove_stale_temporaries(folder)  # of a run that was killed
    engine, reason = pick_engine_of(output, config.engine)
    scores = read_scores(output, describe_settings(config, engine))
    baselines = pick_baselines(config, scores, output)
    todo = [one for one in inputs if not is_finished(output, scores, one.name, one.identity)]
    check_judges(judges, scores, inputs)
    check_lens(lens, scores)
    validation = _read_validation(config, judges, scores)
    for dataset in {id(model.dataset): model.dataset for model in inputs}.values():
        print(dataset.describe(), file=sys.stderr)
    if todo:
        pick_engine(engine)
        print(f"engine: {engine} ({reason})", file=sys.stderr)
    costs = {name: dict(entry["cost"]) for name, entry in scores["models"].items()}
    _read_models(inputs, todo, config, engine, lens, output, scores)
    judge_models(
        judges, inputs, scores, output, num_bins=config.ece_bins, batch_size=config.batch_size
    )
    measure_ability(tasks, inputs, scores, output, config)
    _finish(scores, inputs, output, config, baselines, validation)
    if not judges:
        print(
            "no --judge given: factual consistency was not judged; names, numbers and words that "
            "the sources lack, and copying, are measured without one"
        )
    for name, entry in scores["models"].items():
        if entry["cost"] != costs.get(name):
            print(format_costs(name, entry["cost"]))
    evaluated = [model.name for model in todo]
    skipped = [model.name for model in inputs if model.name not in evaluated]
    print_summary(scores, output, skipped)
    return {"scores": str(output), "evaluated": evaluated, "skipped": skipped, **scores}


def _read_models(
    inputs: Sequence[ModelInputs],
    todo: Sequence[ModelInputs],
    config: EvaluateStudentConfig,
    engine: str,
    lens: LookbackLens | None,
    output: Path,
    scores: dict[str, Any],
) -> None:
    """Add an entry for each model of `todo`, and the lens's figures where they are missing."""
    names = {model.name for model in todo}
    for model in inputs:
        with (
            memory_advice(f"evaluating {model.name}", "use a lower --batch-size"),
            ModelInUse(model, config) as in_use,
        ):
            if model.name in names:
                scores["models"][model.name] = score_model(model, in_use, config, engine, output)
                write_json(output, scores)
            entry = scores["models"][model.name]
            if lens is not None and "lookback_lens" not in entry:
                add_lens(lens, model, in_use, config, engine, output, entry)
                write_json(output, scores)


def _finish(
    scores: dict[str, Any],
    inputs: Sequence[ModelInputs],
    output: Path,
    config: EvaluateStudentConfig,
    baselines: Baselines,
    validation: dict[str, Any],
) -> None:
    """Add what is made of all models that are there, and store the scores."""
    paths = {name: predictions_path(output, name) for name in scores["models"]}
    rows = {name: read_rows(path) for name, path in paths.items() if path.exists()}
    scores["references"] = measure_references(inputs[0].dataset.records)
    scores["confident_answers"] = describe_confident_answers(rows)
    scores["comparisons"] = _compare(scores, rows, output, config, baselines)
    for name, own in rows.items():
        for judge, about in scores["models"][name].get("judges", {}).items():
            if judge in validation:
                about["corrected"] = correct_rate(own, judge, validation[judge])
    write_json(output, scores)


def _read_validation(
    config: EvaluateStudentConfig, judges: Sequence[FoundJudge], scores: dict[str, Any]
) -> dict[str, Any]:
    if config.judge_validation is None:
        return {}
    asked = [{"name": judge.choice.name, **judge.identity} for judge in judges]
    return read_validation(config.judge_validation, scores, asked)


def _compare(
    scores: dict[str, Any],
    rows: dict[str, list[dict[str, Any]]],
    output: Path,
    config: EvaluateStudentConfig,
    baselines: Baselines,
) -> dict[str, Any]:
    """Return the comparisons of all models of the file, also those of earlier runs."""
    median = scores["confident_answers"]["median_confidence"]
    scored = {
        name: read_scored(own, config.ece_bins, compared_figures(own, median))
        for name, own in rows.items()
    }
    chosen = (baselines.baseline, baselines.baseline_of)
    found = compare_models(scored, *chosen)
    found["tasks"], missing = compare_tasks(scores, output, *chosen, config.ece_bins)
    found["not_compared"] += missing
    found["not_compared"] += [
        f"{name} is not compared: {predictions_path(output, name)} is gone; evaluate it again"
        for name in scores["models"]
        if name not in rows
    ]
    return found
