"""Runs the jobs of a sweep on a Ray cluster: a cell is a task, one GPU or one node's processors.

Cache, models, data and the sweep's folder lie under the same paths on every node. A task whose
worker or node is lost is started again by Ray; its commands continue where it was.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.errors import ConfigError
from pipeline.ray_cluster import connect
from pipeline.sweep.cell import Job, run_cell
from pipeline.sweep.children import Children

# A cell that ends so many workers is given up.
MAX_RETRIES = 3
LOOK_SECONDS = 1.0


def run_on_ray(jobs: Sequence[Job], look: Callable[[], None]) -> dict[str, str]:
    """Run the jobs as tasks; return {name: reason} of those that left no record.

    Args:
        jobs: in the order they are handed over.
        look: called about once a second.

    Raises:
        MissingPackageError: ray is not installed.
        ConfigError: there is no cluster, or nothing in it to run a cell on.
    """
    connect()
    import ray
    from ray.exceptions import RayError, RayTaskError

    lost: dict[str, str] = {}
    try:
        resources = _resources(ray.nodes())
        print(f"ray: every cell takes {resources}")
        task = ray.remote(_run).options(
            max_retries=MAX_RETRIES, scheduling_strategy="SPREAD", **resources
        )
        waiting = {task.remote(job): job for job in jobs}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=LOOK_SECONDS)
            for reference in done:
                job = waiting.pop(reference)
                try:
                    ray.get(reference)
                except RayError as error:  # of the task, or its worker or node is gone for good
                    cause = error.cause if isinstance(error, RayTaskError) else error
                    reason = str(cause).strip().splitlines() or [""]
                    lost[job.name] = f"{type(cause).__name__}: {reason[0]}"
            look()
    finally:
        ray.shutdown()
    return lost


def _run(job: Job) -> dict[str, Any] | None:
    children = Children()
    try:
        return run_cell(job, children, {})
    finally:
        children.stop()


def _resources(nodes: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return what a task takes: a GPU where there are any, else as many processors as each has."""
    found = [node["Resources"] for node in nodes if node["Alive"]]
    if any(resources.get("GPU", 0) >= 1 for resources in found):
        return {"num_gpus": 1}
    processors = [int(resources["CPU"]) for resources in found if resources.get("CPU", 0) >= 1]
    if not processors:
        raise ConfigError("--ray: no node of the Ray cluster has a GPU or a processor to give")
    return {"num_cpus": min(processors)}
