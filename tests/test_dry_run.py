"""--dry-run of the commands: it needs no weights, writes nothing and refuses what a run would."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.reference import load_command


@pytest.fixture
def weightless(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model without its weights: whoever loads them fails."""
    path = tmp_path / "weightless"
    shutil.copytree(tiny_model, path, ignore=shutil.ignore_patterns("*.safetensors"))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say the sum {n}", "completion": "two numbers"} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


LIMITS = ("--max-prompt-tokens", "60", "--max-sequence-tokens", "90")


def run(name: str, *arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(load_command(name), [*map(str, arguments), "--dry-run"])
    return result.exit_code, result.output


def test_precompute_logits(tmp_path: Path, weightless: Path, data: Path) -> None:
    place = ("--teacher", weightless, "--data", data, "--output", tmp_path / "cache", *LIMITS)
    code, text = run("precompute-logits", *place, "--k", 8, "--examples-per-shard", 2)
    assert code == 0, text
    assert "5 of 5 rows kept" in text
    assert "3 shards on 1 GPU" in text
    assert "every number is an estimate" in text
    assert not (tmp_path / "cache").exists()
    public = ("--engine", "vllm", "--vllm-route", "prompt_logprobs", "--store-entropy")
    code, text = run("precompute-logits", *place, *public)
    assert code == 1
    assert "--store-entropy cannot be had by route prompt_logprobs" in text
    code, text = run("precompute-logits", *place, "--k", 1000)
    assert code == 1
    assert "--k is 1000, the vocabulary has" in text


def test_finetune_teacher(tmp_path: Path, weightless: Path, data: Path) -> None:
    place = ("--model", weightless, "--data", data, "--output", tmp_path / "teacher", *LIMITS)
    arguments = [*map(str, place), "--batch-size", "2", "--epochs", "1", "--dry-run", "--json"]
    done = CliRunner().invoke(load_command("finetune-teacher"), arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["steps"] == 3
    assert not (tmp_path / "teacher").exists()


def test_train_student(tmp_path: Path, weightless: Path, data: Path, tiny_model: Path) -> None:
    cache = tmp_path / "cache"
    common = ["--teacher", tiny_model, "--data", data, "--output", cache, "--k", 4, *LIMITS]
    command = load_command("precompute-logits")
    made = CliRunner().invoke(command, [*map(str, common), "--engine", "transformers"])
    assert made.exit_code == 0, made.output
    place = ("--student", weightless, "--cache", cache, "--output", tmp_path / "student")
    code, text = run("train-student", *place, "--alpha", 0.1, "--batch-size", 2, "--epochs", 2)
    assert code == 0, text
    assert "6 steps of 2 responses on 1 GPU" in text
    assert not (tmp_path / "student").exists()
    code, text = run("train-student", *place, "--alpha", 0.1, "--top-k", 5)
    assert code == 1
    assert "--top-k asks for 5, the cache stores 4" in text
    code, text = run("train-student", *place, "--alpha", 0.1, "--batch-tokens", 9)
    assert code == 1
    assert "--batch-tokens 9: the longest sequence of the cache has" in text
