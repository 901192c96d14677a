"""What train-student would do and need, found out without any weights."""

from typing import Any

from pipeline.estimates import stages
from pipeline.estimates.shapes import ModelShape, read_shape
from pipeline.estimates.sizes import DataSize, size_of_lengths
from pipeline.estimates.text import describe
from pipeline.models.checkpoint import find_checkpoint, read_model_config
from pipeline.run_record import num_processes
from pipeline.student.config import TrainStudentConfig
from storage_schema.reader import LogitCache


def dry_run(config: TrainStudentConfig, cache: LogitCache) -> dict[str, Any]:
    """Print and return the estimate of training on a cache; the tokenizers are compared.

    Raises:
        ModelError: the student is missing, an adapter, or does not fit the cache.
        ConfigError: a pass of batch_tokens cannot hold the longest sequence.
    """
    from pipeline.student.fit import check_run

    checkpoint = find_checkpoint(config.student, config.revision, weights=False)
    check_run(config, cache, checkpoint)
    size = size_of_lengths(cache.sequence_lengths.tolist(), cache.response_lengths.tolist())
    estimate = estimate_student(config, read_shape(read_model_config(checkpoint)), size)
    print(describe("train-student, a dry run; every number is an estimate:", estimate))
    return estimate


def estimate_student(
    config: TrainStudentConfig, shape: ModelShape, size: DataSize
) -> dict[str, Any]:
    """Return the estimate of training a student on a cache of that size."""
    from pipeline.student.fused_loss import CHUNK_BYTES

    return stages.training(
        shape,
        size,
        config,
        processes=num_processes(),
        sharded=config.fsdp,
        batch_tokens=config.batch_tokens,
        loss_chunk_bytes=CHUNK_BYTES["cuda"],
    )
