"""The teacher pass through vLLM: one engine, requests in flight all the time, one of two routes.

The hook route (`vllm_hook`) scores response rows inside vLLM's workers. The public route
(`vllm_public`) asks for prompt log-probabilities, for vLLM versions whose inside is not known.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from pipeline.data.tokenization import Example
from pipeline.errors import EngineError
from pipeline.generation.vllm_start import set_vllm_environment, start_vllm
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import pick_device
from pipeline.models.merging import merged_copy
from pipeline.teacher.engine import WORKER_HOOK, Scores, adapter_use
from pipeline.teacher.row_spec import RowSpec
from pipeline.teacher.vllm_adapter import served_rank
from pipeline.teacher.vllm_hook import HookRoute
from pipeline.teacher.vllm_public import PublicRoute


class Route(Protocol):
    """How rows are asked for and how they arrive; see `vllm_hook.HookRoute`."""

    @property
    def limit(self) -> int: ...  # noqa: D102
    def options(self) -> dict[str, Any]: ...  # noqa: D102
    def install(self, llm: Any) -> None: ...  # noqa: D102
    def cost(self, example: Example) -> int: ...  # noqa: D102
    def sampling(self, number: int, example: Example, again: bool) -> Any: ...  # noqa: D102
    def collect(  # noqa: D102
        self, outputs: list[tuple[int, Example, Any]], is_idle: bool
    ) -> Iterator[tuple[int, Scores | None]]: ...


class VllmEngine:
    """Scores examples with a bounded number in flight.

    Attributes:
        route: how rows arrive.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        spec: RowSpec,
        route: str,
        dtype: str,
        longest: int,
        merged_path: Path,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        trust_remote_code: bool,
        vllm_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Start the engine.

        Args:
            checkpoint: the teacher.
            spec: what a row holds.
            route: engine.WORKER_HOOK or engine.PROMPT_LOGPROBS.
            dtype: float32, bfloat16 or float16.
            longest: tokens of the longest example.
            merged_path: where an adapter merged into its model is kept while the engine lives,
                for an adapter that vLLM does not serve (`engine.adapter_use`).
            tensor_parallel_size: GPUs a model is spread over.
            gpu_memory_utilization: share of GPU memory the engine may take.
            trust_remote_code: run model code shipped with the checkpoint.
            vllm_options: further arguments of vllm.LLM, for tests and benchmarks.
        """
        self.route: Route = HookRoute(spec) if route == WORKER_HOOK else PublicRoute(spec)
        self._copies = ExitStack()
        model_path = checkpoint.model_path
        adapter: dict[str, Any] = {}
        use, _ = adapter_use(checkpoint, "vllm", route)
        if use == "served":
            rank = served_rank(checkpoint)
            adapter = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        on_cpu = pick_device() == "cpu"
        set_vllm_environment(on_cpu)
        try:
            if use == "merged":
                copy = merged_copy(
                    checkpoint, merged_path, dtype=dtype, trust_remote_code=trust_remote_code
                )
                model_path = self._copies.enter_context(copy)
            self._llm = start_vllm(
                logprobs_mode="raw_logprobs",  # unprocessed
                model=str(model_path),
                dtype=dtype,
                max_model_len=longest + 1,  # the one token every request generates
                tensor_parallel_size=tensor_parallel_size,
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=on_cpu,  # compiling takes longer than a CPU-sized pass
                trust_remote_code=trust_remote_code,
                **{**self.route.options(), **adapter, **(vllm_options or {})},
            )
            self.route.install(self._llm)
        except BaseException:  # a full disk and Ctrl-C too
            self._copies.close()
            raise
        self._adapter = _lora_request(checkpoint) if adapter else None
        self._num_submitted = 0

    def score(self, examples: Sequence[Example]) -> Iterator[Scores]:
        """Yield the scores of each example, in the order given."""
        finished: dict[int, Scores] = {}
        waiting: dict[int, int] = {}  # request number -> position of its example
        running: set[int] = set()  # those of them that vLLM has not finished
        submitted = cost = following = 0

        def submit(position: int, again: bool) -> None:
            number = self._submit(examples[position], again)
            waiting[number] = position
            running.add(number)

        while following < len(examples):
            # Topped up at every step, so that the engine never runs dry.
            while submitted < len(examples) and (
                not waiting or cost + self.route.cost(examples[submitted]) <= self.route.limit
            ):
                submit(submitted, again=False)
                cost += self.route.cost(examples[submitted])
                submitted += 1
            done = []
            for number, output in self._step():
                if number in waiting:  # not of a caller that stopped half way
                    running.remove(number)
                    done.append((number, examples[waiting[number]], output))
            for number, scores in self._collect(done, is_idle=not running):
                position = waiting.pop(number)
                if scores is None:
                    submit(position, again=True)
                else:
                    finished[position] = scores
                    cost -= self.route.cost(examples[position])
            while following in finished:
                yield finished.pop(following)
                following += 1

    def _step(self) -> list[tuple[int, Any]]:
        try:
            outputs = self._llm.llm_engine.step()
        except Exception as error:  # whatever vLLM, its workers and the driver raise
            raise _stopped(error) from error
        return [(int(output.request_id), output) for output in outputs if output.finished]

    def _collect(
        self, done: list[tuple[int, Example, Any]], is_idle: bool
    ) -> list[tuple[int, Scores | None]]:
        try:
            return list(self.route.collect(done, is_idle))
        except EngineError:
            raise
        except Exception as error:  # a call to the workers raises what a step raises
            raise _stopped(error) from error

    def _submit(self, example: Example, again: bool) -> int:
        # vLLM numbers requests from 0 in the order of submission.
        number = self._num_submitted
        prompt = {"prompt_token_ids": example.input_ids.tolist()}
        sampling = self.route.sampling(number, example, again)
        try:
            self._llm.enqueue([prompt], sampling, lora_request=self._adapter, use_tqdm=False)
        except Exception as error:  # a dead engine refuses requests
            raise _stopped(error) from error
        self._num_submitted += 1
        return number

    def close(self) -> None:
        """Stop the engine, so that its memory is free when this returns; delete a merged copy.

        Called at most once; nothing else works afterwards.
        """
        # An engine in this process leaves torch's process group behind unless it is told to stop,
        # and hides its weights and cache from the garbage collector.
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm, self.route  # which knows it, too
        gc.collect()
        self._copies.close()


def _stopped(error: Exception) -> EngineError:
    return EngineError(
        f"vLLM stopped while scoring: {type(error).__name__}: {error}; published shards "
        "are kept and the same command continues after them; if memory is short, change "
        "--gpu-memory-utilization; if it fails again, use --vllm-route "
        "prompt_logprobs or --engine transformers with another --output"
    )


def _lora_request(checkpoint: Checkpoint) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest("teacher", 1, str(checkpoint.adapter_path))
