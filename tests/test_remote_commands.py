"""The commands on an S3 cache: the whole cycle, a second student without a download, errors."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_precompute import write_data
from test_remote_cache import key, objects, put

from pipeline.cli.reference import load_command
from storage_schema import open_cache
from storage_schema.passes import read_passes

pytestmark = pytest.mark.slow


def run_cli(command: str, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(load_command(command), list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def must(command: str, *arguments: str) -> str:
    code, output = run_cli(command, *arguments)
    assert code == 0, output
    return output


@pytest.fixture
def precompute(tiny_model: Path, tmp_path: Path) -> list[str]:
    arguments = ["--teacher", str(tiny_model), "--data", str(write_data(tmp_path / "train.jsonl"))]
    arguments += ["--engine", "transformers", "--k", "8", "--examples-per-shard", "8"]
    return [*arguments, "--max-prompt-tokens", "100", "--max-sequence-tokens", "160"]


def train(tiny_model: Path, cache: str, output: Path, *more: str) -> str:
    arguments = ["--student", str(tiny_model), "--cache", cache, "--output", str(output)]
    return must("train-student", *arguments, "--max-steps", "2", "--batch-size", "2", *more)


def test_the_whole_cycle_on_s3(
    s3: Any, s3_url: str, tiny_model: Path, tmp_path: Path, precompute: list[str]
) -> None:
    local, shards = tmp_path / "cache", f"{key(s3_url)}/shards/"
    must("precompute-logits", *precompute, "--output", str(local))
    printed = must("precompute-logits", *precompute, "--output", s3_url)
    assert f"cache: {s3_url} holds 22 responses" in printed
    here = {str(p.relative_to(local)): p.read_bytes() for p in local.rglob("*") if p.is_file()}
    there = objects(s3, s3_url)
    (mine,), (theirs,) = read_passes(local), read_passes(s3_url)  # they hold times
    assert mine["response_tokens"] == theirs["response_tokens"]
    assert {name: there[name] for name in there if not name.startswith("passes/")} == {
        name: here[name] for name in here if not name.startswith("passes/")
    }
    assert "0 of" not in must("precompute-logits", *precompute, "--output", s3_url)  # done already
    assert len(s3.requests("PUT", shards)) == 3

    assert f"{s3_url}: sound. 3 shards" in must("verify-cache", "--cache", s3_url)

    before = len(s3.requests("GET", shards))
    printed = train(tiny_model, s3_url, tmp_path / "kd", "--alpha", "1")
    assert f"shards of {s3_url} are read from {tmp_path}/user-cache/smoothkd/" in printed
    assert "3 of 3 shards copied now (0 in place of" in printed
    assert len(s3.requests("GET", shards)) == before + 3
    printed = train(tiny_model, s3_url, tmp_path / "sft", "--alpha", "0")
    assert "0 of 3 shards copied now" in printed
    assert len(s3.requests("GET", shards)) == before + 3
    train(tiny_model, s3_url, tmp_path / "own", "--alpha", "0", "--local-copy", str(tmp_path / "c"))
    assert len(s3.requests("GET", shards)) == before + 6

    train(tiny_model, str(local), tmp_path / "local", "--alpha", "1")
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("kd", "local")]
    assert runs[0]["history"] == runs[1]["history"]
    assert runs[0]["identity"] == runs[1]["identity"]  # where the cache lies is no setting
    assert runs[0]["inputs"]["cache"] == s3_url

    name = "shards/shard-00001.parquet"
    put(s3, f"{s3_url}/{name}", here[name][:-1] + b"x")
    code, output = run_cli("verify-cache", "--cache", s3_url)
    assert code == 1
    assert f"{s3_url}/{name}: SHA-256 is" in output
    common = ["--student", str(tiny_model), "--cache", s3_url, "--alpha", "1"]
    common += ["--local-copy", str(tmp_path / "new"), "--output", str(tmp_path / "refused")]
    code, output = run_cli("train-student", *common)
    assert (code, "Traceback" in output) == (1, False)
    assert f"{s3_url}/{name}: SHA-256 is" in output
    assert not (tmp_path / "refused").exists()


def test_an_interrupted_pass_is_resumed(s3: Any, s3_url: str, precompute: list[str]) -> None:
    with s3.ordered("PUT", f"{key(s3_url)}/shards/shard-00001", "403"):
        code, output = run_cli("precompute-logits", *precompute, "--output", s3_url)
    assert code == 1
    assert f"cannot write {s3_url}/shards/shard-00001.parquet: access is denied" in output
    assert sorted(objects(s3, s3_url)) == ["plan.json", "shards/shard-00000.parquet"]
    code, output = run_cli("verify-cache", "--cache", s3_url)
    assert (code, "is unfinished" in output) == (1, True)
    assert "UNFINISHED, 1 of 3" in must("verify-cache", "--cache", s3_url, "--allow-incomplete")
    assert "1 of 3 shards are there" in must("precompute-logits", *precompute, "--output", s3_url)
    open_cache(s3_url).verify()
    code, output = run_cli("precompute-logits", *precompute, "--output", s3_url, "--k", "4")
    assert code == 1
    assert "support.k: there 8, asked 4" in output


def test_mistakes_are_named_before_the_work(
    s3: Any, tiny_model: Path, tmp_path: Path, precompute: list[str]
) -> None:
    start = time.monotonic()
    code, output = run_cli("precompute-logits", *precompute, "--output", "s3://no-such/cache")
    assert code == 1
    assert "Error: cannot list s3://no-such/cache: the bucket does not exist" in output
    assert "rows kept" not in output
    assert time.monotonic() - start < 30
    code, output = run_cli("verify-cache", "--cache", "s3://bucket/nothing-here")
    assert (code, "no logit cache at s3://bucket/nothing-here" in output) == (1, True)
    common = ["--student", "x", "--cache", "s3://bucket/x", "--alpha", "1"]
    for more in (["--output", "s3://bucket/o"], ["--output", "o", "--local-copy", "s3://b/c"]):
        code, output = run_cli("train-student", *common, *more)
        assert code == 2
        assert "is a URL, expected a local path: only a logit cache can lie on an" in output
    code, output = run_cli(
        "generate-responses", "--model", "x", "--data", "x", "--output", "s3://b/o"
    )
    assert (code, "--output s3://b/o is a URL" in output) == (2, True)
