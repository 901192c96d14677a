"""General ability through lm-evaluation-harness (extra `eval`): is a student worse elsewhere?

Tasks are the harness's own, by name, or task files of the user's; prompts, splits and metrics are
theirs. No chat template, no examples in the prompt unless the task says so. Items are stored beside
the predictions, so that models are compared item by item.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError, MissingPackageError, OutputExistsError
from pipeline.evaluation.ability_figures import items_path, summarize
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.cost import timed
from pipeline.evaluation.inputs import ModelInputs
from pipeline.evaluation.model_in_use import ModelInUse
from pipeline.evaluation.scores import write_rows
from pipeline.run_record import write_json

TASK_FILE = (".yaml", ".yml")


def find_tasks(values: Sequence[str]) -> dict[str, Any]:
    """Return {name: harness task} with its data loaded; {} for no values.

    Raises:
        ConfigError: a name or file the harness does not know, or a name twice.
        DataError: a task's data cannot be read, for example offline.
        MissingPackageError: lm-eval is not installed.
    """
    if not values:
        return {}
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingPackageError(
            '--task needs the package lm-eval: pip install "smoothkd[eval]"'
        ) from error
    # Reading the index of some ten thousand built-in tasks takes seconds.
    manager = TaskManager(include_defaults=not all(_is_file(value) for value in values))
    tasks: dict[str, Any] = {}
    for value in values:
        for name, task in _load(manager, value).items():
            if name in tasks:
                raise ConfigError(f"--task {value}: the task {name!r} is already there")
            tasks[name] = task
    return tasks


def _is_file(value: str) -> bool:
    return value.endswith(TASK_FILE)


def _load(manager: Any, value: str) -> dict[str, Any]:
    if _is_file(value) and not Path(value).expanduser().is_file():
        raise ConfigError(f"--task {value}: no such file")
    try:
        found: dict[str, Any] = manager.load(str(Path(value).expanduser()))["tasks"]
    except KeyError as error:
        raise ConfigError(
            f"--task {value!r}: lm-evaluation-harness has no task of that name; a task of your own "
            f"is a file ending in {' or '.join(TASK_FILE)}"
        ) from error
    except Exception as error:  # datasets, the hub and the harness raise many unrelated types
        raise DataError(
            f"--task {value}: its data cannot be read ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); for local data, name a task file whose dataset_path "
            "is json and whose dataset_kwargs.data_files are yours"
        ) from error
    return found


def fingerprint_task(task: Any) -> str:
    """Return the SHA-256 (hex) over a task's items and prompts, in order."""
    digest = hashlib.sha256(f"{task.VERSION}\0{task.config.num_fewshot}\0".encode())
    for document in task.eval_docs:
        prompt = [document, task.doc_to_text(document), task.doc_to_target(document)]
        digest.update(json.dumps(prompt, sort_keys=True, default=str).encode() + b"\0")
    return digest.hexdigest()


def measure_ability(
    tasks: dict[str, Any],
    inputs: Sequence[ModelInputs],
    scores: dict[str, Any],
    output: Path,
    config: EvaluateStudentConfig,
) -> None:
    """Add each task's figures to the models' entries under `tasks`, and store items and scores.

    What is already there from the same items is left as it is.

    Args:
        tasks: of `find_tasks`.
        inputs: the models; each is loaded once, if it lacks a task.
        scores: the content of the scores file; changed in place.
        output: the scores file.
        config: of the run.

    Raises:
        DataError: a task gives no number for an item.
        ModelError: a model does not load.
        OutputExistsError: figures of another version of a task are there under its name.
    """
    if not tasks:
        return
    prints = {name: fingerprint_task(task) for name, task in tasks.items()}
    for model in inputs:
        there = scores["models"][model.name].setdefault("tasks", {})
        _refuse_other_items(model.name, there, prints)
        todo = {name: task for name, task in tasks.items() if name not in there}
        if not todo:
            continue
        costs = scores["models"][model.name]["cost"]
        with ModelInUse(model, config) as in_use:
            loaded = in_use.load(costs)
            with timed(costs, "tasks", 0):
                found = _run(loaded, model, list(todo.values()), config.batch_size)
            del loaded
        for name, items in found.items():
            write_rows(items_path(output, name, model.name), items)
            there[name] = {"fingerprint": prints[name], **summarize(items, config.ece_bins)}
            there[name] |= {"version": str(todo[name].VERSION), **_harness_settings()}
        write_json(output, scores)


def _refuse_other_items(model: str, there: dict[str, Any], prints: dict[str, str]) -> None:
    for name, fingerprint in prints.items():
        if name in there and there[name]["fingerprint"] != fingerprint:
            raise OutputExistsError(
                f"model {model!r} has figures of another task {name!r} (items there "
                f"{there[name]['fingerprint'][:12]}, asked {fingerprint[:12]}): rename the task, "
                "or choose another --output"
            )


def _harness_settings() -> dict[str, str]:
    import lm_eval

    return {"harness": lm_eval.__version__, "chat_template": "none"}


def _run(loaded: Any, model: ModelInputs, tasks: list[Any], batch_size: int) -> dict[str, Any]:
    """Return {task: items} as the harness scores them."""
    from lm_eval import simple_evaluate

    harness = _wrap(loaded, model, batch_size)
    found: Any = simple_evaluate(harness, tasks=tasks, bootstrap_iters=0, log_samples=True)
    return {task.task_name: read_items(task, found["samples"][task.task_name]) for task in tasks}


def _wrap(loaded: Any, model: ModelInputs, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    logger = logging.getLogger("lm_eval.models.huggingface")
    level = logger.level
    logger.setLevel(logging.ERROR)  # two warnings that a loaded model is given, which is meant
    try:
        return HFLM(pretrained=loaded, tokenizer=model.tokenizer, batch_size=batch_size)
    finally:
        logger.setLevel(level)  # its warnings of cut prompts are to be seen


def read_items(task: Any, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one item a document: its number, hash, metrics, and of multiple choice the options.

    The harness has one sample for each document and filter of the task; the metrics of a further
    filter are named METRIC,FILTER. Options are kept where one of them is right.

    Raises:
        DataError: the task gives no number for an item, as perplexities of corpora do.
    """
    items: dict[Any, dict[str, Any]] = {}
    first = samples[0].get("filter")
    for sample in samples:
        place = {"doc_id": sample["doc_id"], "doc_hash": sample["doc_hash"]}
        item = items.setdefault(sample["doc_id"], {**place, "metrics": {}, "options": None})
        ending = "" if sample.get("filter") == first else f",{sample['filter']}"
        item["metrics"] |= {
            name + ending: float(sample[name])
            for name in sample["metrics"]
            if isinstance(sample[name], bool | int | float)
        }
        if item["options"] is None and _has_one_answer(task, sample):
            item["options"] = {
                "loglikelihoods": [score for score, _ in sample["filtered_resps"]],
                "characters": [len(choice) for choice in task.doc_to_choice(sample["doc"])],
                "gold": sample["target"],
            }
    if not all(item["metrics"] for item in items.values()):
        raise DataError(
            f"--task {task.task_name}: it gives no number for each item, so models cannot be "
            "compared on it; expected a task with accuracies or the like"
        )
    return list(items.values())


def _has_one_answer(task: Any, sample: dict[str, Any]) -> bool:
    """Whether the task is a choice with one right option, scored in the harness's own way.

    truthfulqa_mc2, for one, has several true options, names the first, and scores in its own way.
    """
    own_way = getattr(task.config, "process_results", None) is not None
    choice = task.OUTPUT_TYPE == "multiple_choice" and isinstance(sample["target"], int)
    return choice and not own_way
