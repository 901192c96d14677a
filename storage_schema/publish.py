"""Put a file in its place whole or not at all.

A reader never sees half a file. In a local cache bytes go to a temporary name in the same
directory, are synced, and get the final name. On an object store they go to a local temporary
file that is uploaded in one operation, which makes the object visible at its end.
"""

import errno
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage_schema.errors import CacheWriteError
from storage_schema.location import Location
from storage_schema.object_store import ObjectPath

# Disk, quota or the largest file allowed.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SCRATCH = "smoothkd-"


def _host() -> str:
    """Name what shares process numbers: the host and, in containers, the namespace of numbers."""
    name = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())
    try:
        return f"{name}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return name


_HOST = _host()


def temporary_path(path: Path) -> Path:
    """Return a new name beside `path` under which this process can prepare it.

    Its random end keeps apart threads.
    """
    return path.with_name(f"{path.name}.tmp-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}")


def scratch_path(location: Location) -> Path:
    """Return a new local name to prepare `location` under: beside it, or in TMPDIR for a store."""
    if isinstance(location, ObjectPath):
        return temporary_path(Path(tempfile.gettempdir()) / f"{_SCRATCH}{location.name}")
    return temporary_path(location)


@contextmanager
def writing(path: Location) -> Iterator[None]:
    """Give a refusal of the operating system its name; wraps nothing that computes.

    Raises:
        CacheWriteError: naming `path`, the reason and what to do.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        advice = "free space" if error.errno in _FULL else "make it writable"
        if isinstance(path, ObjectPath):
            advice = f"set TMPDIR, now {tempfile.gettempdir()}, to a writable folder with more room"
        raise CacheWriteError(
            f"{path} cannot be written ({reason}): nothing half-written is left and what was "
            f"finished before stays; {advice} and run the same command again, it continues"
        ) from error


def publish(path: Location, write: Callable[[Path], None], *, create: bool = False) -> bool:
    """Make `write` produce the file `path` atomically; return whether it is now there.

    Args:
        path: the final name; its directory exists.
        write: called with the temporary name; when it raises, nothing is left behind.
        create: leave a file that is already there as it is, and return False. A store or file
            system that cannot tell replaces it.

    Raises:
        CacheWriteError: the system refuses to sync the file or to give it its name.
        CacheError: the object store refuses.
    """
    temporary = scratch_path(path)
    try:
        write(temporary)
        if isinstance(path, ObjectPath):
            return _upload(temporary, path, create)
        return _place(temporary, path, create)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _upload(temporary: Path, path: ObjectPath, create: bool) -> bool:
    try:
        path.upload(temporary, create=create)
    except FileExistsError:
        if not create:
            raise
        return False
    return True


def _place(temporary: Path, path: Path, create: bool) -> bool:
    """Sync a whole file and give it its name; return whether it got it."""
    with writing(path):
        _sync(temporary)
        if not (create and _link(temporary, path)):
            if create and path.exists():
                return False
            os.replace(temporary, path)
        _sync(path.parent)
    return True


def _link(temporary: Path, path: Path) -> bool:
    """Give a file its name unless another has it, which a rename would replace."""
    try:
        os.link(temporary, path)
    except OSError:  # it is taken, or there are no hard links here
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale_temporaries(location: Location) -> int:
    """Delete what dead processes of this host left half made; return how many.

    For a folder on an object store, that is in TMPDIR.
    """
    removed = 0
    if isinstance(location, ObjectPath):
        found = Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*.tmp-*")
    else:
        found = location.glob("*.tmp-*")
    for path in found:
        host, _, pid = path.name.rpartition(".tmp-")[2].rpartition("-")[0].rpartition("-")
        if host == _HOST and pid.isdecimal() and not _is_alive(int(pid)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                try:
                    path.unlink(missing_ok=True)
                except PermissionError:  # another user's, in a shared TMPDIR
                    continue
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
