"""Put a file in its place whole or not at all.

A reader never sees half a file: bytes go to a temporary name in the same directory, are
synced, and are renamed over the final name.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

_HOST = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())


def publish(path: Path, write: Callable[[Path], None]) -> None:
    """Make `write` produce the file `path` atomically.

    Args:
        path: the final name; its directory exists.
        write: called with the temporary name; when it raises, nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}.tmp-{_HOST}-{os.getpid()}")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale_temporaries(directory: Path) -> int:
    """Delete temporary files left by processes of this host that are dead; return how many."""
    removed = 0
    for path in directory.glob(f"*.tmp-{_HOST}-*"):
        pid = path.name.rsplit("-", 1)[-1]
        if pid.isdigit() and int(pid) != os.getpid() and not _is_alive(int(pid)):
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
