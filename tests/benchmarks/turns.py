"""Processes that take turns, so that whatever else the machine does hits all of them alike."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent


def environment() -> dict[str, str]:
    """Return this process's, with this checkout's packages found before any other's."""
    paths = [str(BENCHMARKS.parents[1]), str(BENCHMARKS.parent), str(BENCHMARKS)]
    inherited = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, inherited])}


class Worker:
    """A process that answers each line of its input with a line of JSON.

    Its first answer, once it is ready, is {"ready": {...}}; other lines before that are ignored.
    """

    def __init__(self, command: list[str]) -> None:
        """Start it; it loads beside others that were started."""
        self._process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment(),
        )  # fmt: skip

    def ready(self) -> dict[str, Any] | None:
        """Wait for its first answer; None where it ended before."""
        for line in self._process.stdout or ():
            if line.startswith('{"ready"'):
                return dict(json.loads(line)["ready"])
        self._process.wait()
        return None

    def ask(self, **question: Any) -> dict[str, Any]:
        """Send a question and wait for the answer.

        Raises:
            SystemExit: the process ended instead.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended with {self._process.wait()}")
        return dict(json.loads(line))

    def end(self) -> None:
        """Close its input and wait for it."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


def answer(value: dict[str, Any]) -> None:
    """Send a line to the process that asked."""
    print(json.dumps(value), flush=True)
