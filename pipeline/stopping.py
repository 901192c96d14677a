"""Ctrl-C and a scheduler's SIGTERM end long work in order: nothing half written, a way to go on."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pipeline.errors import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopped_by_signals(describe: Callable[[], str]) -> Iterator[None]:
    """Turn SIGINT and SIGTERM during the block into a StoppedError, after the block's cleaning up.

    A second signal meets the handlers from before: it ends the process without more ado. Where
    the block does not run in the main thread, signals are left alone.

    Args:
        describe: called then; says what is kept and how to go on.

    Raises:
        StoppedError: a signal came; its exit code is 128 and the signal's number.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            # Ignored by whoever started this (nohup, a job in the background), or not Python's.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, receive)
    try:
        yield
    except BaseException as error:
        # Not KeyboardInterrupt only: Ctrl-C reaches the processes of an engine as well, which
        # may end, and be missed, before this one is asked.
        if not received:
            raise
        name = signal.Signals(received[0]).name
        raise StoppedError(f"stopped by {name}: {describe()}", 128 + received[0]) from error
    finally:
        restore()
