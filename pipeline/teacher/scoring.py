"""Start an engine as a plan asks, and turn its scores into the responses a cache holds."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.tokenization import Example
from pipeline.models.checkpoint import Checkpoint
from pipeline.progress import Progress
from pipeline.teacher.engine import Engine, Scores
from pipeline.teacher.engine_config import EngineSettings
from pipeline.teacher.row_spec import RowSpec
from storage_schema import Plan, Response, response_from_rows
from storage_schema.documents import take
from storage_schema.layout import BFLOAT16_LOGITS


def plan_rows(plan: Plan) -> RowSpec:
    """Return what the rows of a plan's cache hold."""
    return RowSpec(
        plan.k,
        plan.vocabulary_size,
        seed=plan.support["seed"] if plan.support_kind == "sampled" else None,
        entropy=plan.stores_entropy,
    )


def start_engine(
    name: str,
    settings: EngineSettings,
    checkpoint: Checkpoint,
    plan: Plan,
    examples: Sequence[Example],
    merged_path: Path,
    route: str | None = None,
) -> Engine:
    """Return the engine, its model loaded in the plan's number type.

    Args:
        name: "vllm" or "transformers", see `pipeline.models.engines.pick_engine`.
        settings: what it may take of the machine.
        checkpoint: the teacher.
        plan: gives k, the vocabulary and the number type.
        examples: all that it will score; the longest one decides what vLLM reserves.
        merged_path: where vLLM's merged copy of an adapter's model is kept while it runs.
        route: see `pipeline.teacher.engine.pick_route`; None takes the plan's.

    Raises:
        CacheDamagedError: the plan does not name the teacher's number type.
    """
    dtype = take(plan.teacher, "dtype", str, "plan, teacher")
    if name == "vllm":
        from pipeline.teacher.vllm_engine import VllmEngine

        return VllmEngine(
            checkpoint,
            spec=plan_rows(plan),
            route=route or take(plan.engine, "route", str, "plan, engine"),
            dtype=dtype,
            longest=max(len(example.input_ids) for example in examples),
            merged_path=merged_path,
            tensor_parallel_size=settings.tensor_parallel_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            trust_remote_code=settings.trust_remote_code,
        )
    from pipeline.teacher.transformers_engine import TransformersEngine

    return TransformersEngine(
        checkpoint,
        spec=plan_rows(plan),
        dtype=dtype,
        batch_tokens=settings.batch_tokens,
        trust_remote_code=settings.trust_remote_code,
    )


def _optional_columns(plan: Plan, scores: Scores) -> dict[str, Any]:
    """Return the arguments of `response_from_rows` beyond those that every cache needs."""
    columns: dict[str, Any] = {}
    if plan.stores_entropy:
        columns["entropies_N"] = scores.entropies_N
    if plan.codec == BFLOAT16_LOGITS:
        columns["log_normalizers_N"] = scores.log_normalizers_N
    if plan.support_kind == "sampled":
        columns["draws_NK"] = scores.draws_NK
    return columns


def score_responses(
    engine: Engine, plan: Plan, examples: Sequence[Example], progress: Progress
) -> Iterator[Response]:
    """Yield each example as a response, cut and rounded as the plan says, in the order given.

    Args:
        engine: of the plan's k.
        plan: gives k, the minimum probability and the vocabulary.
        examples: what to score.
        progress: advanced by the tokens of each example.
    """
    for example, scores in zip(examples, engine.score(examples), strict=True):
        yield make_response(plan, example, scores)
        progress.advance(len(example.input_ids))


def make_response(plan: Plan, example: Example, scores: Scores) -> Response:
    """Return an example's scores as a response, cut and rounded as the plan says."""
    return response_from_rows(
        example.input_ids,
        example.response_start,
        scores.token_ids_NK,
        scores.logprobs_NK,
        scores.label_logprobs_N,
        k=plan.k,
        min_prob=plan.min_prob,
        vocabulary_size=plan.vocabulary_size,
        **_optional_columns(plan, scores),
    )
