"""Runs the jobs of a sweep on this machine, so many at once; one that fails ends no other."""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from pipeline.sweep.cell import Job, run_cell
from pipeline.sweep.children import Children
from storage_schema.errors import SmoothkdError

# How often the display looks at the logs.
LOOK_SECONDS = 1.0


def run_here(
    jobs: Sequence[Job], places: Sequence[dict[str, str]], look: Callable[[], None]
) -> dict[str, str]:
    """Run the jobs, one in each place at a time; return {name: reason} of those without a record.

    Args:
        jobs: in the order they are started.
        places: environments of the processes, one for each job that may run at a time.
        look: called about once a second, and at the end.

    Raises:
        KeyboardInterrupt: all processes were ended.
    """
    free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for place in places:
        free.put(place)
    children = Children()

    def work(job: Job) -> dict[str, Any] | None:
        if children.stopped:
            return None
        place = free.get()
        try:
            return run_cell(job, children, place)
        finally:
            free.put(place)

    lost: dict[str, str] = {}
    with ThreadPoolExecutor(len(places), thread_name_prefix="cell") as pool:
        try:
            futures = {pool.submit(work, job): job for job in jobs}
            while futures:
                done, _ = wait(futures, timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED")
                for future in done:
                    job = futures.pop(future)
                    try:
                        future.result()
                    except (SmoothkdError, OSError) as error:  # its folder cannot be used
                        lost[job.name] = str(error)
                look()
        finally:
            children.stop()
    return lost
