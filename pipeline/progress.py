"""One progress display for every long stage.

A terminal gets a tqdm bar; anything else (a log file, CI) gets a plain line at most every
ten seconds and one at the end. Both show rate and time left.
"""

import re
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tqdm import tqdm

LINE_INTERVAL_SECONDS = 10.0
_LINE = re.compile(
    r"(?P<description>.+): (?P<done>\d+)/(?P<total>\d+) (?P<unit>\S+) "
    r"\(\S+ \S+/s(, (?P<left>\d+) s left)?(, (?P<note>.+))?\)"
)


@dataclass(frozen=True, slots=True)
class ProgressLine:
    """What a plain line says, for those who watch another process's log.

    Attributes:
        description: what is being done.
        done: units done.
        total: units in all.
        unit: what is counted.
        seconds_left: where the line has a guess.
        note: what stands after the rate; "" for nothing.
    """

    description: str
    done: int
    total: int
    unit: str
    seconds_left: int | None
    note: str


def read_line(line: str) -> ProgressLine | None:
    """Return what a plain line of a Progress says; None for any other line."""
    found = _LINE.fullmatch(line.strip())
    if found is None:
        return None
    left = found["left"]
    return ProgressLine(
        found["description"],
        int(found["done"]),
        int(found["total"]),
        found["unit"],
        None if left is None else int(left),
        found["note"] or "",
    )


class Progress:
    """Count work done out of a known total; use it as a context manager."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self._note = ""
        self._printed = 0
        self._start = self._last_line = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, desc=description, unit=f" {unit}", smoothing=0.1, dynamic_ncols=True
            )

    def __enter__(self) -> "Progress":
        return self

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Record `amount` more units done; `note` replaces the text shown after the rate."""
        self.done += amount
        if note is not None:
            self._note = note
        if self._bar is not None:
            if note is not None:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
        elif time.monotonic() - self._last_line >= LINE_INTERVAL_SECONDS:
            self._print_line()

    def say(self, line: str) -> None:
        """Print a line to standard output, above the bar where there is one."""
        if self._bar is None:
            print(line, flush=True)
        else:
            tqdm.write(line, file=sys.stdout)

    def _print_line(self) -> None:
        self._last_line, self._printed = time.monotonic(), self.done
        elapsed = self._last_line - self._start
        rate = self.done / elapsed if elapsed > 0 else 0.0
        # The first steps are slower than the rest: no guess from them.
        known = self.done < self.total and (self.total <= 20 * self.done or elapsed > 60)
        left = f", {(self.total - self.done) / rate:.0f} s left" if known and rate else ""
        note = f", {self._note}" if self._note else ""
        print(
            f"{self.description}: {self.done}/{self.total} {self.unit} "
            f"({rate:.3g} {self.unit}/s{left}{note})",
            file=sys.stderr,
            flush=True,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._printed != self.done:
            self._print_line()
