"""Put a file in its place whole or not at all.

A reader never sees half a file: bytes go to a temporary name in the same directory, are
synced, and are renamed over the final name.
"""

import os
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

_HOST = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())


def temporary_path(path: Path) -> Path:
    """Return a new name beside `path` under which this process can prepare it.

    Its random end keeps apart threads, and containers with one host name and process number.
    """
    return path.with_name(f"{path.name}.tmp-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}")


def publish(path: Path, write: Callable[[Path], None]) -> None:
    """Make `write` produce the file `path` atomically.

    Args:
        path: the final name; its directory exists.
        write: called with the temporary name; when it raises, nothing is left behind.
    """
    temporary = temporary_path(path)
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
    """Delete what dead processes of this host left half made; return how many."""
    removed = 0
    for path in directory.glob("*.tmp-*"):
        host, _, pid = path.name.rpartition(".tmp-")[2].rpartition("-")[0].rpartition("-")
        if host == _HOST and pid.isdecimal() and not _is_alive(int(pid)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed += 1
    return removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
