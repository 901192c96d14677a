"""The processes of a sweep: each in a group of its own, all of them ended together."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

# Begins the part of a log that one process wrote.
LOG_HEAD = "== "


class Children:
    """Runs commands of this project as processes, and ends those that run when told to."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(
        self,
        command: str,
        arguments: Sequence[str],
        log: Path,
        *,
        directory: Path,
        environment: Mapping[str, str],
        descriptor: int | None = None,
        output: Path | None = None,
    ) -> int:
        """Run a command to its end and return its exit code, the negative signal that ended it.

        Args:
            command: its name, like "train-student".
            arguments: of its command line.
            log: what it prints is added here.
            directory: where it runs.
            environment: changes to this process's environment.
            descriptor: of a lock that it holds too.
            output: its standard output goes here instead, whole.
        """
        with open(log, "ab") as error, _opened(output) as printed:
            error.write(f"{LOG_HEAD}{_now()} {command} {' '.join(arguments)}\n".encode())
            error.flush()
            with self._guard:
                if self.stopped:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    [sys.executable, "-m", "pipeline.sweep.child", command, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=printed or error,
                    stderr=error,
                    cwd=directory,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                    pass_fds=() if descriptor is None else (descriptor,),
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._guard:
                    self._running.discard(process)
                if process.stdin is not None:
                    process.stdin.close()

    def stop(self) -> None:
        """End every process that runs, with those it started, and start no more."""
        with self._guard:
            self.stopped = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[IO[bytes] | None]:
    if path is None:
        yield None
    else:
        with open(path, "wb") as file:
            yield file


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
