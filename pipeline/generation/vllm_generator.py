"""Generation through vLLM: requests are topped up, so that the engine never runs dry.

Prompts go in as token ids and answers come out as token ids, decoded by the code that every
engine shares. The checkpoint's own sampling settings and end tokens play no part.
"""

import gc
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import EngineError
from pipeline.generation.requests import Decoding, Prediction, Request, to_prediction
from pipeline.generation.vllm_start import set_vllm_environment, start_vllm
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import pick_device
from pipeline.models.merging import merged_copy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# More than the engine runs at once (256 by default), so that some always wait.
WINDOW_REQUESTS = 1024


class VllmGenerator:
    """Answers requests with one loaded model; close it to free the model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        dtype: str,
        longest: int,
        merged_path: Path,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        trust_remote_code: bool,
    ) -> None:
        """Start the engine.

        Args:
            checkpoint: the model; an adapter is merged into a copy first.
            tokenizer: decodes the answers.
            dtype: "auto", float32, bfloat16 or float16.
            longest: tokens of the longest prompt with its answer.
            merged_path: where that copy is kept while the engine lives.
            tensor_parallel_size: GPUs a model is spread over.
            gpu_memory_utilization: share of GPU memory the engine may take.
            trust_remote_code: run model code shipped with the checkpoint.

        Raises:
            EngineError: vLLM does not start.
        """
        self._tokenizer = tokenizer
        self._copies = ExitStack()
        model_path = checkpoint.model_path
        on_cpu = pick_device() == "cpu"
        set_vllm_environment(on_cpu)
        try:
            if checkpoint.adapter_path is not None:
                copy = merged_copy(
                    checkpoint, merged_path, dtype=dtype, trust_remote_code=trust_remote_code
                )
                model_path = self._copies.enter_context(copy)
            self._llm = start_vllm(
                model=str(model_path),
                tokenizer=str(model_path),
                dtype=dtype,
                max_model_len=longest,
                generation_config="vllm",  # not the checkpoint's
                tensor_parallel_size=tensor_parallel_size,
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=on_cpu,  # compiling takes longer than a CPU-sized run
                trust_remote_code=trust_remote_code,
            )
        except BaseException:
            self._copies.close()
            raise
        self._num_submitted = 0

    def generate(
        self, requests: Sequence[Request], decoding: Decoding, done: Set[int] = frozenset()
    ) -> Iterator[tuple[int, Prediction]]:
        """Yield the place of each request that is not `done`, and its answer, as they finish.

        Raises:
            EngineError: vLLM stops.
        """
        todo = iter([index for index in range(len(requests)) if index not in done])
        waiting: dict[int, int] = {}  # vLLM's request number -> place among the requests
        while True:
            while len(waiting) < WINDOW_REQUESTS and (index := next(todo, None)) is not None:
                waiting[self._submit(requests[index], decoding)] = index
            if not waiting:
                return
            for output in self._step():
                if output.finished:
                    index = waiting.pop(int(output.request_id))
                    token_ids = output.outputs[0].token_ids
                    yield (
                        index,
                        to_prediction(token_ids, requests[index], decoding, self._tokenizer),
                    )

    def _submit(self, request: Request, decoding: Decoding) -> int:
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=decoding.temperature,
            top_p=decoding.top_p if decoding.temperature > 0 else 1.0,
            seed=request.seed if decoding.temperature > 0 else None,
            max_tokens=request.max_new_tokens,
            ignore_eos=True,  # the stop ids are all there is
            stop_token_ids=list(decoding.stop_ids),
            stop=list(decoding.stop_strings) or None,
            detokenize=bool(decoding.stop_strings),
        )
        prompt = {"prompt_token_ids": list(request.prompt_ids)}
        self._llm.enqueue([prompt], sampling, use_tqdm=False)
        # vLLM numbers requests from 0 in the order of submission.
        self._num_submitted += 1
        return self._num_submitted - 1

    def _step(self) -> Any:
        try:
            return self._llm.llm_engine.step()
        except Exception as error:  # whatever vLLM, its workers and the driver raise
            raise EngineError(
                f"vLLM stopped while generating: {type(error).__name__}: {error}; what was "
                "generated is kept and the same command continues; if memory is short, change "
                "--gpu-memory-utilization; if vLLM cannot run the model, use --engine "
                "transformers with another --output"
            ) from error

    def close(self) -> None:
        """Stop the engine, so that its memory is free when this returns; delete a merged copy."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        self._copies.close()
