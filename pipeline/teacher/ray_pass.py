"""The pass on a Ray cluster: one engine per GPU or tensor-parallel group, shards from a queue.

An engine that ends, with its process or its node, gives its shards to another one. A shard is
published whole or not at all, so nothing has to be undone; the driver counts what is on disk.
"""

import contextlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.data.tokenization import Example
from pipeline.errors import ConfigError
from pipeline.ray_cluster import connect
from pipeline.teacher.engine import EngineError
from pipeline.teacher.pass_report import PassReport
from pipeline.teacher.pass_times import PassTimes
from pipeline.teacher.precompute_config import PrecomputeConfig
from pipeline.teacher.ray_worker import ShardWorker, pack
from storage_schema import Plan
from storage_schema.errors import SmoothkdError
from storage_schema.location import locate
from storage_schema.shard import shard_path

# A shard, or the start of an engine, that ends this many engines ends the job.
MAX_TRIES = 3
# Shards an engine takes at a time: enough to keep its queue full across their borders.
MAX_SHARDS_TAKEN = 8
POLL_SECONDS = 1.0
CLOSE_SECONDS = 60.0


def write_shards_on_ray(
    config: PrecomputeConfig,
    plan: Plan,
    examples: Sequence[Example],
    shards: Sequence[int],
    report: PassReport,
) -> PassTimes:
    """Write the shards with the engines of a running Ray cluster; return their times added up.

    Raises:
        MissingPackageError: ray is not installed.
        ConfigError: there is no cluster, or no node has as many GPUs as an engine needs.
        EngineError: engines kept ending on one shard, or at their start.
        SmoothkdError: what an engine's process says is wrong with model, data or disk.
    """
    connect()
    import ray

    try:
        count, resources = _places(ray.nodes(), config.tensor_parallel_size)
        count = min(count, len(shards))
        print(f"ray: {count} engines, each with {resources}")
        actor_type = ray.remote(ShardWorker).options(scheduling_strategy="SPREAD", **resources)
        return _Pass(config, plan, examples, shards, report, actor_type, count).run()
    finally:
        ray.shutdown()


