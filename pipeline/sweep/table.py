"""The live table of a sweep: redrawn on a terminal, else one line for each change."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from pipeline.sweep.watch import CellState, estimate_seconds_left

# Without a terminal, a running cell's progress is said at most this often.
LINE_SECONDS = 60.0
STYLES = {"done": "green", "failed": "red", "training": "cyan", "evaluating": "cyan"}
COLUMNS = ("cell", "state", "progress", "time", "left", "")
# A reason is often longer than a terminal is wide; the end of the sweep gives it whole.
NOTE_LETTERS = 40


class SweepTable:
    """Shows the states of the cells; a context manager around the work."""

    def __init__(self, num_places: int, before: Sequence[CellState]) -> None:
        """Take how many cells run at once, and the states that need no line: they are no news."""
        self._num_places = num_places
        self._live: Any = None
        self._said = {state.name: state for state in before}
        self._said_at: dict[str, float] = {}

    def __enter__(self) -> "SweepTable":
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False, vertical_overflow="ellipsis")
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def show(self, states: Sequence[CellState]) -> None:
        """Show how the cells stand."""
        if self._live is not None:
            self._live.update(self._draw(states), refresh=True)
            return
        for state in states:
            if self._is_news(state):
                self._said[state.name] = state
                self._said_at[state.name] = time.monotonic()
                print(_line(state) + self._summary(states, state), flush=True)

    def _is_news(self, state: CellState) -> bool:
        said = self._said[state.name]
        if said.state != state.state:
            return True
        if said.progress == state.progress:
            return False
        return time.monotonic() - self._said_at[state.name] >= LINE_SECONDS

    def _summary(self, states: Sequence[CellState], state: CellState) -> str:
        return f"  [{self._counts(states)}]" if state.has_ended else ""

    def _counts(self, states: Sequence[CellState]) -> str:
        ended = sum(state.has_ended for state in states)
        failed = sum(state.state == "failed" for state in states)
        left = estimate_seconds_left(states, self._num_places)
        parts = [f"{ended} of {len(states)} ended", f"{failed} failed" if failed else ""]
        if left is not None and ended < len(states):
            parts.append(f"about {format_seconds(left)} left")
        return ", ".join(part for part in parts if part)

    def _draw(self, states: Sequence[CellState]) -> Any:
        """Return the table; ended and waiting cells make room where it is too long."""
        from rich.table import Table
        from rich.text import Text

        table = Table(caption=self._counts(states), box=None, pad_edge=False)
        for column in COLUMNS:
            is_number = column in ("progress", "time", "left")
            table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
        rows = self._live.console.height - 4
        for state in _fit(states, rows):
            name, is_at, progress, note, seconds, left = _cells(state)
            note = note if len(note) <= NOTE_LETTERS else note[: NOTE_LETTERS - 1] + "…"
            cells = (name, is_at, progress, seconds, left, note)
            # Text: square brackets in it mean nothing.
            table.add_row(*map(Text, cells), style=STYLES.get(state.state, "dim"))
        return table


def _fit(states: Sequence[CellState], rows: int) -> list[CellState]:
    """Return as many states as there are rows, in their order: running and failed ones first."""
    if len(states) <= rows:
        return list(states)
    order = {"training": 0, "evaluating": 0, "failed": 1, "waiting": 2, "done": 3}
    chosen = sorted(range(len(states)), key=lambda i: (order[states[i].state], i))[: max(1, rows)]
    return [states[i] for i in sorted(chosen)]


def _cells(state: CellState) -> tuple[str, ...]:
    left = "" if state.seconds_left is None else format_seconds(state.seconds_left)
    seconds = "" if state.seconds is None else format_seconds(state.seconds)
    return (state.name, state.state, state.progress, state.note, seconds, left)


def _line(state: CellState) -> str:
    name, is_at, progress, note, seconds, left = _cells(state)
    parts = [is_at, progress, note, seconds, f"{left} left" if left else ""]
    return f"{name}: " + ", ".join(part for part in parts if part and part != "0 s")


def format_seconds(seconds: float) -> str:
    """Return a duration for people: "45 s", "12 min", "3 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
