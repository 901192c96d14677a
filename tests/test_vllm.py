"""Real vLLM against a transformers forward pass of the same real model."""

import importlib.util
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_partitions import COMMAND, as_flags

from pipeline.errors import EngineError
from pipeline.generation.vllm_start import start_vllm
from pipeline.teacher import verify
from pipeline.teacher.precompute import run
from pipeline.teacher.precompute_config import PrecomputeConfig
from pipeline.teacher.verify_config import VerifyCacheConfig
from storage_schema import LogitCache, Response, open_cache
from storage_schema.errors import CacheUnfinishedError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

ROWS = [
    ("Name the capital of France.", "The capital of France is Paris, on the river Seine."),
    ("What does a teacher do?", "A teacher helps students learn, and knows what it is unsure of."),
    ("Write one word.", "Unquestionably"),
    ("Summarize: it rained all day and the match was called off.", "Rain stopped the match."),
    ("Count to five.", "1, 2, 3, 4, 5"),
    ("Say something surprising.", "qzx jkvv 8831 !!! the moon is made of \u00e9lan"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [json.dumps({"prompt": prompt, "completion": text}) for prompt, text in ROWS]
    path.write_text("\n".join(rows) + "\n")
    return path


def score(teacher: Path, data: Path, output: Path, **settings: Any) -> LogitCache:
    config = PrecomputeConfig(
        teacher=str(teacher), data=str(data), output=str(output), examples_per_shard=4, **settings
    )
    run(config)
    return open_cache(output)


def entries(response: Response, row: int) -> dict[int, float]:
    first = int(response.num_entries[:row].sum())
    chosen = slice(first, first + int(response.num_entries[row]))
    return dict(
        zip(
            response.entry_token_ids[chosen].tolist(),
            response.entry_logprobs[chosen].tolist(),
            strict=True,
        )
    )


def worst_difference(a: LogitCache, b: LogitCache, *, shift: int = 0) -> tuple[float, float]:
    """Return the largest |difference| of common entries' and of labels' log-probabilities.

    With shift, row t of one is compared to row t + shift of the other. Entries that only one
    side holds count with their distance to the other side's cut.
    """
    worst, worst_label = 0.0, 0.0
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left.input_ids, right.input_ids)
        assert left.response_start == right.response_start
        for row in range(left.num_response_tokens - shift):
            mine, other = entries(left, row), entries(right, row + shift)
            for token in mine.keys() | other.keys():
                x = mine.get(token, min(mine.values()))
                worst = max(worst, abs(x - other.get(token, min(other.values()))))
            labels = left.label_logprobs[row], right.label_logprobs[row + shift]
            worst_label = max(worst_label, float(abs(labels[0] - labels[1])))
    return worst, worst_label


def test_both_engines_give_the_same_rows_in_float32(
    demo_model: Path, data: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"dtype": "float32", "k": 32, "min_prob": 0.0}
    ours = score(demo_model, data, tmp_path / "vllm", engine="vllm", **settings)
    plain = score(demo_model, data, tmp_path / "plain", engine="transformers", **settings)
    assert ours.plan.engine["name"] == "vllm"
    assert not torch.distributed.is_initialized()  # the engine is gone, with what it set up
    entry, label = worst_difference(ours, plain)
    # A float16 step is 0.0078 nats above 8 nats; the engines themselves differ by 1e-4.
    assert entry < 0.02
    assert label < 0.02
    # The position rule: a reader that is off by one row must not pass.
    shifted_entry, shifted_label = worst_difference(ours, plain, shift=1)
    assert shifted_entry > 1.0
    assert shifted_label > 1.0


def test_both_engines_agree_within_bfloat16(demo_model: Path, data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dtype": "bfloat16", "k": 32, "min_prob": 0.0}
    ours = score(demo_model, data, tmp_path / "vllm", engine="vllm", **settings)
    plain = score(demo_model, data, tmp_path / "plain", engine="transformers", **settings)
    entry, label = worst_difference(ours, plain)
    # bfloat16 logits near 20 lie 0.125 apart; thirty layers add a few steps.
    assert entry < 1.0
    assert label < 1.0
    labels = [
        np.concatenate([response.label_logprobs for response in cache]) for cache in (ours, plain)
    ]
    assert abs(labels[0] - labels[1]).mean() < 0.15
    best = [
        max(entries(x, row), key=entries(x, row).__getitem__)
        == max(entries(y, row), key=entries(y, row).__getitem__)
        for x, y in zip(ours, plain, strict=True)
        for row in range(x.num_response_tokens)
    ]
    assert np.mean(best) > 0.9


def test_an_adapter_is_scored_as_merged_and_leaves_nothing_behind(
    demo_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    settings: dict[str, Any] = {"dtype": "float32", "k": 16, "min_prob": 0.0}
    copied = score(tmp_path / "adapter", data, tmp_path / "copied", engine="vllm", **settings)
    monkeypatch.setattr("pipeline.teacher.vllm_adapter.is_slow_here", lambda: False)
    adapted = score(tmp_path / "adapter", data, tmp_path / "vllm", engine="vllm", **settings)
    plain = score(tmp_path / "adapter", data, tmp_path / "plain", engine="transformers", **settings)
    base = score(demo_model, data, tmp_path / "base", engine="transformers", **settings)
    assert worst_difference(adapted, plain)[0] < 0.02
    assert worst_difference(adapted, base)[0] > 0.2
    public: dict[str, Any] = {"engine": "vllm", "vllm_route": "prompt_logprobs", **settings}
    merged = score(tmp_path / "adapter", data, tmp_path / "public", **public)
    assert worst_difference(merged, plain)[0] < 0.02
    assert worst_difference(copied, plain)[0] < 0.02
    uses = [cache.plan.teacher["adapter"] for cache in (adapted, copied, merged, plain, base)]
    assert uses == ["served", "merged", "merged", "merged", None]
    assert sorted(path.name for path in (tmp_path / "vllm").iterdir()) == [
        "manifest.json",
        "passes",
        "plan.json",
        "shards",
    ]
    assert not list((tmp_path / "public").glob("merged-teacher*"))
    check = VerifyCacheConfig(
        cache=str(tmp_path / "vllm"), teacher=str(tmp_path / "adapter"), rescore=4, engine="vllm"
    )
    rescored = verify.run(check)["rescored"]
    assert rescored["num_examples"] == 4
    assert rescored["cache"]["label"]["max"] < 0.02
    assert rescored["repeat"]["label"]["max"] < 0.02


def test_a_pass_killed_by_sigkill_is_resumed_to_the_rows_of_one_that_was_not(
    demo_model: Path, tmp_path: Path
) -> None:
    """Tie-aware: within the noise that the engine shows against itself."""
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{number}. {q}", "completion": a} for number in range(20) for q, a in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"dtype": "float32", "k": 16, "min_prob": 0.0, "engine": "vllm"}
    settings |= {"teacher": str(demo_model), "data": str(path), "examples_per_shard": 2}
    resumed = tmp_path / "resumed"
    process = subprocess.Popen(
        [*COMMAND, *as_flags({**settings, "output": str(resumed)})],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and len(list(resumed.glob("shards/*.parquet"))) < 3:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)  # with the engine's own processes
    assert process.wait() == -signal.SIGKILL
    published = {shard: shard.read_bytes() for shard in resumed.glob("shards/*.parquet")}
    assert 3 <= len(published) < 60
    with pytest.raises(CacheUnfinishedError):
        open_cache(resumed)
    for output in (resumed, tmp_path / "whole"):
        run(PrecomputeConfig(**settings, output=str(output)))
    assert all(shard.read_bytes() == data for shard, data in published.items())
    assert not list(resumed.rglob("*.tmp-*"))
    entry, label = worst_difference(open_cache(resumed), open_cache(tmp_path / "whole"))
    check = VerifyCacheConfig(cache=str(resumed), teacher=str(demo_model), rescore=120)
    rescored = verify.run(check)["rescored"]
    assert rescored["num_examples"] == 120
    noise = rescored["repeat"]
    print(f"resumed: entries {entry}, labels {label}; noise {noise}")
    step = 2.0**-7  # of float16 above 8 nats: one rounding the other way is no difference
    assert entry <= noise["entry"]["max"] + step
    assert label <= noise["label"]["max"] + step
    assert rescored["cache"]["entry"]["max"] <= noise["entry"]["max"] + step


def test_a_model_vllm_cannot_run_is_named_and_nothing_is_left(
    tiny_model: Path, tmp_path: Path
) -> None:
    """The tiny model's heads of 8 are no size that vLLM's CPU attention has."""
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "say the sum", "completion": "two numbers"}) + "\n")
    limits: dict[str, Any] = {"k": 4, "max_prompt_tokens": 60, "max_sequence_tokens": 90}
    with pytest.raises(EngineError, match="vLLM stopped while scoring: .*--engine transformers"):
        score(tiny_model, data, tmp_path / "cache", engine="vllm", **limits)
    assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()] == ["plan.json"]


