"""What finetune-teacher and precompute-logits would do and need, found out without any weights."""

from typing import Any

from pipeline.data.tokenization import tokenize_dataset
from pipeline.estimates import stages
from pipeline.estimates.shapes import ModelShape, read_shape
from pipeline.estimates.sizes import DataSize, count_tokens
from pipeline.estimates.text import describe
from pipeline.models.checkpoint import find_checkpoint, read_model_config, vocabulary_rows
from pipeline.models.loading import load_tokenizer
from pipeline.models.vocabulary import vocabulary_size
from pipeline.run_record import num_processes
from pipeline.teacher.finetune_config import FinetuneTeacherConfig
from pipeline.teacher.precompute_config import PrecomputeConfig


def dry_run_pass(config: PrecomputeConfig) -> dict[str, Any]:
    """Print and return the estimate of a teacher pass; data and tokenizer are read.

    Raises:
        SmoothkdError: what the pass itself would refuse before its engine starts.
    """
    from pipeline.teacher.precompute import check_teacher

    checkpoint = find_checkpoint(config.teacher, config.revision, weights=False)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
    dataset = tokenize_dataset(config, tokenizer)
    print(dataset.describe())
    size, rows = vocabulary_size(tokenizer), vocabulary_rows(checkpoint)
    check_teacher(config, checkpoint, dataset, size, rows)
    shape = read_shape(read_model_config(checkpoint))
    estimate = estimate_pass(config, shape, count_tokens(dataset))
    print(describe("precompute-logits, a dry run; every number is an estimate:", estimate))
    return estimate


def estimate_pass(config: PrecomputeConfig, shape: ModelShape, size: DataSize) -> dict[str, Any]:
    """Return the estimate of a teacher pass over data of that size."""
    from pipeline.teacher.extraction import TRANSIENT_BYTES

    return stages.teacher_pass(
        shape,
        size,
        dtype=config.dtype,
        support=config.support_section(),
        codec=config.codec,
        examples_per_shard=config.examples_per_shard,
        tensor_parallel=config.tensor_parallel_size,
        num_partitions=config.num_partitions,
        scoring_bytes=TRANSIENT_BYTES["cuda"],
    )


def dry_run_finetuning(config: FinetuneTeacherConfig) -> dict[str, Any]:
    """Print and return the estimate of fine-tuning the teacher; data and tokenizer are read.

    Raises:
        SmoothkdError: data, model or tokenizer cannot be read.
    """
    checkpoint = find_checkpoint(config.model, config.revision, weights=False)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
    dataset = tokenize_dataset(config, tokenizer)
    print(dataset.describe())
    shape = read_shape(read_model_config(checkpoint))
    estimate = estimate_finetuning(config, shape, count_tokens(dataset))
    print(describe("finetune-teacher, a dry run; every number is an estimate:", estimate))
    return estimate


def estimate_finetuning(
    config: FinetuneTeacherConfig, shape: ModelShape, size: DataSize
) -> dict[str, Any]:
    """Return the estimate of fine-tuning a teacher on data of that size."""
    return stages.training(shape, size, config, processes=num_processes())
