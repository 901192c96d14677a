"""What one stage needs, put together: rows, steps, memory, disk, time. Every number an estimate.

Each function returns a JSON-ready dict; pipeline.estimates.text words it.
"""

import math
from collections.abc import Sequence
from typing import Any

from pipeline.estimates.compute import (
    DEVICES,
    TWO_CORES_SCORING,
    TWO_CORES_TRAINING,
    USABLE_SHARE,
    UTILISATION,
    Device,
    forward_flops,
    generation_seconds,
    training_flops,
    training_seconds,
)
from pipeline.estimates.disk import (
    cache_bytes,
    entries_per_row,
    entries_per_sampled_row,
    student_bytes,
)
from pipeline.estimates.memory import (
    DTYPE_BYTES,
    TrainingChoices,
    key_value_bytes,
    teacher_pass_memory,
    training_step_memory,
    weight_bytes,
)
from pipeline.estimates.shapes import ModelShape
from pipeline.estimates.sizes import DataSize
from pipeline.training.settings import TrainingSettings

# Larger models are not for two processor cores.
SMALL_PARAMETERS = 5e8


def teacher_pass(
    shape: ModelShape,
    size: DataSize,
    *,
    dtype: str,
    support: dict[str, Any],
    codec: str,
    examples_per_shard: int,
    tensor_parallel: int,
    num_partitions: int,
    scoring_bytes: int,
) -> dict[str, Any]:
    """Return the estimate of a teacher pass.

    Args:
        shape: the teacher.
        size: the dataset.
        dtype: of the teacher; "auto" is the checkpoint's.
        support: the plan's section of that name.
        codec: of the cache.
        examples_per_shard: responses in a shard.
        tensor_parallel: GPUs of one engine.
        num_partitions: engines.
        scoring_bytes: what scoring holds at a time (pipeline.teacher.extraction).
    """
    dtype = shape.dtype if dtype == "auto" else dtype
    entries = entries_per_row(support["k"], support["min_prob"])
    if support["kind"] == "sampled":
        entries = entries_per_sampled_row(support["num_samples"])
    cache = cache_bytes(
        response_tokens=size.response_tokens,
        tokens=size.tokens,
        entries=entries,
        vocabulary_rows=shape.vocabulary_rows,
        codec=codec,
    )
    memory = teacher_pass_memory(
        shape,
        dtype,
        longest=size.longest,
        tensor_parallel=tensor_parallel,
        scoring_bytes=scoring_bytes,
    )
    flops = forward_flops(
        shape,
        tokens=size.tokens,
        scored_tokens=size.response_tokens,
        mean_length=size.mean_length,
    )
    return {
        **_basics(shape, size),
        "shards": math.ceil(size.rows / examples_per_shard),
        "gpus": tensor_parallel * num_partitions,
        "disk_bytes": {"cache": cache},
        "bytes_per_response_token": cache / size.response_tokens,
        "entries_per_response_token": entries,
        "memory_bytes": memory,
        "fits": _fits(memory["total"]),
        "flops": sum(flops.values()),
        "gpu_hours": {
            device.name: sum(flops.values()) / (device.peak_flops * UTILISATION) / 3600
            for device in _devices(shape, TWO_CORES_SCORING)
        },
    }