def test_a_model_vllm_cannot_start_with_is_named() -> None:
    with pytest.raises(EngineError, match="vLLM could not start with /no/such/model: "):
        start_vllm(model="/no/such/model", dtype="float32")


def test_draws_are_those_of_transformers_of_another_partitioning_and_unbiased(
    demo_model: Path, data: Path, tmp_path: Path
) -> None:
    sampled: dict[str, Any] = {
        "dtype": "float32",
        "support": "sampled",
        "seed": 3,
        "store_entropy": True,
    }
    whole = score(demo_model, data, tmp_path / "whole", engine="vllm", **sampled)
    assert whole.plan.engine["route"] == "worker_hook"
    parts = {"engine": "vllm", "num_partitions": 2, **sampled}
    for partition in (1, 0):
        run(
            PrecomputeConfig(
                teacher=str(demo_model),
                data=str(data),
                output=str(tmp_path / "parts"),
                examples_per_shard=2,
                partition=partition,
                **parts,
            )
        )
    plain = score(demo_model, data, tmp_path / "plain", engine="transformers", **sampled)
    for other in (open_cache(tmp_path / "parts"), plain):
        # A draw moves only where the noise of float32 logits moves the sum under it.
        assert share_of_moved_draws(whole, other) < 0.005
    other_seed = {**sampled, "seed": 4}
    elsewhere = score(demo_model, data, tmp_path / "seed", engine="transformers", **other_seed)
    assert share_of_moved_draws(whole, elsewhere) > 0.1
    # The mean surprise of unbiased draws is the entropy; renormalized ids know too little of it.
    assert abs(entropy_error(whole, by_draws=True)) < 4
    assert abs(entropy_error(whole, by_draws=False)) > 8


