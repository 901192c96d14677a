"""What finetune-teacher and precompute-logits would do and need, found out without any weights."""

from typing import Any

from pipeline.data.tokenization import tokenize_dataset
from pipeline.estimates import stages
from pipeline.estimates.shapes import ModelShape, read_shape
from pipeline.estimates.sizes import DataSize, count_tokens
from pipeline.estimates.text import describe
from pipeline.models.checkpoint import find_checkpoint, read_model_config, vocabulary_rows
from pipeline.models.engines import pick_engine
from pipeline.models.loading import load_tokenizer
from pipeline.models.vocabulary import vocabulary_size
from pipeline.run_record import num_processes
from pipeline.teacher.engine import check_route
from pipeline.teacher.finetune_config import FinetuneTeacherConfig
from pipeline.teacher.precompute_config import PrecomputeConfig


def dry_run_pass(config: PrecomputeConfig) -> dict[str, Any]:
    """Print and return the estimate of a teacher pass; data and tokenizer are read.

    Raises:
        SmoothkdError: what the pass itself would refuse of data, teacher and settings. Neither
            the engine nor what is at the output is looked at.
    """
    from pipeline.teacher.expectations import check_row_groups
    from pipeline.teacher.precompute import check_teacher

    # The engine may be installed elsewhere; what its route cannot give is known here.
    if (config.engine if config.engine != "auto" else pick_engine("auto")[0]) == "vllm":
        check_route(config.vllm_route, config.support_section(), config.codec)
    checkpoint = find_checkpoint(config.teacher, config.revision, weights=False)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
    dataset = tokenize_dataset(config, tokenizer)
    print(dataset.describe())
    size, rows = vocabulary_size(tokenizer), vocabulary_rows(checkpoint)
    check_teacher(config, checkpoint, dataset, size, rows)
    check_row_groups(config.support_section(), config.examples_per_shard, dataset.examples)
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
        SmoothkdError: data, model or tokenizer cannot be read; the model is an adapter, or too
            short for the data.
    """
    from pipeline.training.lora import check_trainable
    from pipeline.training.model_config import check_length, load_model_config

    checkpoint = find_checkpoint(config.model, config.revision, weights=False)
    check_trainable(checkpoint)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
    dataset = tokenize_dataset(config, tokenizer)
    print(dataset.describe())
    model_config = load_model_config(checkpoint, trust_remote_code=config.trust_remote_code)
    check_length(model_config, max(len(example.input_ids) for example in dataset.examples))
    shape = read_shape(read_model_config(checkpoint))
    estimate = estimate_finetuning(config, shape, count_tokens(dataset))
    print(describe("finetune-teacher, a dry run; every number is an estimate:", estimate))
    return estimate


def estimate_finetuning(
    config: FinetuneTeacherConfig, shape: ModelShape, size: DataSize
) -> dict[str, Any]:
    """Return the estimate of fine-tuning a teacher on data of that size."""
    return stages.training(shape, size, config, processes=num_processes())
