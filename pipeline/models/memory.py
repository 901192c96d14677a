"""Say what to do when a device has no memory left for a model's work."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import ModelError


@contextmanager
def memory_advice(doing: str, advice: str) -> Iterator[None]:
    """Give torch's error of a full device a name and a remedy.

    Args:
        doing: what was being done, the first words of the message.
        advice: which settings take less.

    Raises:
        ModelError: the device has no memory left.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        raise ModelError(f"{doing} ran out of memory ({reason}): {advice}") from error
