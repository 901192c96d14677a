"""What the cells are at, read from their folders: the same for processes here and Ray's tasks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    name: str
    state: str
    progress: str = ""
    note: str = ""
    seconds: float | None = None
    seconds_left: float | None = None

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
        return [self._look(job) for job in self._jobs]

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
    """Return the time until all cells have ended, as long as those that have on average.

    None until one that trained has ended. Baselines, which only are evaluated, count as cells.
    """
    ended = [one.seconds for one in states if one.has_ended and one.seconds]
    if not ended:
        return None
    mean = sum(ended) / len(ended)
    left = sum(max(0.0, mean - (one.seconds or 0.0)) for one in states if not one.has_ended)
    return left / max(1, num_places)
