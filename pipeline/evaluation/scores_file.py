"""The scores file: the settings all its models share, and one entry for each finished model.

It is rewritten whole after each model, so an interrupted run continues where it stopped and a
later run adds models. What was made with other settings, or from other weights under the same
name, is refused instead of mixed or overwritten.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.data.sources import load_records
from pipeline.errors import OutputExistsError
from pipeline.evaluation.bootstrap import DRAWS, LEVEL, MIN_DOCUMENTS, SEED
from pipeline.evaluation.calibration import FLOOR_DRAWS, FLOOR_SEED
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.inputs import fingerprint_records
from pipeline.evaluation.rouge import CONVENTIONS
from pipeline.models.engines import pick_engine
from pipeline.run_record import differences


def describe_settings(config: EvaluateStudentConfig, engine: str) -> dict[str, Any]:
    """Return what all models of one scores file share and a rerun compares.

    Batch size, device and package versions are recorded with each model instead: they do not
    define the numbers, so a rerun after running out of memory keeps what is finished.
    """
    records = load_records(config)
    return {
        "dataset": {"fingerprint": fingerprint_records(records), "num_records": len(records)},
        "template": config.template,
        "limits": {
            "max_examples": config.max_examples,
            "max_prompt_tokens": config.max_prompt_tokens,
            "max_sequence_tokens": config.max_sequence_tokens,
        },
        "decoding": describe_decoding(config, engine),
        "rouge": CONVENTIONS,
        "calibration": {
            "bins": config.ece_bins,
            "floor_draws": FLOOR_DRAWS,
            "floor_seed": FLOOR_SEED,
        },
        "intervals": {
            "level": LEVEL,
            "resamples": "documents",
            "draws": DRAWS,
            "seed": SEED,
            "min_documents": MIN_DOCUMENTS,
        },
        "confidence": "exp of the mean log-probability of an answer's tokens",
        "dtype": config.dtype,
    }


def describe_decoding(config: EvaluateStudentConfig, engine: str) -> dict[str, Any]:
    """Return how answers are generated; what plays no part in greedy ones is None."""
    drawn = config.temperature > 0
    return {
        "engine": engine,
        "strategy": "sample" if drawn else "greedy",
        "temperature": config.temperature if drawn else None,
        "top_p": config.top_p if drawn else None,
        "seed": config.seed if drawn else None,
        "stop": list(config.stop),
        "max_new_tokens": config.max_new_tokens,
    }


def pick_engine_of(path: Path, asked: str) -> tuple[str, str]:
    """Return the engine to use and why; "auto" keeps to the one of the scores file at `path`.

    Whether it is installed is not asked: it is not needed where nothing is to be generated.
    """
    if asked != "auto":
        return asked, "asked for"
    try:
        return str(json.loads(path.read_text())["settings"]["decoding"]["engine"]), "as before"
    except (OSError, ValueError, KeyError, TypeError):  # none, or read_scores says what is wrong
        return pick_engine("auto")


def read_scores(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the scores at `path`, or new ones without models, for these settings.

    Raises:
        OutputExistsError: the file is no scores file, or was made with other settings.
    """
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        return {"settings": settings, "models": {}}
    try:
        scores = dict(json.loads(path.read_text(encoding="utf-8")))
        there, models = dict(scores["settings"]), dict(scores["models"])
        for name, entry in models.items():
            _check_figures(path, name, entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputExistsError(
            f"{path} is not a scores file ({error!r}); choose another --output"
        ) from error
    lines = differences(there, settings)
    if lines:
        raise OutputExistsError(
            f"{path} holds scores made with other settings:\n  "
            + "\n  ".join(lines)
            + "\nchoose another --output, or delete that file, and its answers, to start over"
        )
    return scores


def _check_figures(path: Path, name: str, entry: dict[str, Any]) -> None:
    for figure in entry["intervals"]:
        value = entry.get(figure)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise OutputExistsError(
                f"{path}: {figure} of {name!r} is {value!r}, expected a number or null; restore "
                "the file, or delete that model's entry to have it evaluated again"
            )


def is_finished(path: Path, scores: dict[str, Any], name: str, identity: dict[str, Any]) -> bool:
    """Return whether the model's entry and its predictions file are already there.

    Raises:
        OutputExistsError: the entry of that name is of another model.
    """
    entry = scores["models"].get(name)
    if entry is None:
        return False
    lines = differences({key: entry.get(key) for key in identity}, identity)
    if lines:
        raise OutputExistsError(
            f"{path} holds scores of another model under the name {name!r}:\n  "
            + "\n  ".join(lines)
            + "\ngive this one another name (--model NAME=PATH), choose another --output, or "
            f"delete its entry in {path.name}"
        )
    return predictions_path(path, name).exists()


def predictions_path(path: Path, name: str) -> Path:
    """Return where a model's rows lie: predictions/<scores file>/<model>.jsonl beside the file.

    The scores file's name is part of it because one folder may hold scores of several datasets.
    """
    return path.parent / "predictions" / path.stem / f"{name}.jsonl"


def answers_path(path: Path, name: str) -> Path:
    """Return where a model's answers lie: answers/<scores file>/<model>.jsonl beside the file."""
    return path.parent / "answers" / path.stem / f"{name}.jsonl"
