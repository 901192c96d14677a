"""Caches on an object store: the same bytes, named errors, safe writers; on a real S3 server."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cache_child import PLAN, RESPONSES, write
from cache_factory import make_cache, make_plan, random_responses
from test_storage_codec import assert_equal
from test_storage_writer import files

from storage_schema import claim_plan, finish_cache, missing_shards, open_cache, shard, write_shard
from storage_schema.audit import CacheAudit
from storage_schema.errors import (
    CacheDamagedError,
    CacheError,
    CacheNotFoundError,
    CacheUnfinishedError,
    PlanMismatchError,
    RowError,
)
from storage_schema.location import locate
from storage_schema.object_store import ObjectPath
from storage_schema.plan import read_plan
from storage_schema.publish import scratch_path
from storage_schema.shard import shard_path

CHILD = str(Path(__file__).parent / "cache_child.py")
SHARDS = [f"shards/shard-{i:05d}.parquet" for i in range(PLAN.num_shards)]


def planned(index: int) -> list:
    return [RESPONSES[i] for i in PLAN.shard_examples(index)]


def client(s3: Any) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=s3.url)


def key(url: str) -> str:
    return url.removeprefix("s3://bucket/")


def objects(s3: Any, url: str) -> dict[str, bytes]:
    """What lies below the URL, read without any of our code."""
    found = client(s3).list_objects_v2(Bucket="bucket", Prefix=f"{key(url)}/").get("Contents", [])
    return {
        item["Key"].removeprefix(f"{key(url)}/"): client(s3)
        .get_object(Bucket="bucket", Key=item["Key"])["Body"]
        .read()
        for item in found
    }


def put(s3: Any, url: str, data: bytes) -> None:
    client(s3).put_object(Bucket="bucket", Key=key(url), Body=data)


def read_all(cache: str) -> None:
    for _ in CacheAudit(cache).read():
        pass


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.tmp-*")]


# Written and read.


@pytest.mark.slow
def test_a_cache_on_s3_holds_the_bytes_of_a_local_one(s3, s3_url, tmp_path) -> None:
    write(tmp_path / "local")
    write(s3_url)
    assert objects(s3, s3_url) == files(tmp_path / "local")
    cache = open_cache(s3_url)
    assert cache.fingerprint == open_cache(tmp_path / "local").fingerprint
    for found, expected in zip(cache, RESPONSES, strict=True):
        assert_equal(found, expected)
    audit = CacheAudit(s3_url)
    read_all(s3_url)
    assert audit.strangers == []
    put(s3, f"{s3_url}/shards/notes.txt", b"x")
    assert audit.strangers == ["shards/notes.txt"]
    assert temporaries(tmp_path) == []


def test_memory_stores_and_file_urls_go_through_the_same_code(tmp_path) -> None:
    write(f"file://{tmp_path}/local")
    assert locate(f"file://{tmp_path}/local") == tmp_path / "local"
    write("memory://test-both/cache/")
    cache = open_cache("memory://test-both/cache", tmp_path / "copy")
    assert str(cache.path) == "memory://test-both/cache"
    assert cache.fingerprint == open_cache(f"file://{tmp_path}/local").fingerprint
    for found, expected in zip(cache, RESPONSES, strict=True):
        assert_equal(found, expected)
    read_all("memory://test-both/cache")


def test_each_request_is_needed(s3, s3_url) -> None:
    """Opening lists once and touches no shard; an audit reads each shard once."""
    write(s3_url)
    assert len(s3.requests("PUT", f"{key(s3_url)}/shards/")) == PLAN.num_shards
    before = len(s3.log.read_text().splitlines())
    open_cache(s3_url)
    lines = s3.log.read_text().splitlines()[before:]
    assert len(lines) == 5, lines  # one list; size and content of plan and manifest
    for name in SHARDS:
        read = len(s3.requests("GET", f"{key(s3_url)}/{name}"))
        read_all(s3_url)
        assert len(s3.requests("GET", f"{key(s3_url)}/{name}")) == read + 1


def test_an_unfinished_cache_is_refused_and_can_be_looked_at(s3_url) -> None:
    claim_plan(s3_url, PLAN)
    with pytest.raises(CacheUnfinishedError, match=rf"the cache at {s3_url} is unfinished"):
        open_cache(s3_url)
    with pytest.raises(CacheUnfinishedError, match="has none of its 6 shards yet"):
        CacheAudit(s3_url, allow_incomplete=True)
    write_shard(s3_url, PLAN, 2, planned(2))
    audit = CacheAudit(s3_url, allow_incomplete=True)
    assert (audit.shards, sum(len(group) for group in audit.read())) == ([2], 2)
    with pytest.raises(CacheUnfinishedError, match="lacks 5 of 6 shards"):
        finish_cache(s3_url, PLAN)


def test_a_new_shard_makes_the_cache_unfinished_again(s3, s3_url) -> None:
    write(s3_url)
    before = objects(s3, s3_url)
    write_shard(s3_url, PLAN, 0, planned(0))  # a late worker changes nothing
    assert objects(s3, s3_url) == before
    shard_path(locate(s3_url), 0).unlink()
    write_shard(s3_url, PLAN, 0, planned(0))
    assert "manifest.json" not in objects(s3, s3_url)


# Several writers.


def test_another_plan_is_refused_field_by_field(s3, s3_url) -> None:
    claim_plan(s3_url, PLAN)
    claim_plan(s3_url, PLAN)
    with pytest.raises(PlanMismatchError, match=r"examples_per_shard: there 2, asked 3"):
        claim_plan(s3_url, make_plan(RESPONSES, examples_per_shard=3))
    put(s3, f"{s3_url}-other/notes.txt", b"x")
    with pytest.raises(PlanMismatchError, match=r"is not empty \(notes.txt\) and holds no plan"):
        claim_plan(f"{s3_url}-other", PLAN)
    put(s3, f"{s3_url}-lost/shards/shard-00000.parquet", b"x")
    with pytest.raises(CacheDamagedError, match=r"holds shards, but no plan.json"):
        open_cache(f"{s3_url}-lost")


def test_a_plan_that_appears_while_claiming_is_not_replaced(s3, s3_url, monkeypatch) -> None:
    """Both looked before either wrote: the store keeps the first, the second is told."""
    claim_plan(s3_url, PLAN)
    original = ObjectPath.exists
    looks: list[str] = []

    def exists(self: ObjectPath) -> bool:
        looks.append(self.url)
        first = self.name == "plan.json" and looks.count(self.url) == 1
        return False if first else original(self)

    monkeypatch.setattr(ObjectPath, "exists", exists)
    monkeypatch.setattr(ObjectPath, "iterdir", lambda self: iter(()))
    with pytest.raises(PlanMismatchError, match=r"support.k: there 8, asked 4"):
        claim_plan(s3_url, make_plan(RESPONSES, examples_per_shard=2, k=4))
    assert s3.requests("PUT", f"{key(s3_url)}/plan.json")[-1].endswith(" 412")
    assert read_plan(s3_url) == PLAN


def test_a_shard_that_appears_while_writing_is_not_replaced(s3, s3_url, monkeypatch) -> None:
    claim_plan(s3_url, PLAN)
    write_shard(s3_url, PLAN, 0, planned(0))
    before = objects(s3, s3_url)
    monkeypatch.setattr(ObjectPath, "exists", lambda self: False)
    write_shard(s3_url, PLAN, 0, planned(0))
    assert s3.requests("PUT", f"{key(s3_url)}/{SHARDS[0]}")[-1].endswith(" 412")
    assert objects(s3, s3_url) == before


def test_shards_of_other_processes_are_seen_at_once(s3, s3_url, tmp_path) -> None:
    write(tmp_path / "local")
    claim_plan(s3_url, PLAN)
    assert missing_shards(s3_url, PLAN) == [0, 1, 2, 3, 4, 5]
    put(s3, f"{s3_url}/{SHARDS[4]}", (tmp_path / "local" / SHARDS[4]).read_bytes())
    assert missing_shards(s3_url, PLAN) == [0, 1, 2, 3, 5]
    client(s3).delete_object(Bucket="bucket", Key=f"{key(s3_url)}/{SHARDS[4]}")
    assert missing_shards(s3_url, PLAN) == [0, 1, 2, 3, 4, 5]
    manifest = ObjectPath(s3_url) / "manifest.json"
    for present in (True, False, True):  # just listed each time, and not remembered
        if present:
            put(s3, str(manifest), b"{}")
        else:
            client(s3).delete_object(Bucket="bucket", Key=key(str(manifest)))
        assert manifest.exists() == present
        assert ("manifest.json" in [path.name for path in ObjectPath(s3_url).iterdir()]) == present
        ObjectPath(s3_url).snapshot()


def test_a_foreign_or_torn_object_at_a_shards_place_is_refused(s3, s3_url, tmp_path) -> None:
    write(s3_url)
    shards = objects(s3, s3_url)
    put(s3, f"{s3_url}/{SHARDS[1]}", shards[SHARDS[0]])
    with pytest.raises(CacheDamagedError, match="this file is not shard 1 of the plan beside it"):
        missing_shards(s3_url, PLAN)
    for torn in (shards[SHARDS[1]][:-100], b"", b"PAR1"):
        put(s3, f"{s3_url}/{SHARDS[1]}", torn)
        with pytest.raises(CacheDamagedError, match=f"{SHARDS[1]} cannot be opened"):
            missing_shards(s3_url, PLAN)


def test_footers_of_any_size_are_read(monkeypatch) -> None:
    write("memory://test-footers/cache")
    monkeypatch.setattr(shard, "FOOTER_BYTES", 16)
    assert missing_shards("memory://test-footers/cache", PLAN) == []


@pytest.mark.slow
def test_two_writers_at_once_end_in_one_cache(s3, s3_url, tmp_path) -> None:
    write(tmp_path / "local")
    children = [
        subprocess.Popen([sys.executable, CHILD, s3_url], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    assert objects(s3, s3_url) == files(tmp_path / "local")


# Interrupted.


@pytest.mark.parametrize("name", ["plan.json", SHARDS[1], "manifest.json"])
def test_a_refused_upload_leaves_nothing_and_is_resumed(s3, s3_url, tmp_path, name) -> None:
    write(tmp_path / "local")
    with (
        s3.ordered("PUT", f"{key(s3_url)}/{name}", "403"),
        pytest.raises(CacheError, match=rf"cannot write {s3_url}/{name}: access is denied"),
    ):
        write(s3_url)
    assert name not in objects(s3, s3_url)
    assert temporaries(tmp_path) == []
    write(s3_url)
    assert objects(s3, s3_url) == files(tmp_path / "local")


@pytest.mark.slow
def test_a_writer_killed_while_uploading_leaves_no_shard(s3, s3_url, tmp_path) -> None:
    write(tmp_path / "local")
    with s3.ordered("PUT", f"{key(s3_url)}/{SHARDS[3]}", "hang"):
        child = subprocess.Popen([sys.executable, CHILD, s3_url])
        deadline = time.monotonic() + 60
        while not s3.requests("PUT", f"{key(s3_url)}/{SHARDS[3]}"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert sorted(objects(s3, s3_url)) == ["plan.json", *SHARDS[:3]]
    assert len(temporaries(tmp_path / "scratch")) == 1
    assert missing_shards(s3_url, PLAN) == [3, 4, 5]
    assert temporaries(tmp_path / "scratch") == []  # what the dead writer left
    write(s3_url)
    assert objects(s3, s3_url) == files(tmp_path / "local")


@pytest.mark.slow
def test_a_large_file_appears_whole_or_not_at_all(s3, s3_url, tmp_path) -> None:
    """Above 100 MiB s3fs uploads in parts; a failed upload is taken back."""
    file = tmp_path / "large"
    file.write_bytes(os.urandom(1000) * 110_000)
    place = ObjectPath(s3_url) / "large"
    with s3.ordered("PUT", f"{key(s3_url)}/large", "403"), pytest.raises(CacheError, match="acces"):
        place.upload(file)
    assert objects(s3, s3_url) == {}
    assert len(s3.requests("DELETE", f"{key(s3_url)}/large")) == 1  # the parts
    place.upload(file)
    place.download(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


# Damage.


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-10], r"shard-00001.parquet has \d+ bytes, the manifest says"),
        (lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:], "SHA-256 is"),
        (None, "shard-00001.parquet is missing"),
    ],
    ids=["truncated", "flipped", "missing"],
)
def test_damaged_objects_are_named(s3, s3_url, tmp_path, damage, message) -> None:
    write(s3_url)
    opened = open_cache(s3_url)
    if damage is None:
        client(s3).delete_object(Bucket="bucket", Key=f"{key(s3_url)}/{SHARDS[1]}")
    else:
        put(s3, f"{s3_url}/{SHARDS[1]}", damage(objects(s3, s3_url)[SHARDS[1]]))
    for attempt in (lambda: read_all(s3_url), lambda: list(opened), opened.verify):
        with pytest.raises(CacheDamagedError, match=message) as caught:
            attempt()
        assert f"{s3_url}/{SHARDS[1]}" in str(caught.value)
    assert not (opened.local_copy.directory / SHARDS[1]).exists()
    assert temporaries(tmp_path) == []


def test_every_damaged_shard_is_named(s3, s3_url) -> None:
    write(s3_url)
    for name in (SHARDS[0], SHARDS[5]):
        put(s3, f"{s3_url}/{name}", b"short")
    with pytest.raises(CacheDamagedError, match="2 of 6 shards are damaged") as caught:
        read_all(s3_url)
    assert SHARDS[0] in str(caught.value)
    assert SHARDS[5] in str(caught.value)


def test_a_damaged_plan_names_its_url(s3, s3_url) -> None:
    put(s3, f"{s3_url}/plan.json", b"{")
    with pytest.raises(CacheDamagedError, match=f"{s3_url}/plan.json is not valid JSON"):
        open_cache(s3_url)


# What stores refuse.


def test_no_cache_and_no_bucket_are_told_apart(s3_url) -> None:
    with pytest.raises(CacheNotFoundError, match=f"no logit cache at {s3_url}: plan.json"):
        open_cache(s3_url)
    for attempt in (open_cache, CacheAudit, lambda url: claim_plan(url, PLAN), read_plan):
        with pytest.raises(CacheError, match=r"no-such/cache.*: the bucket does not exist \("):
            attempt("s3://no-such/cache")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "the store does not answer .*AWS_ENDPOINT",
            marks=pytest.mark.slow,
            id="unreachable",
        ),
        pytest.param(
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "access is denied .*check the credentials",
            id="no-credentials",
        ),
    ],
)
def test_a_store_that_cannot_be_used_is_named_within_seconds(s3_url, changes, message) -> None:
    program = f"import storage_schema; storage_schema.open_cache({s3_url!r})"
    environment = {k: v for k, v in (os.environ | changes).items() if v}
    environment["AWS_SHARED_CREDENTIALS_FILE"] = "/nonexistent"
    start = time.monotonic()
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert time.monotonic() - start < 40  # 5 tries of botocore, and the imports
    last = output.stderr.strip().splitlines()[-1]
    assert last.startswith(f"storage_schema.errors.CacheError: cannot list {s3_url}: ")
    assert re.search(message, last), last


@pytest.mark.slow
def test_a_store_that_never_answers_is_given_up(s3, s3_url) -> None:
    """The user's own limits of fsspec and botocore hold."""
    limits = {
        "FSSPEC_S3": '{"config_kwargs": {"read_timeout": 1}}',
        "AWS_MAX_ATTEMPTS": "1",
    }
    program = f"import storage_schema; storage_schema.open_cache({s3_url!r})"
    with s3.ordered("GET", "/bucket", "hang"):
        start = time.monotonic()
        output = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env=os.environ | limits,
            timeout=60,
        )
    last = output.stderr.strip().splitlines()[-1]
    assert f"CacheError: cannot list {s3_url}: the store does not answer (Read timeout" in last
    assert time.monotonic() - start < 30


