"""Where cells run on this machine: one GPU each, or a share of the processors."""

import os
import shutil
import subprocess


def make_places(count: int) -> list[dict[str, str]]:
    """Return the environment of each of `count` places.

    With GPUs, place i sees GPU i alone, counted round when there are fewer; without, the
    processors are divided. A lone place on processors keeps all of them.
    """
    gpus = find_gpus()
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(count)]
    if count == 1 or "OMP_NUM_THREADS" in os.environ:
        return [{} for _ in range(count)]
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    return [{"OMP_NUM_THREADS": str(threads)} for _ in range(count)]


def find_gpus() -> list[str]:
    """Return the GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    found = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.split() if found.returncode == 0 else []
