"""Both stages on the real model, as a user runs them, and what they leave behind."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli.reference import load_command

pytestmark = pytest.mark.slow

LIMITS = ["--max-prompt-tokens", "140", "--max-sequence-tokens", "200"]
# Larger steps than a real run's, so that a few of them show.
STEPS = ["--max-steps", "6", "--batch-size", "4", "--learning-rate", "1e-3", "--warmup-ratio", "0"]


def call(name: str, *arguments: object) -> dict[str, Any]:
    """Run a command with --json and return what it printed."""
    result = CliRunner().invoke(load_command(name), [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


@pytest.fixture(scope="module")
def cache(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the demo data by a teacher that differs from the untouched student."""
    folder = tmp_path_factory.mktemp("end-to-end")
    data = ["--data", "demo:docstrings", "--max-examples", "16", *LIMITS]
    teacher = folder / "teacher"
    call("finetune-teacher", "--model", demo_model, *data, *STEPS, "--merge", "--output", teacher)
    engine = ["--engine", "transformers", "--dtype", "float32", "--k", "32"]
    call("precompute-logits", "--teacher", teacher, *data, *engine, "--output", folder / "cache")
    return folder / "cache"


@pytest.fixture(scope="module")
def student(cache: Path, demo_model: Path) -> Path:
    """A student trained for six steps at alpha 1."""
    output = cache.parent / "student"
    arguments = ["--student", demo_model, "--cache", cache, "--alpha", "1", "--output", output]
    call("train-student", *arguments, *STEPS)
    return output


def test_the_loss_against_the_cached_teacher_falls(student: Path) -> None:
    record = json.loads((student / "run.json").read_text())
    history = record["history"]
    assert len(history) == 6
    first, last = history[0], history[-1]
    assert last["kl"] < 0.7 * first["kl"]
    assert last["ce"] < first["ce"]
    assert 0.5 < first["teacher_mass"] <= 1.001
    assert record["identity"]["cache_fingerprint"]
    assert record["versions"]["torch"]


def test_the_adapter_loads_with_plain_peft_and_changes_the_model(
    student: Path, demo_model: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 300, 400, 500]])
    with torch.no_grad():
        before = base(input_ids=ids).logits
        after = PeftModel.from_pretrained(base, student).eval()(input_ids=ids).logits
    assert (before - after).abs().max() > 0.05
    assert not list(student.glob("checkpoint-*"))


def test_the_student_is_evaluated_and_a_second_run_is_skipped(
    student: Path, demo_model: Path
) -> None:
    output = student.parent / "scores.json"
    arguments = ["--model", f"before={demo_model}", "--model", f"after={student}", *LIMITS]
    arguments += ["--data", "demo:docstrings@evaluation", "--max-examples", "4"]
    arguments += ["--max-new-tokens", "8", "--output", output, "--engine", "transformers"]
    result = call("evaluate-student", *arguments)
    scores = json.loads(output.read_text())["models"]
    assert list(scores) == ["before", "after"] == result["evaluated"]
    assert scores["after"]["response_nll_nats"] < scores["before"]["response_nll_nats"]
    assert call("evaluate-student", *arguments)["skipped"] == ["before", "after"]


def test_rows_shifted_by_one_would_be_noticed(cache: Path) -> None:
    """The teacher's label log-probabilities belong to their tokens, not to neighbours."""
    from storage_schema import open_cache

    own, shifted = [], []
    for response in open_cache(cache):
        entries = np.split(response.entry_token_ids, np.cumsum(response.num_entries)[:-1])
        labels = response.input_ids[response.response_start :]
        own += [label in row for label, row in zip(labels, entries, strict=True)]
        shifted += [label in row for label, row in zip(labels[1:], entries[:-1], strict=True)]
    assert np.mean(own) > 0.7
    assert np.mean(shifted) < np.mean(own) - 0.3


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_serves_the_adapter(student: Path, demo_model: Path) -> None:
    from pipeline.generation.vllm_start import set_vllm_environment

    set_vllm_environment(on_cpu=True)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        model=str(demo_model),
        dtype="float32",
        max_model_len=64,
        enforce_eager=True,
        enable_lora=True,
        max_lora_rank=16,
    )
    prompt = {"prompt_token_ids": [1, 4093, 198, 28549, 253, 1528, 30, 2, 198, 1, 520, 9531, 198]}
    sampling = SamplingParams(temperature=0, max_tokens=8, logprobs=1)
    plain = llm.generate(prompt, sampling, use_tqdm=False)[0].outputs[0]
    adapter = LoRARequest("student", 1, str(student))
    adapted = llm.generate(prompt, sampling, use_tqdm=False, lora_request=adapter)[0].outputs[0]
    assert abs(adapted.cumulative_logprob - plain.cumulative_logprob) > 0.01
    llm.llm_engine.engine_core.shutdown()
