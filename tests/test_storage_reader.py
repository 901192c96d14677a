"""Reading: random access, iteration, workers, bounded memory and files, and what opening costs."""

import gc
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from cache_factory import make_cache, random_responses
from test_storage_codec import assert_equal

from storage_schema import LogitCache, open_cache, reader
from storage_schema.errors import CacheDamagedError
from storage_schema.layout import ROW_GROUP_RESPONSES

RESPONSES = random_responses(2 * ROW_GROUP_RESPONSES + 30, k=3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards; the first has two row groups, the second of them short."""
    return make_cache(
        tmp_path_factory.mktemp("reader") / "cache",
        RESPONSES,
        k=3,
        examples_per_shard=ROW_GROUP_RESPONSES + 20,
    )


def test_random_access_and_iteration_return_what_was_written(path: Path) -> None:
    cache = open_cache(str(path))
    assert len(cache) == len(RESPONSES)
    for found, expected in zip(cache, RESPONSES, strict=True):
        assert_equal(found, expected)
    for index in np.random.default_rng(0).permutation(len(RESPONSES)):
        assert_equal(cache[index], RESPONSES[index])


def test_lengths_come_from_the_manifest(path: Path) -> None:
    cache = open_cache(path)
    assert cache.sequence_lengths.dtype == cache.response_lengths.dtype == np.int32
    assert cache.sequence_lengths.tolist() == [len(r.input_ids) for r in RESPONSES]
    assert cache.response_lengths.tolist() == [r.num_response_tokens for r in RESPONSES]


@pytest.mark.parametrize("index", [-1, len(RESPONSES), 10**12])
def test_indices_outside_are_refused(path: Path, index: int) -> None:
    with pytest.raises(IndexError, match=f"response {index} of a cache of {len(RESPONSES)}"):
        open_cache(path)[index]


def test_opening_reads_no_shard(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", RESPONSES[:3], k=3)
    shard = cache / "shards" / "shard-00000.parquet"
    shard.write_bytes(bytes(shard.stat().st_size))  # nothing left to read
    opened = open_cache(cache)
    assert opened.response_lengths.sum() == opened.manifest.num_response_tokens
    with pytest.raises(CacheDamagedError, match="SHA-256 is"):
        opened[0]


def open_shards(path: Path) -> int:
    gc.collect()
    held = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            held += os.readlink(link).startswith(str(path / "shards"))
        except OSError:
            continue  # the listing's own descriptor
    return held


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_open_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_OPEN_FILES", 2)
    monkeypatch.setattr(reader, "KEEP_BYTES", 0)
    path = make_cache(tmp_path / "cache", RESPONSES[:10], k=3, examples_per_shard=2)
    cache = open_cache(path)
    assert open_shards(path) == 0
    for index in [0, 2, 4, 6, 8, 0, 9, 3]:
        assert_equal(cache[index], RESPONSES[index])
        assert open_shards(path) <= 2


def test_decoded_rows_are_kept_up_to_a_bound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the bound the same objects come back; beyond it the least recently used go."""
    roomy = open_cache(path)
    first = roomy[0]
    list(roomy)
    assert roomy[0] is first

    monkeypatch.setattr(reader, "KEEP_BYTES", 1)
    tight = open_cache(path)
    first = tight[0]
    assert tight[1] is tight[1]  # the row group in use always stays
    tight[ROW_GROUP_RESPONSES]
    assert tight[0] is not first
    assert_equal(tight[0], first)


def test_the_least_recently_used_row_group_goes_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = 0, ROW_GROUP_RESPONSES, ROW_GROUP_RESPONSES + 20  # in three row groups
    probe = open_cache(path)
    sizes = []
    for index in (a, b, c):
        before = probe._kept_bytes
        probe[index]
        sizes.append(probe._kept_bytes - before)
    monkeypatch.setattr(reader, "KEEP_BYTES", sum(sizes) - 1)
    cache = open_cache(path)
    kept = {index: cache[index] for index in (a, b, a)}  # a is used once more
    cache[c]  # makes b go
    assert cache[a] is kept[a]
    assert cache[b] is not kept[b]


def read_some(cache: LogitCache, indices: list[int]) -> list[bytes]:
    return [cache[index].entry_logprobs.tobytes() for index in indices]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same_numbers(path: Path, method: str) -> None:
    cache = open_cache(path)
    _ = cache[0]  # an open file and decoded rows must not travel
    indices = [0, 5, ROW_GROUP_RESPONSES + 1, len(RESPONSES) - 1]
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(read_some, [(cache, indices)] * 2)
    assert found == [[RESPONSES[i].entry_logprobs.tobytes() for i in indices]] * 2


def test_a_pickled_cache_is_small_and_keeps_what_was_verified(path: Path) -> None:
    cache = open_cache(path)
    list(cache)
    data = pickle.dumps(cache)
    assert len(data) < 40 * len(cache) + 20_000
    copy = pickle.loads(data)
    assert copy.fingerprint == cache.fingerprint
    assert_equal(copy[7], RESPONSES[7])


def test_verified_copies_do_not_hash_again(tmp_path: Path) -> None:
    path = make_cache(tmp_path / "cache", RESPONSES[:3], k=3)
    cache = open_cache(path)
    cache.verify()
    copy = pickle.loads(pickle.dumps(cache))
    shard = path / "shards" / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"X")  # the closing magic number PAR1
    with pytest.raises(CacheDamagedError, match="cannot be opened"):  # not: SHA-256
        copy[0]