def test_urls_that_name_nothing_are_refused(tmp_path) -> None:
    with pytest.raises(CacheError, match="s3:/b/c lacks a slash: a URL is s3://"):
        open_cache(Path("s3://b/c"))
    with pytest.raises(CacheError, match="nope://b/c is no URL that fsspec knows"):
        open_cache("nope://b/c")
    pytest.importorskip("s3fs")
    with pytest.raises(CacheError, match="names no bucket, expected s3://bucket/cache"):
        open_cache("s3://")


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(CacheError, match="^gs:// needs the package gcsfs: pip install gcsfs$"):
        open_cache("gs://bucket/cache")


def test_stores_that_show_half_files_are_not_written(tmp_path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(CacheError, match="could see half a file on sftp; caches are written to"):
        ObjectPath("sftp://host/cache/x").upload(tmp_path / "x")


def test_a_response_that_is_refused_uploads_nothing(s3, s3_url, tmp_path) -> None:
    claim_plan(s3_url, PLAN)
    wrong = random_responses(1, vocabulary_size=5000, seed=3)
    with pytest.raises(RowError, match=r"shard 1, response 1: input_ids\[\d+\] is \d+, expected"):
        write_shard(s3_url, PLAN, 1, [RESPONSES[2], *wrong])
    assert list(objects(s3, s3_url)) == ["plan.json"]
    assert temporaries(tmp_path) == []


def test_what_dead_processes_left_in_tmpdir_is_removed(s3_url, tmp_path, monkeypatch) -> None:
    """A merged teacher too; another user's files and other programs' are left alone."""
    child = subprocess.Popen(["true"])
    child.wait()
    claim_plan(s3_url, PLAN)
    ours = scratch_path(ObjectPath(s3_url) / "merged-teacher")
    assert ours.parent == tmp_path / "scratch"
    dead = ours.with_name(ours.name.replace(f"-{os.getpid()}-", f"-{child.pid}-"))
    theirs = ours.with_name(dead.name.replace("merged-teacher", "shard-00000.parquet"))
    for folder in (ours, dead):
        folder.mkdir()
    theirs.write_bytes(b"x")
    other = ours.with_name(dead.name.replace("smoothkd-", "other-"))
    other.write_bytes(b"x")

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        missing_shards(s3_url, PLAN)
    assert {path.name for path in ours.parent.iterdir()} == {ours.name, theirs.name, other.name}


def test_make_cache_takes_urls() -> None:
    assert open_cache(make_cache("memory://made/cache", RESPONSES)).plan.num_shards == 3
