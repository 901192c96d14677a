"""The pass on a local Ray cluster of two nodes: same bytes, a killed engine, no cluster at all."""

import importlib.util
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_engine import make_examples
from test_partitions import COMMAND, as_flags
from test_precompute import files, settings, write_data  # noqa: F401

from pipeline import ray_cluster
from pipeline.errors import ConfigError, MissingPackageError, ModelError
from pipeline.teacher import ray_pass, ray_worker
from pipeline.teacher.engine import EngineError
from pipeline.teacher.precompute import run
from pipeline.teacher.precompute_config import PrecomputeConfig

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no ray here")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes of one processor each, started here; yields the address."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=node)
    nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield nodes.address
    nodes.shutdown()


def start(settings: dict[str, Any], address: str) -> subprocess.Popen[str]:  # noqa: F811
    return subprocess.Popen(
        [*COMMAND, *as_flags(settings), "--ray"],
        env={**os.environ, "RAY_ADDRESS": address, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@needs_ray
@pytest.mark.slow
def test_a_killed_engine_gives_its_shards_to_another_and_the_bytes_stay_the_same(
    settings: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    cluster: str,
) -> None:
    settings = {**settings, "examples_per_shard": 2}
    settings["data"] = str(write_data(tmp_path / "more.jsonl", 240))
    run(PrecomputeConfig(**{**settings, "output": str(tmp_path / "whole")}))
    process = start(settings, cluster)
    guard = threading.Timer(240, process.kill)
    guard.start()
    output, killed = "", ""
    assert process.stdout is not None
    for line in process.stdout:
        output += line
        found = re.search(r"an engine is ready on .*, process (\d+)", line)
        if found and not killed:
            killed = found[1]
            os.kill(int(killed), signal.SIGKILL)
    guard.cancel()
    assert process.wait(timeout=60) == 0, output
    assert re.search(
        rf"ray: the engine on .*, process {killed} ended; shards \[\d.*\] go to another one", output
    ), output
    assert files(Path(settings["output"])) == files(tmp_path / "whole")
    assert "scored: " in output


@needs_ray
@pytest.mark.slow
def test_a_signal_to_the_driver_ends_it_in_order(
    settings: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    cluster: str,
) -> None:
    """ray.init puts its own handler of SIGTERM in place, which would end it without a word."""
    settings = {**settings, "examples_per_shard": 1}
    settings["data"] = str(write_data(tmp_path / "more.jsonl", 300))
    process = start(settings, cluster)
    guard = threading.Timer(240, process.kill)
    guard.start()
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if "an engine is ready on" in line:
            process.send_signal(signal.SIGTERM)
            break
    output += process.communicate(timeout=120)[0]
    guard.cancel()
    assert process.returncode == 143, output
    assert re.search(r"Error: stopped by SIGTERM: \d+ of 300 shards are in .*the same", output)
    assert "Traceback" not in output


@needs_ray
@pytest.mark.slow
def test_what_a_node_says_is_wrong_comes_out_as_its_own_error(
    settings: dict[str, Any],  # noqa: F811
    cluster: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver's fingerprint is another one than the node finds at the path."""
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    monkeypatch.setattr("pipeline.teacher.precompute.fingerprint_checkpoint", lambda _: "other")
    with pytest.raises(ModelError, match=r"on .*, process \d+ the teacher .* the plan says other"):
        run(PrecomputeConfig(**settings, ray=True))


@needs_ray
def test_without_a_cluster_it_says_how_to_start_one(
    settings: dict[str, Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="no Ray cluster at '127.0.0.1:1' .*ray start --head"):
        ray_cluster.connect()


def test_without_ray_the_extra_is_named(
    settings: dict[str, Any],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install \"smoothkd\[ray\]\""):
        run(PrecomputeConfig(**settings, ray=True))


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


def test_engines_are_placed_on_whole_groups_of_gpus_or_on_nodes() -> None:
    eight, four = node(CPU=64, GPU=8.0), node(CPU=32, GPU=4.0)
    head = node(memory=1e9)
    dead = node(alive=False, CPU=64, GPU=8)
    assert ray_pass._places([head, eight, four, dead], 1) == (12, {"num_gpus": 1})
    assert ray_pass._places([head, eight, four], 8) == (1, {"num_gpus": 8})
    assert ray_pass._places([eight, node(CPU=8, GPU=3)], 2) == (5, {"num_gpus": 2})
    assert ray_pass._places([head, node(CPU=8), node(CPU=4)], 1) == (2, {"num_cpus": 4})
    with pytest.raises(ConfigError, match="size is 8, no node .* has more than 4 GPUs"):
        ray_pass._places([four], 8)
    with pytest.raises(ConfigError, match="no node of the Ray cluster has a GPU or a processor"):
        ray_pass._places([head], 1)


def test_examples_survive_packing() -> None:
    examples = make_examples(9)
    for before, after in zip(examples, ray_worker.unpack(ray_worker.pack(examples)), strict=True):
        np.testing.assert_array_equal(before.input_ids, after.input_ids)
        assert before.example_id == after.example_id


def test_a_node_with_other_packages_is_refused() -> None:
    from fake_engine import make_plan

    from pipeline.run_record import installed_versions

    plan = make_plan(make_examples(2), engine="transformers", examples_per_shard=2)
    plan.engine["versions"] = {"torch": installed_versions()["torch"]}
    ray_worker._check_versions(plan, "node7")
    plan.engine["versions"] = {"torch": "1.0", "vllm": "0.1"}
    with pytest.raises(ConfigError, match=r"node7 has other packages(.|\n)*torch: there '1.0'"):
        ray_worker._check_versions(plan, "node7")


class StubReport:
    """Collects what is said; stands in for the terminal, not for the thing under test."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def driver(tmp_path: Path, tries: int = 0) -> ray_pass._Pass:
    """A driver's state without a cluster behind it."""
    state = ray_pass._Pass.__new__(ray_pass._Pass)
    state._report = StubReport()  # type: ignore[assignment]
    state._cache = tmp_path
    state._queue = ray_pass.deque([5, 6])
    state._tries = ray_pass.Counter({3: tries})
    state._failed_starts = 0
    return state


def test_a_shard_that_ends_engine_after_engine_ends_the_job_by_name(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "shard-00002.parquet").touch()
    state = driver(tmp_path)
    job = ray_pass._Job(None, [2, 3, 4], place="node7, process 12")
    state._take_back(job, RuntimeError("killed"))
    assert list(state._queue) == [5, 6, 3, 4]
    assert state._report.lines == [  # type: ignore[attr-defined]
        "ray: the engine on node7, process 12 ended; shards [3, 4] go to another one "
        "(RuntimeError: killed)"
    ]
    state._take_back(ray_pass._Job(None, [3]), RuntimeError("killed"))
    with pytest.raises(
        EngineError, match="3 engines ended while they wrote shard 3, the last on node9: .*killed"
    ):
        state._take_back(ray_pass._Job(None, [3], place="node9"), RuntimeError("killed"))


def test_engines_that_never_start_end_the_job(tmp_path: Path) -> None:
    state = driver(tmp_path)
    for _ in range(2):
        state._take_back(ray_pass._Job(None, []), EngineError("no kernel image"))
    with pytest.raises(
        EngineError, match="3 engines in a row did not start; the last: .*no kernel"
    ):
        state._take_back(ray_pass._Job(None, []), EngineError("no kernel image"))


def test_a_shard_that_ended_an_engine_goes_alone(tmp_path: Path) -> None:
    def given(queue: list[int], tries: dict[int, int]) -> list[int]:
        state = driver(tmp_path)
        state._queue, state._tries = ray_pass.deque(queue), ray_pass.Counter(tries)
        state._count, state._jobs = 2, {}
        actor = SimpleNamespace(write=SimpleNamespace(remote=lambda shards: "reference"))
        state._give(ray_pass._Job(actor, []))
        return state._jobs["reference"].shards

    assert given(list(range(100)), {}) == list(range(8))
    assert given(list(range(13)), {}) == [0, 1, 2]
    assert given([4], {}) == [4]
    assert given(list(range(100)), {0: 1}) == [0]
    assert given(list(range(100)), {2: 1}) == [0, 1]
