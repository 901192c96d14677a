"""One cell: its processes one after the other, and the record of how they ended.

    CELL/train.yaml, evaluate-NAME.yaml    what the commands were told; they can be run by hand
    CELL/train.log, evaluate.log           what they printed
    CELL/student/                          what train-student wrote
    CELL/scores-NAME.json                  what evaluate-student wrote, of this model alone
    CELL/cell.json                         written last, when the cell is done or has failed

A model that is only evaluated has the same folder without a student.
"""

import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import OutputExistsError
from pipeline.locking import locked
from pipeline.run_record import RECORD_NAME, read_record, write_json
from pipeline.sweep.children import LOG_HEAD, Children
from pipeline.sweep.documents import read_document

CELL_NAME = "cell.json"
TRAIN_LOG, EVALUATE_LOG = "train.log", "evaluate.log"
FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "arm": str,
    "seed": (int, type(None)),
    "settings": dict,
    "cache_fingerprint": str,
    "state": str,
    "train_s": (int, float, type(None)),
    "evaluate_s": (int, float),
    "error": (str, type(None)),
}
# Settings that decide where a result lies or how fast it comes, not what it is.
UNCOMPARED = {
    "train-student": ("cache", "dry_run", "local_copy", "output", "report_to", "student"),
    "evaluate-student": ("batch_size", "model", "output"),
}
# Settings of an evaluation that name arms; a single cell knows none.
COMPARED_WITH = ("baseline", "baseline_of")
# Processes of a sweep that was killed end by themselves, at once.
WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done for one model of a sweep.

    Attributes:
        name: the model's name in scores files: ARM@SEED, or a baseline's.
        arm: its arm.
        seed: its seed; None for a baseline.
        settings: its values of the axes.
        cache_fingerprint: the cache all of them share.
        folder: where everything of it goes.
        directory: where its commands run: paths of the recipe start there.
        model: what is evaluated.
        train: settings of train-student; None for a baseline.
        evaluations: {name: settings of evaluate-student}.
    """

    name: str
    arm: str
    seed: int | None
    settings: dict[str, Any]
    cache_fingerprint: str
    folder: Path
    directory: Path
    model: str
    train: dict[str, Any] | None
    evaluations: dict[str, dict[str, Any]]

    def scores_path(self, evaluation: str) -> Path:
        """Return where the scores of one evaluation go."""
        return self.folder / f"scores-{evaluation}.json"


def read_cell(job: Job) -> dict[str, Any] | None:
    """Return the record of how the job's cell ended, None if it has not.

    Raises:
        OutputExistsError: the record is damaged, or is of another cell.
    """
    path = job.folder / CELL_NAME
    if not path.exists():
        return None
    record = read_document(path, "the record of a cell", FIELDS)
    asked = {"name": job.name, "cache_fingerprint": job.cache_fingerprint}
    for name, value in asked.items():
        if record[name] != value:
            raise OutputExistsError(
                f"{path} is of another cell: {name} is {record[name]!r}, expected {value!r}; "
                "delete its folder, the cell is then run again"
            )
    return record


def is_done(job: Job) -> bool:
    """Return whether the cell's record says so and everything it should have made is there.

    Not if its commands were told otherwise: they are then asked again, and refuse by field.

    Raises:
        OutputExistsError: the record, or a scores file, is damaged.
    """
    record = read_cell(job)
    if record is None or record["state"] != "done":
        return False
    if job.train is not None:
        student = job.folder / "student"
        if not (student / RECORD_NAME).exists() or not any(student.glob("*.safetensors")):
            return False
        if not read_record(student)["finished"]:
            return False
    if not all(part.was_told(job.folder) for part in _parts(job)):
        return False
    return all(_is_scored(job, evaluation) for evaluation in job.evaluations)


def _is_scored(job: Job, evaluation: str) -> bool:
    path = job.scores_path(evaluation)
    if not path.exists() or job.name not in read_scores(path)["models"]:
        return False
    return (path.parent / "predictions" / path.stem / f"{job.name}.jsonl").exists()


def read_scores(path: Path) -> dict[str, Any]:
    """Return a scores file of evaluate-student.

    Raises:
        OutputExistsError: it is none.
    """
    return read_document(path, "a scores file", {"settings": dict, "models": dict})


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left half made; the lock over the folder says they are gone."""
    for leftover in [*folder.rglob("*.tmp-*")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def run_cell(job: Job, children: Children, environment: dict[str, str]) -> dict[str, Any] | None:
    """Train and evaluate, publish the record and return it; None if it was stopped before its end.

    What an earlier run finished is found by the commands themselves and not done again.

    Raises:
        OutputExistsError: another process works on this cell.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder / "cell.lock", f"the cell {job.name}", WAIT_SECONDS) as lock:
        remove_leftovers(job.folder)
        seconds: dict[str, float] = {}
        error = None
        for part in _parts(job):
            start = time.monotonic()
            arguments = ["--config", str(part.write(job.folder))]
            code = children.run(
                part.command,
                arguments,
                job.folder / part.log,
                directory=job.directory,
                environment=environment,
                descriptor=lock,
            )
            spent = time.monotonic() - start
            seconds[part.command] = round(seconds.get(part.command, 0.0) + spent, 3)
            if code != 0:
                error = f"{part.name}: {last_words(job.folder / part.log, code)}"
                break
        if children.stopped:
            return None
        record = {
            "name": job.name,
            "arm": job.arm,
            "seed": job.seed,
            "settings": job.settings,
            "cache_fingerprint": job.cache_fingerprint,
            "state": "done" if error is None else "failed",
            "train_s": seconds.get("train-student"),
            "evaluate_s": seconds.get("evaluate-student", 0.0),
            "error": error,
        }
        write_json(job.folder / CELL_NAME, record)
        return record


@dataclass(frozen=True, slots=True)
class _Part:
    """One process of a cell: the command, its whole configuration, and the log it adds to."""

    name: str
    command: str
    settings: dict[str, Any]
    log: str

    def write(self, folder: Path) -> Path:
        """Write the configuration as a file the command reads, and return its path."""
        path = folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump({self.command: self.settings}), encoding="utf-8")
        return path

    def was_told(self, folder: Path) -> bool:
        """Whether the file there says the same, but for where things lie and how fast they are."""
        try:
            text = (folder / f"{self.name}.yaml").read_text(encoding="utf-8")
            told = dict(yaml.safe_load(text)[self.command])
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            return False
        uncompared = UNCOMPARED[self.command]
        return all(
            told.get(name) == self.settings.get(name)
            for name in {*told, *self.settings} - {*uncompared}
        )


def _parts(job: Job) -> list[_Part]:
    parts = []
    if job.train is not None:
        settings = {**job.train, "output": str(job.folder / "student")}
        parts.append(_Part("train", "train-student", settings, TRAIN_LOG))
    for name, evaluation in job.evaluations.items():
        settings = {**evaluation, "model": [f"{job.name}={job.model}"]}
        settings["output"] = str(job.scores_path(name))
        parts.append(_Part(f"evaluate-{name}", "evaluate-student", settings, EVALUATE_LOG))
    return parts


def last_words(log: Path, code: int) -> str:
    """Return why a process ended: its error or else its last line, and what signal ended it."""
    lines = read_last_part(log)
    errors = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
    last = lines[errors[-1] if errors else -1 :] or ["it printed nothing"]
    if code >= 0:
        return " ".join(line.strip() for line in last)
    name = signal.Signals(-code).name
    reason = " (too little memory?)" if name == "SIGKILL" else ""
    return f"ended by {name}{reason}; the last line of its log: {last[-1]}"


def read_last_part(log: Path, max_bytes: int = 2**16) -> list[str]:
    """Return the lines of a log that its last process printed, blank ones left out."""
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - max_bytes))
        lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith(LOG_HEAD)]
    part = lines[heads[-1] + 1 :] if heads else lines
    return [line for line in part if line.strip()]
