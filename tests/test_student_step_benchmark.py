"""The step benchmark's numbers are the ones it says they are, and its variants do the same work."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from step_inputs import batch_reader, count_flops, load_student, read_responses
from step_variants import VARIANTS, Setup, collate_prompts_and_completions, make_variant, missing
from student_step import parse, summarize, table

RESPONSES = read_responses("random:tiny", "prompt-heavy")
SETUP = Setup("random:tiny", RESPONSES, 4, 3, "float32", checkpointing=False)


def costs(seconds: float, memory: int) -> list[dict]:
    step = {"seconds": seconds, "cpu_seconds": 2 * seconds**2, "memory": memory}
    return [{**step, "tokens": 10, "response_tokens": 4, "flops": 2e9}] * 3


def test_ratios_are_ours_over_theirs():
    found = {"ours-kd": costs(1, 2**20), "hf-sft": costs(2, 2**22), "naive-kd": costs(4, 2**23)}
    summary = summarize(found, peak_tflops=0.001)
    assert (summary["time_ratio_vs_hf_sft"], summary["memory_ratio_vs_hf_sft"]) == (0.5, 0.25)
    assert (summary["time_ratio_vs_naive_kd"], summary["memory_ratio_vs_naive_kd"]) == (0.25, 0.125)
    assert summary["cpu_ratio_vs_hf_sft"] == 0.25
    assert summary["time_ratio_vs_trl_kd"] is summary["memory_ratio_vs_liger_sft"] is None
    assert summary["tokens_per_second"] == {"ours-kd": 10, "hf-sft": 5, "naive-kd": 2.5}
    assert summary["model_flops_utilisation"]["hf-sft"] == 1.0
    summary |= {"input_pipeline_share": 0.02, "teacher_weights_mib": {"naive-kd": 7}}
    shown = table({"prompt-heavy": {**summary, "not_run": {"trl-kd": "trl not installed"}}})
    assert "| hf-sft | 2.000 | 5 | 0.50 | 0.25 | 4 | 0.25 |" in shown
    assert "8 (and a teacher of 7)" in shown
    assert "| trl-kd | not run: trl not installed |" in shown
    json.dumps(summary)


@pytest.mark.parametrize(("argv", "expected"), [
    ([], "--student"),
    (["--student", "m"], "--prompt-heavy"),
    (["--random-weights", "70b"], "70b"),
    (["--random-weights", "8b", "--variants", "hf-sft"], "without ours-kd"),
])  # fmt: skip
def test_wrong_options_are_named(argv, expected, capsys):
    with pytest.raises(SystemExit):
        parse(argv)
    assert expected in capsys.readouterr().err


def test_options_of_a_gpu_run():
    options = "--random-weights 8b --dtype bfloat16 --checkpointing --peak-tflops 989".split()
    arguments = parse(options)
    assert arguments.mixes == ["prompt-heavy", "response-heavy"]
    assert (arguments.dtype, arguments.peak_tflops) == ("bfloat16", 989)


def gradient(name: str, dtype: str = "float32") -> torch.Tensor:
    """All adapter gradients of the second step, after the first, of a variant."""
    if missing(name):
        pytest.skip(missing(name))
    variant = make_variant(name, SETUP._replace(dtype=dtype))
    variant.model.train()
    batches = batch_reader(RESPONSES, SETUP.batch_size, SETUP.seed)
    trained = [p for p in variant.model.parameters() if p.requires_grad]
    torch.manual_seed(1)
    for parameter in trained:  # the adapter's own start has no gradient for one of its halves
        parameter.data = torch.randn_like(parameter) / 10
    for number in range(2):
        for parameter in trained:
            parameter.grad = None
        variant.backward(number, batches(number))
    return torch.cat([p.grad.flatten() for p in trained])


@pytest.mark.parametrize(("peer", "ours"), [
    ("hf-sft", "ours-sft"), ("naive-kd", "ours-kd"), ("trl-sft", "ours-sft"), ("trl-gkd", "trl-kd"),
    ("online-kd", "online-kd-cut"),
])  # fmt: skip
def test_variants_of_one_loss_have_one_gradient(peer, ours):
    theirs = gradient(peer)
    assert theirs.abs().max() > 0
    torch.testing.assert_close(gradient(ours), theirs, rtol=1e-3, atol=1e-5)


def test_ligers_loss_runs():
    assert gradient("liger-kd").abs().max() > 0


def test_every_variant_is_offered():
    offered = tuple(parse(["--random-weights", "tiny"]).variants)
    assert (*offered, "online-kd", "online-kd-cut") == tuple(VARIANTS)  # those of sweep_cost.py


def test_flops_by_hand():
    """Frozen weights 4 a token, adapters 6, the head 4 a response token, attention 6 T^2 L H."""
    model = load_student("random:tiny", "float32")
    responses = RESPONSES[:1]
    tokens, rows = len(responses[0].input_ids), responses[0].num_response_tokens
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128  # q k v o, gate up down
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    expected = 2 * 4 * layer * tokens + 6 * adapters * tokens + 4 * 512 * 64 * rows
    assert count_flops(model, responses) == expected + 6 * 2 * 64 * tokens**2


def test_prompts_end_and_responses_begin_at_the_same_place():
    batch = collate_prompts_and_completions(RESPONSES[:3])
    for row, response in enumerate(RESPONSES[:3]):
        held = [batch[f"{part}_ids"][row][batch[f"{part}_mask"][row] == 1]
                for part in ("prompt", "completion")]  # fmt: skip
        assert np.array_equal(torch.cat(held), response.input_ids)
        assert len(held[0]) == response.response_start
    assert batch["prompt_mask"][:, -1].all()
    assert batch["completion_mask"][:, 0].all()


@pytest.mark.slow
def test_groups_are_put_together():
    """Three variants, two at a time: ours-kd stands once, beside each of the others."""
    script = Path(__file__).parent / "benchmarks" / "student_step.py"
    command = [sys.executable, str(script), "--random-weights", "tiny", "--rounds", "2", "--json"]
    command += ["--together", "2", "--variants", "ours-kd", "hf-sft", "naive-kd"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summaries = json.loads(done.stdout)
    for mix in ("prompt-heavy", "response-heavy"):
        assert set(summaries[mix]["median_seconds"]) == {"ours-kd", "hf-sft", "naive-kd"}
        assert summaries[mix]["time_ratio_vs_hf_sft"] > 0
        assert summaries[mix]["memory_ratio_vs_naive_kd"] > 0
        assert summaries[mix]["time_ratio_vs_trl_kd"] is None
        assert 0 <= summaries[mix]["input_pipeline_share"] < 1
