"""The teacher pass over a tiny model: content, resuming, refusals before the engine starts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.teacher.precompute import run
from pipeline.teacher.precompute_config import PrecomputeConfig
from storage_schema import Response, open_cache
from storage_schema.errors import CacheUnfinishedError, PlanMismatchError

WORDS = "teacher student text number sum fox lazy dog raining outside sure unsure of the".split()


def write_data(path: Path, num: int = 22) -> Path:
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        for i in range(num):
            row = {
                "instruction": f"Say {' '.join(rng.choice(WORDS, 5))} {i}",
                "response": " ".join(rng.choice(WORDS, int(rng.integers(3, 9)))),
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    return {
        "teacher": str(tiny_model),
        "data": str(write_data(tmp_path / "train.jsonl")),
        "output": str(tmp_path / "cache"),
        "engine": "transformers",
        "k": 8,
        "examples_per_shard": 5,
        "max_prompt_tokens": 100,
        "max_sequence_tokens": 160,
    }


def config(settings: dict[str, Any], **changes: Any) -> PrecomputeConfig:
    return PrecomputeConfig(**{**settings, **changes})


def files(cache: Path) -> dict[str, bytes]:
    """The bytes of the cache; the records of its passes are none of it, and hold times."""
    found = [p for p in cache.rglob("*") if p.is_file() and p.parent.name != "passes"]
    return {str(p.relative_to(cache)): p.read_bytes() for p in found}


def test_cache_holds_the_teachers_rows_at_response_positions(
    settings: dict[str, Any], tiny_model: Path
) -> None:
    from test_teacher_engines import make_example, true_logprobs

    result = run(config(settings))
    cache = open_cache(settings["output"])
    assert len(cache) == 22 == result["num_examples"]
    assert result["num_response_tokens"] == cache.response_lengths.sum()
    for response in cache:
        truth = true_logprobs(
            tiny_model, make_example(*response.input_ids, start=response.response_start)
        )
        compare_rows(response, truth, k=8, atol=2e-3)


def compare_rows(response: Response, truth: np.ndarray, k: int, atol: float) -> None:
    """Each row holds the k best of the float64 truth, up to rounding and near-ties."""
    first = 0
    labels = response.input_ids[response.response_start :]
    for row, count in enumerate(response.num_entries):
        ids = response.entry_token_ids[first : first + count]
        logprobs = response.entry_logprobs[first : first + count]
        first += count
        np.testing.assert_allclose(logprobs, truth[row][ids], atol=atol, rtol=2**-10)
        cut = max(np.sort(truth[row])[-k], np.log(1e-3))
        assert set(np.flatnonzero(truth[row] > cut + atol)) <= set(ids)
        mass = np.exp(truth[row][ids]).sum()
        assert np.exp(response.log_tail_mass[row]) == pytest.approx(1 - mass, abs=1e-3)
        assert response.label_logprobs[row] == pytest.approx(truth[row][labels[row]], abs=0.02)


def test_a_second_run_changes_nothing_and_starts_no_engine(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config(settings))
    before = files(Path(settings["output"]))
    monkeypatch.setattr("pipeline.teacher.precompute.start_engine", None)
    assert run(config(settings))["shards_written"] == 0
    assert files(Path(settings["output"])) == before


def test_missing_shards_are_written_again_with_the_same_bytes(settings: dict[str, Any]) -> None:
    run(config(settings))
    cache = Path(settings["output"])
    before = files(cache)
    (cache / "manifest.json").unlink()
    (cache / "shards" / "shard-00002.parquet").unlink()
    (cache / "shards" / "shard-00004.parquet").unlink()
    with pytest.raises(CacheUnfinishedError, match="manifest.json is missing"):
        open_cache(cache)
    assert run(config(settings))["shards_written"] == 2
    assert files(cache) == before


@pytest.mark.slow
def test_killed_at_any_moment_it_continues_to_the_same_bytes(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    run(config(settings, output=str(tmp_path / "whole"), examples_per_shard=1))
    whole = files(tmp_path / "whole")
    script = (
        "import sys, json; from pipeline.teacher.precompute import run; "
        "from pipeline.teacher.precompute_config import PrecomputeConfig; "
        "run(PrecomputeConfig(**json.loads(sys.argv[1])))"
    )
    argument = json.dumps({**settings, "examples_per_shard": 1})
    cache = Path(settings["output"])
    for shards_before_kill in (1, 7, 15):
        process = subprocess.Popen(
            [sys.executable, "-c", script, argument], stdout=subprocess.DEVNULL
        )
        while (
            process.poll() is None
            and len(list(cache.glob("shards/*.parquet"))) < shards_before_kill
        ):
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
        assert not (cache / "manifest.json").exists(), "too fast: nothing was interrupted"
    run(config(settings, examples_per_shard=1))
    assert files(cache) == whole


def test_another_setting_over_the_same_cache_is_refused_by_name(settings: dict[str, Any]) -> None:
    run(config(settings))
    with pytest.raises(PlanMismatchError, match=r"support\.k: there 8, asked 4"):
        run(config(settings, k=4))
    with pytest.raises(
        PlanMismatchError, match=r"teacher\.dtype: there 'float32', asked 'bfloat16'"
    ):
        run(config(settings, dtype="bfloat16"))


def test_dropped_and_cut_examples_are_counted_in_the_plan(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(settings["data"])
    rows = data.read_text().splitlines()
    rows.append(json.dumps({"instruction": "x " * 200, "response": "too long a prompt"}))
    rows.append(json.dumps({"instruction": "cut me", "response": "word " * 300}))
    rows.append(rows[0])
    data.write_text("\n".join(rows) + "\n")
    run(config(settings))
    counts = open_cache(settings["output"]).plan.dataset["counts"]
    assert counts["rows"] == 25
    assert counts["dropped_prompt_too_long"] == 1
    assert counts["dropped_duplicate"] == 1
    assert counts["cut_responses"] == 1
    assert counts["kept"] == 23 == open_cache(settings["output"]).plan.num_examples
    assert "25 rows" in capsys.readouterr().out


def test_bad_input_is_refused_before_any_engine_starts(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pipeline.teacher.precompute.start_engine", None)
    with pytest.raises(ConfigError, match="--k is 500, the vocabulary has 3"):
        run(config(settings, k=500))
    with pytest.raises(ConfigError, match="the teacher computes in float32; use --codec float16"):
        run(config(settings, codec="bfloat16-logits"))
    with pytest.raises(ModelError, match="no model at '/no/such/model'"):
        run(config(settings, teacher="/no/such/model"))
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        run(config(settings, data=str(tmp_path / "missing.jsonl")))
    data = tmp_path / "long.jsonl"
    data.write_text(json.dumps({"instruction": "go", "response": "lazy dog " * 200}) + "\n")
    with pytest.raises(
        ModelError, match=r"takes 256 with one to spare.*--max-sequence-tokens to 255"
    ):
        run(config(settings, data=str(data), max_sequence_tokens=600))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    monkeypatch.setattr("pipeline.teacher.precompute.tokenize_dataset", None)
    with pytest.raises(PlanMismatchError, match=r"thesis\.txt"):
        run(config(settings, output=str(tmp_path / "taken")))


def test_settings_out_of_range_name_their_flag(settings: dict[str, Any]) -> None:
    for name, value, text in [
        ("k", 0, "--k is 0"),
        ("examples_per_shard", 0, "--examples-per-shard is 0"),
        ("min_prob", 1.0, "--min-prob is 1.0"),
        ("gpu_memory_utilization", 0.0, "--gpu-memory-utilization is 0.0"),
    ]:
        with pytest.raises(ConfigError, match=text):
            config(settings, **{name: value})


def test_a_teacher_with_fewer_logits_than_tokens_is_refused(
    settings: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    model_config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**model_config, "vocab_size": 100}))
    with pytest.raises(ModelError, match=r"has 100 logits for 3\d\d tokens"):
        run(config(settings, teacher=str(broken)))