def training(
    shape: ModelShape,
    size: DataSize,
    settings: TrainingSettings,
    *,
    processes: int = 1,
    sharded: bool = False,
    batch_tokens: int | None = None,
    loss_chunk_bytes: int | None = None,
) -> dict[str, Any]:
    """Return the estimate of a training run on GPUs.

    Args:
        shape: the model.
        size: the dataset or cache.
        settings: of the run.
        processes: that train together, one GPU each.
        sharded: whether weights and optimiser are spread over them.
        batch_tokens: most tokens of a pass; None takes batch_size of the longest responses.
        loss_chunk_bytes: logits the loss makes at a time; None for all of a pass at once.
    """
    choices = TrainingChoices(
        tuning=settings.tuning,
        dtype="bfloat16" if settings.dtype == "auto" else settings.dtype,
        lora_rank=settings.lora_rank,
        gradient_checkpointing=settings.gradient_checkpointing,
        processes=processes if sharded else 1,
    )
    tokens = batch_tokens or settings.batch_size * size.longest
    memory = training_step_memory(
        shape,
        choices,
        tokens=tokens,
        response_tokens=min(tokens, settings.batch_size * size.longest_response),
        loss_chunk_bytes=loss_chunk_bytes,
    )
    rows = round(size.rows * (1 - settings.eval_share))
    a_step = settings.batch_size * settings.gradient_accumulation_steps * processes
    steps = settings.max_steps or math.ceil(math.ceil(rows / a_step) * settings.epochs)
    passes = steps * a_step / size.rows
    flops = passes * training_flops(
        shape,
        tokens=size.tokens,
        scored_tokens=size.response_tokens,
        mean_length=size.mean_length,
        full=settings.tuning == "full",
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    disk = student_bytes(shape, settings.tuning, settings.lora_rank, settings.merge)
    if settings.save_every_steps is None:
        del disk["checkpoint"]
    return {
        **_basics(shape, size),
        "steps": steps,
        "responses_per_step": a_step,
        "gpus": processes,
        "disk_bytes": disk,
        "memory_bytes": memory,
        "fits": _fits(memory["total"]),
        "flops": flops,
        "gpu_hours": {
            device.name: training_seconds(
                device, flops, steps * settings.gradient_accumulation_steps * processes
            )
            / 3600
            for device in _devices(shape, TWO_CORES_TRAINING)
        },
    }


def generation(
    shape: ModelShape,
    size: DataSize,
    *,
    dtype: str,
    max_new_tokens: int,
    batch_size: int,
    tensor_parallel: int = 1,
    paged: bool = False,
) -> dict[str, Any]:
    """Return the estimate of answering every prompt of a dataset.

    Answers of the longest length are assumed, so the time is an upper bound in that.

    Args:
        shape: the model that answers.
        size: the prompts.
        dtype: of the weights; "auto" is the checkpoint's.
        max_new_tokens: of an answer.
        batch_size: prompts answered together.
        tensor_parallel: GPUs of one engine.
        paged: whether the engine needs room for one sequence only, and takes what there is.
    """
    dtype = shape.dtype if dtype == "auto" else dtype
    weights = weight_bytes(shape, dtype) / tensor_parallel
    in_flight = (1 if paged else batch_size) * (size.longest + max_new_tokens)
    cache = in_flight * key_value_bytes(shape, dtype) / tensor_parallel
    memory = {
        "weights": weights,
        "attention_cache": cache,
        "logits": float(batch_size * shape.vocabulary_rows * (DTYPE_BYTES[dtype] + 4)),
    }
    memory["total"] = sum(memory.values())
    hours = {
        device.name: generation_seconds(
            shape,
            device,
            prompts=size.rows,
            prompt_tokens=size.tokens - size.response_tokens,
            new_tokens=max_new_tokens,
            batch_size=batch_size,
            weight_bytes=weights,
        )
        / 3600
        for device in _devices(shape, TWO_CORES_SCORING)
    }
    return {
        **_basics(shape, size),
        "gpus": tensor_parallel,
        "memory_bytes": memory,
        "fits": _fits(memory["total"]),
        "gpu_hours": hours,
    }


def sweep(
    cells: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    baseline_evaluations: Sequence[dict[str, Any]],
    *,
    num_baselines: int,
) -> dict[str, Any]:
    """Return the estimate of training and evaluating the cells of a sweep.

    Args:
        cells: of `training`, one a cell, at least one.
        evaluations: of `generation`, one an evaluation of a cell.
        baseline_evaluations: of `generation`, of all models that are only evaluated.
        num_baselines: how many models these are.
    """
    parts = [*cells, *evaluations, *baseline_evaluations]
    times = [*cells, *(one for one in evaluations for _ in cells), *baseline_evaluations]
    devices = [name for name in cells[0]["gpu_hours"] if all(name in t["gpu_hours"] for t in times)]
    hours = {name: sum(one["gpu_hours"][name] for one in times) for name in devices}
    return {
        "cells": len(cells),
        "baselines": num_baselines,
        "disk_bytes": {"students": sum(one["disk_bytes"]["output"] for one in cells)},
        "memory_bytes": {"total": max(one["memory_bytes"]["total"] for one in parts)},
        "fits": min((one["fits"] for one in parts), key=len),
        "gpu_hours": hours,
    }


def _basics(shape: ModelShape, size: DataSize) -> dict[str, Any]:
    return {
        "parameters": shape.num_parameters,
        "rows": size.rows,
        "prompt_tokens": size.tokens - size.response_tokens,
        "response_tokens": size.response_tokens,
        "rows_are": size.source,
    }


def _devices(shape: ModelShape, two_cores: Device) -> tuple[Device, ...]:
    return (*DEVICES, two_cores) if shape.num_parameters < SMALL_PARAMETERS else DEVICES


def _fits(num_bytes: float) -> list[str]:
    return [d.name for d in DEVICES if num_bytes <= d.memory_bytes * USABLE_SHARE]
