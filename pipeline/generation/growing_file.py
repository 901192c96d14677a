"""A file of answers that grows while its run goes on, and what a killed run left of it.

Each answer is one line, written as it comes. A half line, left by a run that was killed while
writing, is cut off and its answer made again.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import OutputExistsError
from storage_schema.publish import writing


@contextmanager
def open_growing(path: Path) -> Iterator[tuple[TextIO, list[bytes]]]:
    """Open a file for this process alone: the file to append to, and its whole lines so far.

    Raises:
        OutputExistsError: another process is writing it.
    """
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputExistsError(f"another process is writing {path}: wait for it") from error
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
        yield file, whole.splitlines()


def append(file: TextIO, row: dict[str, Any]) -> None:
    """Add one row as a whole line, handed to the system at once.

    Past the file's own buffer, which would be written again, and fail again, when it is closed.

    Raises:
        CacheWriteError: the system refuses, for instance because the disk is full.
    """
    line = (json.dumps(row) + "\n").encode()
    with writing(Path(file.name)):
        while line:
            line = line[os.write(file.fileno(), line) :]
