"""A full disk: a named error, nothing half-written, and the same bytes after making room.

A small tmpfs is a disk that is really full; mounting it needs root. A limit on the size of files
(errno EFBIG in place of ENOSPC) goes through the same code and works everywhere.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cache_factory import make_cache, make_plan, random_responses
from test_precompute import settings as precompute_settings  # noqa: F401
from test_storage_writer import files, leftovers

from storage_schema import claim_plan, finish_cache, missing_shards, open_cache, write_shard
from storage_schema.errors import CacheUnfinishedError, CacheWriteError

RESPONSES = random_responses(8, rows=40, k=64)
PLAN = make_plan(RESPONSES, k=64, examples_per_shard=4)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The files of an undisturbed run."""
    return files(make_cache(tmp_path / "whole", RESPONSES, k=64, examples_per_shard=4))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 128 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """Write a file that leaves `leave` bytes free."""
    path, status = disk / "filler", os.statvfs(disk)
    path.write_bytes(bytes(status.f_bavail * status.f_frsize - leave))
    return path


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_all(cache: Path) -> None:
    claim_plan(cache, PLAN)
    for index in missing_shards(cache, PLAN):
        write_shard(cache, PLAN, index, RESPONSES[4 * index : 4 * index + 4])
    finish_cache(cache, PLAN)


@pytest.mark.parametrize("name", ["plan.json", "shards/shard-00000.parquet", "manifest.json"])
def test_a_file_that_may_not_grow(tmp_path: Path, whole: dict[str, bytes], name: str) -> None:
    cache = tmp_path / "cache"
    if name == "manifest.json":
        make_cache(cache, RESPONSES, k=64, examples_per_shard=4)
        (cache / name).unlink()
    text = f"{name} cannot be written .File too large.: .* free space and run the same command"
    with files_of_at_most(len(whole[name]) - 1), pytest.raises(CacheWriteError, match=text):
        write_all(cache)
    assert leftovers(cache) == []
    assert name not in files(cache)
    write_all(cache)
    assert files(cache) == whole


def test_a_full_disk_at_a_shard(small_disk: Path, whole: dict[str, bytes]) -> None:
    cache = small_disk / "cache"
    claim_plan(cache, PLAN)
    write_shard(cache, PLAN, 0, RESPONSES[:4])
    published = files(cache)
    filler = fill(small_disk, leave=8192)
    text = "shard-00001.parquet cannot be written .No space left on device.: nothing half-written"
    with pytest.raises(CacheWriteError, match=text):
        write_all(cache)
    assert files(cache) == published
    with pytest.raises(CacheUnfinishedError):
        open_cache(cache)
    filler.unlink()
    write_all(cache)
    assert files(cache) == whole


def test_a_full_disk_at_the_plan_and_at_the_manifest(
    small_disk: Path, whole: dict[str, bytes]
) -> None:
    cache = small_disk / "cache"
    cache.mkdir()
    filler = fill(small_disk, leave=0)
    with pytest.raises(CacheWriteError, match=r"plan.json cannot be written .No space left"):
        write_all(cache)
    assert files(cache) == {}
    filler.unlink()
    write_all(cache)
    (cache / "manifest.json").unlink()
    filler = fill(small_disk, leave=0)
    with pytest.raises(CacheWriteError, match=r"manifest.json cannot be written .No space left"):
        write_all(cache)
    assert leftovers(cache) == []
    with pytest.raises(CacheUnfinishedError):
        open_cache(cache)
    filler.unlink()
    write_all(cache)
    assert files(cache) == whole


def test_an_error_of_the_producer_keeps_its_name_on_a_full_disk(small_disk: Path) -> None:
    def responses() -> Iterator[Any]:
        yield RESPONSES[0]
        fill(small_disk, leave=0)
        raise OSError("the engine lost its model")

    claim_plan(small_disk / "cache", PLAN)
    with pytest.raises(OSError, match="the engine lost its model"):
        write_shard(small_disk / "cache", PLAN, 0, responses())
    assert list(files(small_disk / "cache")) == ["plan.json"]


def test_a_folder_that_may_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheWriteError, match=r"cache cannot be written .Not a directory.: .*make"):
        claim_plan(tmp_path / "file" / "cache", PLAN)


@pytest.mark.slow
def test_precompute_logits_on_a_full_disk(
    small_disk: Path,
    tmp_path: Path,
    precompute_settings: dict[str, Any],  # noqa: F811
) -> None:
    """As a user meets it: exit code 1, one line that names file and remedy; then it continues."""

    def precompute(output: Path) -> subprocess.CompletedProcess[str]:
        chosen = precompute_settings | {"output": str(output)}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
        script = "from pipeline.cli.precompute_logits import main; main()"
        return subprocess.run(
            [sys.executable, "-c", script, *flags], capture_output=True, text=True, check=False
        )

    assert precompute(tmp_path / "whole-run").returncode == 0
    cache = small_disk / "cache"
    filler = fill(small_disk, leave=16384)
    done = precompute(cache)
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert "cannot be written (No space left on device): nothing half-written" in done.stderr
    assert "Traceback" not in done.stderr
    assert "plan.json" in files(cache)
    assert leftovers(cache) == []
    filler.unlink()
    done = precompute(cache)
    assert done.returncode == 0, done.stderr
    # What each pass took is no part of the cache, and has a name and times of its own.
    whole, made = (
        {name: text for name, text in files(path).items() if not name.startswith("passes/")}
        for path in (tmp_path / "whole-run", cache)
    )
    assert made == whole
