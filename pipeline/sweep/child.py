"""One command as a process of a sweep: `python -m pipeline.sweep.child COMMAND ARGUMENTS`.

Its standard input is a pipe that only the sweep holds open. When that closes, because the sweep
ended in whatever way, this process and those it started end too: nothing is left that writes into
a cell which the next run of the sweep continues.
"""

import os
import signal
import sys
import threading

from pipeline.cli.reference import load_command


def end_with_parent() -> None:
    """End this process group when standard input closes; input is empty for what runs here."""
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def wait() -> None:
        os.read(lifeline, 1)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    load_command(sys.argv[1]).main(sys.argv[2:], prog_name=sys.argv[1])
