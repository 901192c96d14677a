"""The sweep benchmark's arithmetic, and a run of it on the tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from sweep_cost import VARIANTS, compute, parse, summarize, table

BENCHMARKS = Path(__file__).parent / "benchmarks"
SECONDS = {"ours-kd": 10, "ours-sft": 9, "hf-sft": 12, "online-kd": 20, "online-kd-cut": 16}


def test_costs_by_hand():
    """30 + 5 * 2 * 10 = 130 s against 5 * 2 * 20 = 200 s."""
    found = compute(30, SECONDS, epochs=2, runs=5)
    assert found["cost_seconds"]["from the cache"] == 130
    assert found["ratio_vs_online_kd"] == 0.65
    assert found["ratio_vs_online_kd_cut"] == pytest.approx(130 / 160, abs=1e-3)
    assert found["ratio_vs_hf_sft"] == pytest.approx(130 / 120, abs=1e-3)
    assert found["ratio_vs_own_sft"] == pytest.approx(130 / 90, abs=1e-3)
    assert found["break_even_runs"] == 2  # 20 s saved a run: 30 + 20 N < 40 N from N = 2 on
    assert compute(40, SECONDS, 2, 5)["break_even_runs"] == 3  # at 2 both cost the same
    dear = {**SECONDS, "ours-kd": 20}
    assert compute(30, dear, 2, 5)["break_even_runs"] is None


def test_measured_seconds_are_sums_of_steps_and_means_of_passes():
    steps = {
        name: [{"seconds": seconds / 2, "tokens": 50, "response_tokens": 5}] * 2
        for name, seconds in SECONDS.items()
    }
    passes = [{"pass_seconds": s, "engine_start_seconds": 1.0} for s in (20.0, 40.0)]
    summary = summarize(passes, steps, epochs=2, runs=5)
    assert summary["ratio_vs_online_kd"] == 0.65
    assert summary["measured"]["pass_seconds"] == 30
    assert (summary["measured"]["tokens"], summary["measured"]["response_tokens"]) == (100, 10)
    shown = table(json.loads(json.dumps(summary)))
    assert "cost(N) = 30.0 s + N * 2 * 10.0 s" in shown
    assert "| online-kd | 20.0 | 200 | 0.65 |" in shown
    assert tuple(steps) == VARIANTS


@pytest.mark.parametrize(("argv", "expected"), [
    ([], "--model"),
    (["--model", "m", "--data", "d", "--runs", "0"], "--runs 0"),
])  # fmt: skip
def test_wrong_options_are_named(argv, expected, capsys):
    with pytest.raises(SystemExit):
        parse(argv)
    assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_of_the_tiny_model_is_measured(tiny_model, tmp_path):
    data = tmp_path / "data.jsonl"
    row = {"prompt": "Return the sum.", "completion": "The quick brown fox jumps."}
    lines = [{**row, "prompt": f"{row['prompt']} {'it ' * n}"} for n in range(9)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, str(BENCHMARKS / "sweep_cost.py"), "--model", str(tiny_model)]
    command += ["--data", str(data), "--examples", "8", "--engine", "transformers", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert summary["measured"]["steps"] == 2
    assert summary["ratio_vs_online_kd"] > 0
    assert len(summary["measured"]["passes"]) == 2
