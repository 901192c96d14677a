"""What the cells are at, read from their folders: the same for processes here and Ray's tasks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.progress import read_line
from pipeline.sweep.cell import (
    CELL_NAME,
    EVALUATE_LOG,
    TRAIN_LOG,
    Job,
    read_cell,
    read_last_part,
)

# A log's last lines: enough to hold one of a Progress.
TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class CellState:
    """One cell as it stands.

    Attributes:
        name: the cell's.
        state: waiting, training, evaluating, done or failed.
        progress: like "12/60 steps"; "" where nothing was said yet.
        note: the loss, or why it failed.
        seconds: since it was started here, or what it took.
        seconds_left: of its present part, where known.
        trains: whether it has a student of its own; a baseline is only evaluated.
    """

    name: str
    state: str
    progress: str = ""
    note: str = ""
    seconds: float | None = None
    seconds_left: float | None = None
    trains: bool = True

    @property
    def has_ended(self) -> bool:
        """Whether it is done or failed."""
        return self.state in ("done", "failed")


class Watch:
    """Looks at the jobs of a sweep that this process began at some moment."""

    def __init__(self, jobs: Sequence[Job], todo: Sequence[Job]) -> None:
        """Remember what is run now; whatever is older is of an earlier run."""
        self._jobs = jobs
        paths = [job.folder / n for job in todo for n in (CELL_NAME, TRAIN_LOG, EVALUATE_LOG)]
        self._before = {path: _changed_at(path) for path in paths}
        self._started: dict[str, float] = {}

    def look(self) -> list[CellState]:
        """Return the state of every job."""
        return [replace(self._look(job), trains=job.train is not None) for job in self._jobs]

    def _look(self, job: Job) -> CellState:
        if self._is_new(job.folder / CELL_NAME):
            record = read_cell(job)
            if record is None:
                return CellState(job.name, "failed")
            seconds = (record["train_s"] or 0.0) + record["evaluate_s"]
            return CellState(job.name, record["state"], "", record["error"] or "", seconds)
        for state, name in (("evaluating", EVALUATE_LOG), ("training", TRAIN_LOG)):
            if self._is_new(job.folder / name):
                return self._running(job, state, job.folder / name)
        return CellState(job.name, "waiting")

    def _running(self, job: Job, state: str, log: Path) -> CellState:
        now = time.monotonic()
        seconds = now - self._started.setdefault(job.name, now)
        lines = [read_line(line) for line in read_last_part(log, TAIL_BYTES)]
        last = next((line for line in reversed(lines) if line is not None), None)
        if last is None:
            return CellState(job.name, state, seconds=seconds)
        progress = f"{last.done}/{last.total} {last.unit}"
        return CellState(job.name, state, progress, last.note, seconds, last.seconds_left)

    def _is_new(self, path: Path) -> bool:
        """Whether this run wrote the file; of a cell that is not run again, whatever is there."""
        return _changed_at(path) != self._before.get(path)


def _changed_at(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def estimate_seconds_left(states: Sequence[CellState], num_places: int) -> float | None:
    """Return the time until all cells have ended, each as long as those of its kind that are done.

    None until a trained one is done. Baselines are a kind of their own: they are only evaluated,
    and taken for as long as the trained ones until one of them is done. Failed cells say nothing.
    """
    means = {trains: _mean_seconds(states, trains) for trains in (True, False)}
    trained = means[True]
    if trained is None:
        return None
    left = 0.0
    for one in states:
        if not one.has_ended:
            mean = means[one.trains]
            left += max(0.0, (trained if mean is None else mean) - (one.seconds or 0.0))
    return left / max(1, num_places)


def _mean_seconds(states: Sequence[CellState], trains: bool) -> float | None:
    done = [one.seconds for one in states if one.state == "done" and one.trains == trains]
    known = [seconds for seconds in done if seconds]
    return sum(known) / len(known) if known else None
