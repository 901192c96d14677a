"""What a cache can hold besides top-k: draws, entropies, logits; and the route in its plan."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_precompute import config, settings
from test_teacher_engines import make_example, true_logprobs

from pipeline.errors import ConfigError
from pipeline.teacher import engine as engine_module
from pipeline.teacher import precompute, vllm_layout
from pipeline.teacher.precompute import run
from storage_schema import Response, open_cache
from storage_schema.errors import PlanMismatchError

__all__ = ["settings"]  # the fixture


def truth_of(model: Path, response: Response) -> np.ndarray:
    return true_logprobs(model, make_example(*response.input_ids, start=response.response_start))


@pytest.mark.slow
def test_a_sampled_cache_holds_true_logprobs_and_the_same_draws_in_any_batch(
    settings: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    sampled = {"support": "sampled", "num_samples": 20, "seed": 5, "store_entropy": True}
    run(config(settings, **sampled))
    again = {"output": str(tmp_path / "again"), "batch_tokens": 200, "examples_per_shard": 3}
    run(config(settings, **sampled, **again))
    run(config(settings, **{**sampled, "seed": 6}, output=str(tmp_path / "other")))
    paths = (settings["output"], again["output"], tmp_path / "other")
    first, second, other = (open_cache(path) for path in paths)
    assert first.plan.support == {
        "kind": "sampled",
        "k": 20,
        "num_samples": 20,
        "min_prob": 0.0,
        "seed": 5,
        "entropy": True,
    }
    same = []
    for one, two, three in zip(first, second, other, strict=True):
        truth, at = truth_of(tiny_model, one), 0
        assert one.entropies is not None
        np.testing.assert_allclose(
            one.entropies, -(np.exp(truth) * truth).sum(1), atol=2e-3, rtol=2**-10
        )
        for row, num in enumerate(one.num_entries):
            ids = one.entry_token_ids[at : at + num]
            np.testing.assert_allclose(
                one.entry_logprobs[at : at + num], truth[row][ids], atol=2e-3, rtol=2**-10
            )
            assert one.entry_draws[at : at + num].sum() == 20
            at += num
        np.testing.assert_array_equal(one.entry_token_ids, two.entry_token_ids)
        np.testing.assert_array_equal(one.entry_draws, two.entry_draws)
        same.append(np.array_equal(one.entry_token_ids, three.entry_token_ids))
    assert not any(same)


def test_entropies_and_logits_are_stored_when_asked_for(
    settings: dict[str, Any], tiny_model: Path
) -> None:
    settings |= {"dtype": "bfloat16", "codec": "bfloat16-logits", "store_entropy": True}
    run(config(settings))
    cache = open_cache(settings["output"])
    assert cache.plan.codec == "bfloat16-logits"
    for response in cache:
        assert response.log_normalizers is not None
        rows = np.repeat(np.arange(len(response.num_entries)), response.num_entries)
        logits = response.entry_logprobs + response.log_normalizers[rows]
        bits = logits.astype(np.float32).view(np.uint32) & 0xFFFF
        assert (np.minimum(bits, 0x10000 - bits) <= 4).all()  # a bfloat16, up to float32 rounding
        truth = truth_of(tiny_model, response)
        wanted = -(np.exp(truth) * truth).sum(1)
        np.testing.assert_allclose(response.entropies, wanted, atol=0.1)


def test_an_unknown_vllm_is_refused_what_only_the_hook_gives_before_anything_is_read(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precompute, "pick_engine", lambda name: ("vllm", "asked for"))
    monkeypatch.setattr(vllm_layout, "why_unknown", lambda: "vLLM 9 is not known")
    monkeypatch.setattr(precompute, "find_checkpoint", None)
    for wanted, flag in (
        ({"support": "sampled"}, "--support sampled"),
        ({"store_entropy": True}, "--store-entropy"),
        ({"codec": "bfloat16-logits"}, "--codec bfloat16-logits"),
    ):
        with pytest.raises(ConfigError, match=f"{flag} cannot be had by route prompt_logprobs"):
            run(config(settings, engine="vllm", **wanted))


def test_a_cache_that_is_continued_keeps_its_route(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start(name: str, settings: Any, checkpoint: Any, plan: Any, *rest: Any) -> Any:
        started.append(plan.engine["route"])
        raise engine_module.EngineError("stop here")

    monkeypatch.setattr(precompute, "pick_engine", lambda name: ("vllm", "asked for"))
    monkeypatch.setattr(precompute, "start_engine", start)
    monkeypatch.setattr(vllm_layout, "why_unknown", lambda: None)
    asked = dataclasses.asdict(config(settings, engine="vllm"))
    for route, expected in (("prompt_logprobs", "prompt_logprobs"), ("auto", "prompt_logprobs")):
        with pytest.raises(engine_module.EngineError, match="stop here"):
            run(precompute.PrecomputeConfig(**{**asked, "vllm_route": route}))
        assert started[-1] == expected
    with pytest.raises(
        PlanMismatchError, match=r"engine\.route: there 'prompt_logprobs', asked 'worker_hook'"
    ):
        run(precompute.PrecomputeConfig(**{**asked, "vllm_route": "worker_hook"}))


def test_draws_below_one_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--num-samples is 0, expected at least 1"):
        config(settings, num_samples=0)
