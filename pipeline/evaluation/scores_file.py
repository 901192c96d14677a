"""The scores file: the settings all its models share, and one entry for each finished model.

It is rewritten whole after each model, so an interrupted run continues where it stopped and a
later run adds models. What was made with other settings, or from other weights under the same
name, is refused instead of mixed or overwritten.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import OutputExistsError
from pipeline.run_record import differences


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
        there, _ = dict(scores["settings"]), dict(scores["models"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputExistsError(
            f"{path} is not a scores file ({error!r}); choose another --output"
        ) from error
    lines = differences(there, settings)
    if lines:
        raise OutputExistsError(
            f"{path} holds scores made with other settings:\n  "
            + "\n  ".join(lines)
            + "\nchoose another --output, or delete that file to start over"
        )
    return scores


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
