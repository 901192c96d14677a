"""Say what to do when a checkpoint or the weights do not fit on the disk."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pipeline.errors import OutputWriteError

# Disk, quota or the largest file allowed.
_FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
# What torch.save says, whatever the reason was.
_TORCH = "PytorchStreamWriter failed writing"


@contextmanager
def full_disk_advice(output: Path) -> Iterator[None]:
    """Give the errors of a full disk, which torch and safetensors each word their way, one name.

    Raises:
        OutputWriteError: a file below `output` cannot be written for lack of space.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_full(error):
            raise
        raise OutputWriteError(
            f"{output}: the disk is full ({error}); free space and run the same command again, it "
            "continues at the last whole checkpoint"
        ) from error


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    return _TORCH in str(error) or any(reason in str(error) for reason in _FULL.values())
