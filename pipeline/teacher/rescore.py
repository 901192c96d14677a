"""Score examples of a cache again, and hold the difference against the engine's own noise.

An engine's numbers depend a little on which examples share a batch. So the sample is scored
twice, in another order and other batches, and the cache's difference from the first pass is
shown beside the difference between the two passes. All three are cut and rounded alike.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.tokenization import Example
from pipeline.errors import ModelError
from pipeline.models.checkpoint import Checkpoint, find_checkpoint, fingerprint_checkpoint
from pipeline.models.engines import pick_engine
from pipeline.progress import Progress
from pipeline.teacher import vllm_layout
from pipeline.teacher.engine import (
    Engine,
    check_route,
    describe_engine,
    pick_route,
)
from pipeline.teacher.scoring import score_responses, start_engine
from pipeline.teacher.verify_config import VerifyCacheConfig
from storage_schema import Plan, Response


def find_teacher(config: VerifyCacheConfig, plan: Plan) -> Checkpoint:
    """Return the teacher that is named, once it is known to be the plan's.

    Raises:
        ModelError: there is no such model, or it is not the one that made the cache.
    """
    checkpoint = find_checkpoint(str(config.teacher), config.revision)
    found, planned = fingerprint_checkpoint(checkpoint), plan.teacher.get("fingerprint")
    if found != planned:
        raise ModelError(
            f"teacher {config.teacher} has fingerprint {found}, the cache was made by "
            f"{plan.teacher.get('name')!r} with fingerprint {planned}: name the teacher that made "
            "the cache"
        )
    return checkpoint


def rescore(
    config: VerifyCacheConfig, checkpoint: Checkpoint, plan: Plan, cached: Sequence[Response]
) -> dict[str, Any]:
    """Return the differences of the cache, and of a repetition, from one pass of the engine.

    Args:
        config: engine and what it may take of the machine.
        checkpoint: from `find_teacher`.
        plan: of the cache.
        cached: the examples to score, at least one, as the cache holds them.
    """
    examples = [Example(response.input_ids, response.response_start) for response in cached]
    name, _ = pick_engine(config.engine)
    # The cache's route where it can be had: any other says the same, up to the engine's noise.
    planned = plan.engine.get("route") if vllm_layout.why_unknown() is None else None
    route, _ = pick_route(name, config.vllm_route, planned)
    check_route(route, plan.support, plan.codec)
    with tempfile.TemporaryDirectory(prefix="verify-cache-") as folder:
        engine = start_engine(
            name, config, checkpoint, plan, examples, Path(folder) / "merged-teacher", route
        )
        try:
            first, second = _score_twice(engine, plan, examples)
        finally:
            engine.close()
    return {
        "num_examples": len(examples),
        "engine": describe_engine(name, route, config.tensor_parallel_size),
        "cache_engine": plan.engine,
        "cache": compare(first, cached),
        "repeat": compare(first, second),
    }


def _score_twice(
    engine: Engine, plan: Plan, examples: list[Example]
) -> tuple[list[Response], list[Response]]:
    """Score all together, then backwards in two halves of every other example."""
    tokens = sum(len(example.input_ids) for example in examples)
    with Progress("verify-cache: scoring twice", 2 * tokens, "tokens") as progress:
        first = list(score_responses(engine, plan, examples, progress))
        second = list(first)
        for start in (0, 1):
            half = list(range(len(examples)))[start::2][::-1]
            if half:
                part = [examples[i] for i in half]
                for i, found in zip(
                    half, score_responses(engine, plan, part, progress), strict=True
                ):
                    second[i] = found
    return first, second


def compare(truth: Sequence[Response], other: Sequence[Response]) -> dict[str, Any]:
    """Return how far the rows of `other` lie from those of `truth`, the same examples.

    Differences are absolute, in nats, of values rounded as they are stored. Keys: num_rows;
    label and entry, each mean, p99 and max (entry: of token ids that both rows hold);
    entries_not_shared, the share of `other`'s entries that `truth`'s row lacks; best_changed,
    the share of rows with another most likely token.
    """
    labels = np.concatenate(
        [_gap(a.label_logprobs, b.label_logprobs) for a, b in zip(truth, other, strict=True)]
    )
    gaps, best_changed, num_entries = [], 0, 0
    for one, two in zip(truth, other, strict=True):
        keys_one, keys_two = _keys(one), _keys(two)
        _, places_one, places_two = np.intersect1d(
            keys_one, keys_two, assume_unique=True, return_indices=True
        )
        gaps.append(_gap(one.entry_logprobs[places_one], two.entry_logprobs[places_two]))
        num_entries += len(keys_two)
        best_changed += int((_best(one) != _best(two)).sum())
    entries = np.concatenate(gaps)
    return {
        "num_rows": len(labels),
        "label": _describe(labels),
        "entry": _describe(entries),
        "entries_not_shared": 1.0 - len(entries) / num_entries,
        "best_changed": best_changed / len(labels),
    }


def _gap(one: npt.NDArray[np.floating], two: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    return np.abs(one.astype(np.float64) - two.astype(np.float64))


def _keys(response: Response) -> npt.NDArray[np.int64]:
    """Return one number for each entry, its row above its token id."""
    rows = np.repeat(np.arange(len(response.num_entries)), response.num_entries)
    return rows << 32 | response.entry_token_ids


def _best(response: Response) -> npt.NDArray[np.int32]:
    first = np.cumsum(response.num_entries) - response.num_entries
    return np.asarray(response.entry_token_ids[first])


def _describe(gaps: npt.NDArray[np.float64]) -> dict[str, float | None]:
    if len(gaps) == 0:
        return {"mean": None, "p99": None, "max": None}
    p99 = np.percentile(gaps, 99, method="inverted_cdf")
    return {"mean": float(gaps.mean()), "p99": float(p99), "max": float(gaps.max())}
