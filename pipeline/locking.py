"""A lock that the operating system takes back when its holders end, however they end.

A process that is started with the lock's descriptor holds it too: the lock is free only when the
last of them is gone.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import OutputExistsError

POLL_SECONDS = 0.2
# For callers that go on with what a killed run left: its processes may take a moment to end.
LOCK_WAIT_SECONDS = 10.0
# What file systems without locks answer, as Lustre does unless mounted with them.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, what: str, wait_seconds: float = 0.0) -> Iterator[int]:
    """Hold the lock in the file `path` during the block; yield its descriptor.

    On a file system without locks the block is entered with a warning.

    Args:
        path: created where it is not there, and never deleted: others may hold its lock.
        what: what is locked, for the error.
        wait_seconds: how long to wait for a holder that is about to end.

    Raises:
        OutputExistsError: another process holds it; names host and process.
    """
    with open(path, "a+", encoding="utf-8") as file:
        deadline = time.monotonic() + wait_seconds
        while not _take(file.fileno(), what):
            if time.monotonic() >= deadline:
                file.seek(0)
                raise OutputExistsError(
                    f"{what} is being worked on by {_describe(file.read())}; wait for it or end it"
                )
            time.sleep(POLL_SECONDS)
        file.truncate(0)
        holder = {"host": socket.gethostname(), "process": os.getpid(), "since": _now()}
        file.write(json.dumps(holder) + "\n")
        file.flush()
        yield file.fileno()


def _take(descriptor: int, what: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"warning: the file system has no locks ({os.strerror(error.errno)}): nothing keeps "
            f"another process from working on {what}, too",
            file=sys.stderr,
        )
    return True


def _describe(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it was only just taken
        return "another process"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
