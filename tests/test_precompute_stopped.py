"""A pass that is stopped from outside: signals, and a disk that is full."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_partitions import COMMAND, as_flags
from test_precompute import files, settings, write_data  # noqa: F401

from pipeline.errors import ConfigError, StoppedError
from pipeline.stopping import stopped_by_signals
from pipeline.teacher import expectations
from pipeline.teacher.precompute import run
from pipeline.teacher.precompute_config import PrecomputeConfig
from storage_schema import open_cache
from storage_schema.errors import CacheWriteError
from storage_schema.passes import read_passes


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_published_and_says_how_to_go_on(
    settings: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    settings = {**settings, "examples_per_shard": 1}
    settings["data"] = str(write_data(tmp_path / "more.jsonl", 150))
    cache = Path(settings["output"])
    # Where the tests run in the background of a script, SIGINT is ignored, and inherited so.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    process = subprocess.Popen(
        [*COMMAND[:-1], heard + COMMAND[-1], *as_flags(settings)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(list(cache.glob("shards/*.parquet"))) < 3:
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    published = len(list(cache.glob("shards/*.parquet")))
    assert f"Error: stopped by {number.name}: {published} of 150 shards are in {cache}" in errors
    assert f"{150 - published} are missing" in errors
    assert "the same command" in errors
    assert "Traceback" not in errors
    assert not list(cache.rglob("*.tmp-*"))
    run(PrecomputeConfig(**settings))
    whole = run(PrecomputeConfig(**{**settings, "output": str(tmp_path / "whole")}))
    assert whole["num_examples"] == 150
    assert files(cache) == files(tmp_path / "whole")


def test_the_block_is_cleaned_up_before_the_signal_becomes_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    steps = []

    def stopped() -> None:
        with stopped_by_signals(lambda: "3 of 7 are there"):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            finally:
                steps.append("cleaned up")
                raise RuntimeError("the engine's processes got the signal, too")

    with pytest.raises(StoppedError, match="stopped by SIGTERM: 3 of 7 are there") as caught:
        stopped()
    assert steps == ["cleaned up"]
    assert caught.value.exit_code == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(RuntimeError, match="not a signal"), stopped_by_signals(lambda: ""):
        raise RuntimeError("not a signal")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_named_and_the_pass_continues_when_there_is_space(
    settings: dict[str, Any],  # noqa: F811
    small_disk: Path,
    tmp_path: Path,
) -> None:
    run(PrecomputeConfig(**{**settings, "output": str(tmp_path / "whole")}))
    (small_disk / "ballast").write_bytes(bytes(90 * 1024))
    cache = small_disk / "cache"
    settings = {**settings, "output": str(cache)}
    with pytest.raises(
        CacheWriteError,
        match=r"shard-0000\d.parquet cannot be written \(No space left on device\).*free space",
    ):
        run(PrecomputeConfig(**settings))
    assert not list(cache.rglob("*.tmp-*"))
    published = len(list(cache.glob("shards/*.parquet")))
    assert 0 < published < 5
    (small_disk / "ballast").unlink()
    assert run(PrecomputeConfig(**settings))["shards_written"] == 5 - published
    assert files(cache) == files(tmp_path / "whole")


def test_a_disk_that_is_clearly_too_small_is_refused_before_the_engine_starts(
    settings: dict[str, Any],  # noqa: F811
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.teacher.precompute.start_engine", None)
    (small_disk / "ballast").write_bytes(bytes(124 * 1024 - 4096))
    with pytest.raises(
        CacheWriteError, match=r"at least 9\.\d+ kB, .*cache has 4\.1 kB left: free some space"
    ):
        run(PrecomputeConfig(**{**settings, "output": str(small_disk / "cache"), "min_prob": 0.0}))


def test_what_is_said_before_and_after_the_first_shard(
    settings: dict[str, Any],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run(PrecomputeConfig(**settings))
    output = capsys.readouterr().out
    found = result["pass"]
    total = found["prompt_tokens"], found["response_tokens"]
    assert total[1] == result["num_response_tokens"]
    assert f"to score: 22 responses in 5 shards, {total[0]} prompt and {total[1]}" in output
    assert "(1 to 8 entries per response token)" in output
    assert "first shard: " in output
    assert "scored: " in output
    assert result["tokenization"]["rows"] == 22
    assert 0 < found["share_engine"] <= 1
    assert found["share_engine"] + found["share_waiting"] <= 1
    (recorded,) = read_passes(settings["output"])
    assert {name: recorded[name] for name in found} == found
    assert recorded["shards"] == 5
    cache = open_cache(settings["output"])
    work = expectations.measure_work(cache.plan, [*_examples(cache)], range(5))
    assert (work.prompt_tokens, work.response_tokens) == total
    low, high = expectations.estimate_bytes(cache.plan, work)
    # Shards this small are mostly footers; the estimate is of what they hold.
    assert low < cache.manifest.num_bytes
    assert low < high


def _examples(cache: Any) -> Iterator[Any]:
    from pipeline.data.tokenization import Example

    for response in cache:
        yield Example(response.input_ids, response.response_start)


def test_estimates_follow_the_entries_a_row_can_hold() -> None:
    from fake_engine import make_examples, make_plan

    plan = make_plan(make_examples(3), engine="vllm", examples_per_shard=2)

    def entries(**support: Any) -> tuple[int, int]:
        plan.support.update(support)
        return expectations.entries_per_row(plan.support)

    assert entries(k=64, min_prob=0.0) == (64, 64)
    assert entries(k=64, min_prob=1e-4) == (1, 64)
    assert entries(k=64, min_prob=0.1) == (1, 10)
    work = expectations.Work(1, 1, prompt_tokens=100, response_tokens=1000, group_tokens=1000)
    plan.support.update(k=64, min_prob=0.0)
    low, high = expectations.estimate_bytes(plan, work)
    assert low == 1000 * (64 * 2.0 + 2.0) + 1100 * 1.0
    assert high == 1000 * (64 * 2.9 + 6.0) + 1100 * 2.5
    first = expectations.Work(1, 1, prompt_tokens=10, response_tokens=100, group_tokens=100)
    line = expectations.describe_first_shard(5000, first, work, 110, 10.0)
    assert line == (
        "first shard: 50.0 bytes per response token, so about 50 kB in all; about 90 s left"
    )


def test_memory_of_a_row_group_is_looked_at_before_the_pass(monkeypatch, tmp_path: Path) -> None:
    from fake_engine import make_examples, make_plan

    examples = make_examples(5)
    plan = make_plan(examples, engine="vllm", examples_per_shard=2)
    plan.support.update(k=64, min_prob=0.0)
    tokens = [example.num_response_tokens for example in examples]
    most = max(tokens[0] + tokens[1], tokens[2] + tokens[3], tokens[4])
    work = expectations.measure_work(plan, examples, range(3))
    assert work.group_tokens == most
    needed = most * 64 * expectations.ENTRY_MEMORY

    def lines(free: int) -> str:
        memory = SimpleNamespace(available=free)
        monkeypatch.setattr(expectations.psutil, "virtual_memory", lambda: memory)
        return expectations.describe_work(plan, work, tmp_path)

    assert "of memory" not in lines(needed + 1)
    warning = lines(needed).splitlines()[2]
    assert "warning: writing the largest row group may take " in warning
    assert "lower --examples-per-shard (2) below 128" in warning
    expectations.check_row_groups(plan.support, 2, examples)
    monkeypatch.setattr(expectations, "MOST_ENTRIES", most * 64 - 1)
    with pytest.raises(ConfigError, match=f"{most} response tokens, would hold {most * 64} entri"):
        expectations.check_row_groups(plan.support, 2, examples)


@pytest.mark.parametrize(
    ("number", "text"),
    [(999, "999 B"), (1000, "1 kB"), (12_345_678, "12.3 MB"), (5e15, "5e+03 TB")],
)
def test_bytes_are_shown_in_decimal_units(number: float, text: str) -> None:
    assert expectations.show_bytes(int(number)) == text


def test_times_are_shown_in_a_unit_that_fits() -> None:
    assert [expectations.show_seconds(s) for s in (119, 121, 7199, 9000)] == [
        "119 s",
        "2 min",
        "120 min",
        "2.5 h",
    ]
