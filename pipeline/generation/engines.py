"""Start the generator that a command asks for."""

from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.generation.requests import Decoding, Prediction, Request
from pipeline.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Generator(Protocol):
    """Answers requests; holds a loaded model until closed."""

    def generate(
        self, requests: Sequence[Request], decoding: Decoding, done: Set[int]
    ) -> Iterator[tuple[int, Prediction]]:
        """Yield the place of each request that is not `done`, and its answer, as they finish."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class TransformersGenerator:
    """A loaded model with the batch size to use."""

    def __init__(self, model: Any, tokenizer: "PreTrainedTokenizerBase", batch_size: int) -> None:
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size

    def generate(
        self, requests: Sequence[Request], decoding: Decoding, done: Set[int]
    ) -> Iterator[tuple[int, Prediction]]:
        """Yield the answers of `generate_batches`."""
        from pipeline.generation.transformers_generator import generate_batches

        yield from generate_batches(
            self._model, self._tokenizer, requests, decoding, self._batch_size, done
        )

    def close(self) -> None:
        """Give the model up; its owner may go on using it."""
        del self._model


def start_vllm_generator(
    checkpoint: Checkpoint,
    tokenizer: "PreTrainedTokenizerBase",
    requests: Sequence[Request],
    *,
    dtype: str,
    merged_path: Path,
    gpu_memory_utilization: float,
    trust_remote_code: bool,
    tensor_parallel_size: int = 1,
) -> Generator:
    """Return a vLLM engine with room for the longest of the requests and its answer.

    Args:
        checkpoint: the model, or an adapter, which is merged first.
        tokenizer: decodes the answers.
        requests: all that will be asked.
        dtype: "auto", float32, bfloat16 or float16.
        merged_path: where a merged copy is kept while the engine lives.
        gpu_memory_utilization: share of GPU memory the engine may take.
        trust_remote_code: run model code shipped with the checkpoint.
        tensor_parallel_size: GPUs the model is spread over.

    Raises:
        EngineError: vLLM does not start.
    """
    from pipeline.generation.vllm_generator import VllmGenerator

    return VllmGenerator(
        checkpoint,
        tokenizer,
        dtype=dtype,
        longest=max(len(r.prompt_ids) + r.max_new_tokens for r in requests),
        merged_path=merged_path,
        tensor_parallel_size=tensor_parallel_size,
        gpu_memory_utilization=gpu_memory_utilization,
        trust_remote_code=trust_remote_code,
    )
