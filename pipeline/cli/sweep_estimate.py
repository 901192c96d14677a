"""What a sweep needs before it runs: one student, each evaluation, and all cells together."""

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.cli.reference import load_command
from pipeline.data.config import DataSettings
from pipeline.estimates import stages
from pipeline.estimates.shapes import ModelShape, read_shape
from pipeline.estimates.sizes import DataSize, count_tokens, size_of_lengths
from pipeline.models.checkpoint import find_checkpoint, read_model_config
from pipeline.student.dry_run import estimate_student
from pipeline.sweep.cell import COMPARED_WITH
from pipeline.sweep.plan import SweepSettings
from storage_schema.reader import LogitCache


def estimate_sweep(
    settings: SweepSettings,
    size: DataSize,
    student: ModelShape,
    baselines: Sequence[ModelShape],
    prompts: Callable[[DataSettings], DataSize],
) -> dict[str, dict[str, Any]]:
    """Return the estimates of the first cell, of each of its evaluations, and of the sweep.

    Args:
        settings: the cells and evaluations.
        size: of the cache.
        student: the model that every cell trains.
        baselines: the models that are only evaluated.
        prompts: gives the size of an evaluation's dataset.
    """
    command = load_command("train-student")
    place = {"student": settings.student, "cache": "cache", "output": "output"}
    configs = [
        command.build({**settings.train_student, **cell.settings, **place}, cell.name)
        for cell in settings.cells
    ]
    cells = [estimate_student(config, student, size) for config in configs]
    evaluations = {}
    baseline_evaluations = []
    for name, section in settings.evaluations.items():
        shared = {k: v for k, v in section.items() if k not in COMPARED_WITH}
        config = load_command("evaluate-student").build(
            {**shared, "model": ["x=x"], "output": "x.json"}, name
        )
        asked = prompts(config)
        evaluations[f"evaluate-student, {name}"] = _estimate_evaluation(config, student, asked)
        baseline_evaluations += [_estimate_evaluation(config, one, asked) for one in baselines]
    whole = stages.sweep(
        cells, list(evaluations.values()), baseline_evaluations, num_baselines=len(baselines)
    )
    first = f"train-student, {settings.cells[0].name}"
    return {first: cells[0], **evaluations, "sweep-alpha, all of it": whole}


def estimate_opened_sweep(settings: SweepSettings, cache: LogitCache) -> dict[str, dict[str, Any]]:
    """Return the same, counted in the cache and in the evaluations' datasets.

    Raises:
        SmoothkdError: a model, tokenizer or dataset cannot be read.
    """
    from pipeline.data.tokenization import tokenize_dataset
    from pipeline.models.loading import load_tokenizer

    revision = settings.train_student.get("revision")
    checkpoint = find_checkpoint(settings.student, revision, weights=False)
    tokenizer = load_tokenizer(checkpoint)
    baselines = [
        read_shape(read_model_config(find_checkpoint(path, weights=False)))
        for path in settings.baselines.values()
    ]
    return estimate_sweep(
        settings,
        size_of_lengths(cache.sequence_lengths.tolist(), cache.response_lengths.tolist()),
        read_shape(read_model_config(checkpoint)),
        baselines,
        lambda data: count_tokens(tokenize_dataset(data, tokenizer)),
    )


def _estimate_evaluation(config: Any, shape: ModelShape, size: DataSize) -> dict[str, Any]:
    return stages.generation(
        shape,
        size,
        dtype=config.dtype,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    )