def _places(nodes: Sequence[dict[str, Any]], num_gpus: int) -> tuple[int, dict[str, int]]:
    """Return how many engines the cluster has room for, and what each one takes.

    Without GPUs an engine takes the processors of a node, as many as the smallest one has.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = [int(found.get("GPU", 0)) for found in resources]
    if any(gpus):
        count = sum(number // num_gpus for number in gpus)
        if count == 0:
            raise ConfigError(
                f"--tensor-parallel-size is {num_gpus}, no node of the Ray cluster has more than "
                f"{max(gpus)} GPUs"
            )
        return count, {"num_gpus": num_gpus}
    cpus = [int(found["CPU"]) for found in resources if found.get("CPU", 0) >= 1]
    if not cpus:
        raise ConfigError("--ray: no node of the Ray cluster has a GPU or a processor to give")
    return len(cpus), {"num_cpus": min(cpus)}


@dataclass(slots=True)
class _Job:
    """What an actor is at: its start (no shards), or writing shards."""

    actor: Any
    shards: list[int]
    place: str = "a node"


class _Pass:
    """The driver's state: which shards wait, which actor is at what."""

    def __init__(
        self,
        config: PrecomputeConfig,
        plan: Plan,
        examples: Sequence[Example],
        shards: Sequence[int],
        report: PassReport,
        actor_type: Any,
        count: int,
    ) -> None:
        import ray

        self._plan, self._examples, self._report = plan, examples, report
        self._config = _with_absolute_paths(config)
        self._cache = locate(self._config.output)
        self._actor_type, self._count = actor_type, count
        self._packed = ray.put(pack(examples))
        self._queue = deque(shards)
        self._jobs: dict[Any, _Job] = {}
        self._noted: set[int] = set()
        self._tries: Counter[int] = Counter()
        self._failed_starts = 0
        self._is_scoring = False
        self._times = PassTimes()

    def run(self) -> PassTimes:
        import ray

        try:
            while self._queue or any(job.shards for job in self._jobs.values()):
                self._start_missing_engines()
                done, _ = ray.wait(list(self._jobs), num_returns=1, timeout=POLL_SECONDS)
                self._note_published()
                for reference in done:
                    self._collect(reference)
        finally:
            for job in self._jobs.values():
                ray.kill(job.actor)
        return self._times

    def _start_missing_engines(self) -> None:
        starting = sum(not job.shards for job in self._jobs.values())
        while len(self._jobs) < self._count and starting < len(self._queue):
            actor = self._actor_type.remote()
            reference = actor.start.remote(self._config, self._plan, self._packed)
            self._jobs[reference] = _Job(actor, [])
            starting += 1

    def _collect(self, reference: Any) -> None:
        """Take note of what an actor has done, or of its end, and give it more.

        Raises:
            SmoothkdError: it says that model, data, settings or disk are wrong.
            EngineError: it was the last of MAX_TRIES.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        job = self._jobs.pop(reference)
        try:
            result = ray.get(reference)
        except RayTaskError as error:  # the actor lives and says what is wrong
            if isinstance(error.cause, EngineError):
                _let_go(job.actor)
                self._take_back(job, error.cause)
            elif isinstance(error.cause, SmoothkdError):
                raise error.cause from error
            else:
                raise
        except RayError as error:  # the actor, or its node, is gone
            _let_go(job.actor)
            self._take_back(job, error)
        else:
            if job.shards:
                self._times.add(result)
            else:
                job.place = result
                self._failed_starts = 0
                self._report.say(f"ray: an engine is ready on {job.place}")
                if not self._is_scoring:
                    self._report.scoring_begins()
                    self._is_scoring = True
            self._give(job)

    def _give(self, job: _Job) -> None:
        """Give an idle actor its next shards, or let it go."""
        if not self._queue:
            _let_go(job.actor)
            return
        job.shards = [self._queue.popleft()]
        most = min(MAX_SHARDS_TAKEN, len(self._queue) // (2 * self._count))
        # One that ended an engine goes alone, so that it can be named.
        while (
            len(job.shards) < most and not self._tries[job.shards[0]] + self._tries[self._queue[0]]
        ):
            job.shards.append(self._queue.popleft())
        self._jobs[job.actor.write.remote(job.shards)] = job

    def _take_back(self, job: _Job, error: Exception) -> None:
        """Put what an ended engine has not published back into the queue.

        Raises:
            EngineError: it was the last of MAX_TRIES.
        """
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if not job.shards:
            self._failed_starts += 1
            if self._failed_starts >= MAX_TRIES:
                raise EngineError(
                    f"--ray: {MAX_TRIES} engines in a row did not start; the last: {reason}"
                ) from error
            self._report.say(f"ray: an engine did not start and is started again ({reason})")
            return
        left = [shard for shard in job.shards if not shard_path(self._cache, shard).exists()]
        self._tries.update(left)
        self._report.say(
            f"ray: the engine on {job.place} ended; shards {left} go to another one ({reason})"
        )
        for shard in left:
            if self._tries[shard] >= MAX_TRIES:
                raise EngineError(
                    f"--ray: {MAX_TRIES} engines ended while they wrote shard {shard}, the last on "
                    f"{job.place}: {reason}; published shards are kept and the same command "
                    "continues; Ray's logs of the node may say more"
                ) from error
        # At the back: a shard that ends engines must not keep the others from being written.
        self._queue.extend(left)

    def _note_published(self) -> None:
        """Count what appeared on disk since the last look."""
        for job in self._jobs.values():
            for shard in job.shards:
                if shard not in self._noted and shard_path(self._cache, shard).exists():
                    self._noted.add(shard)
                    positions = self._plan.shard_examples(shard)
                    self._report.advance(sum(len(self._examples[i].input_ids) for i in positions))
                    self._report.published(shard)
        self._report.advance(0)  # shows that it lives


def _let_go(actor: Any) -> None:
    """End an actor, its engine closed if there is one to close."""
    import ray
    from ray.exceptions import RayError

    with contextlib.suppress(RayError):
        ray.get(actor.close.remote(), timeout=CLOSE_SECONDS)
    ray.kill(actor)


def _with_absolute_paths(config: PrecomputeConfig) -> PrecomputeConfig:
    """Return the settings as an actor needs them, whose working directory is another one."""
    teacher = config.teacher
    if Path(teacher).exists():
        teacher = str(Path(teacher).absolute())
    output = locate(config.output)
    if isinstance(output, Path):
        output = output.absolute()
    return replace(config, teacher=teacher, output=str(output))