def share_of_moved_draws(a: LogitCache, b: LogitCache) -> float:
    moved = total = 0
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left.input_ids, right.input_ids)
        counts: list[dict[tuple[int, int], int]] = []
        for response in (left, right):
            rows = np.repeat(np.arange(len(response.num_entries)), response.num_entries)
            keys = zip(rows.tolist(), response.entry_token_ids.tolist(), strict=True)
            counts.append(dict(zip(keys, response.entry_draws.tolist(), strict=True)))
        one, two = counts
        moved += sum(abs(one.get(key, 0) - two.get(key, 0)) for key in one.keys() | two.keys())
        total += sum(one.values()) + sum(two.values())
    return moved / total


def entropy_error(cache: LogitCache, *, by_draws: bool) -> float:
    """Mean surprise of the entries less the stored entropy, in standard errors over rows."""
    errors = []
    for response in cache:
        ends = np.cumsum(response.num_entries)
        for row, end in enumerate(ends):
            here = slice(end - response.num_entries[row], end)
            logprobs = response.entry_logprobs[here].astype(np.float64)
            weights = response.entry_draws[here] if by_draws else np.exp(logprobs)
            surprise = -(weights * logprobs).sum() / weights.sum()
            errors.append(surprise - response.entropies[row])
    return float(np.mean(errors) / (np.std(errors) / np.sqrt(len(errors))))
