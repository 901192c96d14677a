"""The checkpoints a run writes while it trains: the last whole one, and removing them."""

import json
import re
import shutil
from pathlib import Path

# The Trainer writes it last, so a checkpoint that has it is whole.
STATE_NAME = "trainer_state.json"
FOLDER = re.compile(r"checkpoint-(\d+)")


def find_last_checkpoint(output: Path) -> Path | None:
    """Return the newest whole checkpoint under `output`, or None.

    Half-written ones, left by a run that was killed while saving, are passed over: the Trainer
    would load their weights and start again at step 0.
    """
    folders = sorted(_checkpoints(output), key=_step, reverse=True)
    return next((folder for folder in folders if _is_whole(folder)), None)


def remove_checkpoints(output: Path) -> None:
    """Delete every checkpoint folder under `output`."""
    for folder in _checkpoints(output):
        shutil.rmtree(folder)


def _checkpoints(output: Path) -> list[Path]:
    return [path for path in output.glob("checkpoint-*") if FOLDER.fullmatch(path.name)]


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _is_whole(folder: Path) -> bool:
    try:
        state = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(state.get("global_step") == _step(folder))
