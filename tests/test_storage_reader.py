"""Reading: random access, iteration, workers, bounded memory and files, and what opening costs."""

import gc
import multiprocessing
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cache_factory import make_cache, random_responses
from test_storage_codec import assert_equal

from storage_schema import LogitCache, open_cache, reader
from storage_schema.errors import CacheDamagedError
from storage_schema.layout import ROW_GROUP_RESPONSES
from storage_schema.shard import read_row_group

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
    monkeypatch.setattr(reader, "MIN_KEPT_GROUPS", 1)
    path = make_cache(tmp_path / "cache", RESPONSES[:10], k=3, examples_per_shard=2)
    gc.freeze()  # collecting looks at what this test made, not at all that was imported
    try:
        cache = open_cache(path)
        assert open_shards(path) == 0
        for index in [0, 2, 4, 6, 8, 0, 9, 3]:
            assert_equal(cache[index], RESPONSES[index])
            assert open_shards(path) <= 2
    finally:
        gc.unfreeze()


def test_decoded_rows_are_kept_up_to_a_bound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the bound the same objects come back; beyond it the least recently used go."""
    roomy = open_cache(path)
    first = roomy[0]
    read_some(roomy, list(range(len(roomy))))
    assert roomy[0] is first

    monkeypatch.setattr(reader, "KEEP_BYTES", 1)
    monkeypatch.setattr(reader, "MIN_KEPT_GROUPS", 1)
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
    monkeypatch.setattr(reader, "MIN_KEPT_GROUPS", 1)
    cache = open_cache(path)
    kept = {index: cache[index] for index in (a, b, a)}  # a is used once more
    cache[c]  # makes b go
    assert cache[a] is kept[a]
    assert cache[b] is not kept[b]


def test_some_row_groups_are_kept_however_large(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "KEEP_BYTES", 1)
    monkeypatch.setattr(reader, "MIN_KEPT_GROUPS", 2)
    cache = open_cache(path)
    a, b, c = (cache[0], cache[ROW_GROUP_RESPONSES], cache[ROW_GROUP_RESPONSES + 20])
    assert cache[ROW_GROUP_RESPONSES] is b
    assert cache[ROW_GROUP_RESPONSES + 20] is c
    assert cache[0] is not a


def test_iteration_keeps_no_row_group_and_disturbs_none(path: Path) -> None:
    cache = open_cache(path)
    first = cache[0]
    assert next(iter(cache)) is first
    before = cache._kept_bytes
    assert len(list(cache)) == len(RESPONSES)
    assert (cache._kept_bytes, len(cache._groups)) == (before, 1)


def test_a_shard_alone_is_iterated(path: Path) -> None:
    found = list(open_cache(path).iterate_shard(1))
    for one, two in zip(found, RESPONSES[ROW_GROUP_RESPONSES + 20 :], strict=True):
        assert_equal(one, two)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """Counts how often each row group is decoded."""
    counts: Counter[tuple[str, int]] = Counter()

    def count(file, group, where, schema, **limits):
        counts[where.name, group] += 1
        return read_row_group(file, group, where, schema, **limits)

    monkeypatch.setattr(reader, "read_row_group", count)
    return counts


def test_a_shuffled_pass_decodes_each_row_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: Counter
) -> None:
    path = make_cache(tmp_path / "cache", RESPONSES[:96], k=3, examples_per_shard=8)
    probe = open_cache(path)
    largest = int(probe._row_group_bytes().max())
    monkeypatch.setattr(reader, "KEEP_BYTES", 3 * largest)
    monkeypatch.setattr(reader, "MIN_KEPT_GROUPS", 1)
    cache = open_cache(path)
    order = cache.order(seed=4)
    assert order.window_groups == 3
    for epoch in range(3):
        decoded.clear()
        cache._groups.clear()
        cache._kept_bytes = 0
        for index in order.indices(epoch):
            assert_equal(cache[index], RESPONSES[index])
        assert set(decoded.values()) == {1}
        assert len(decoded) == 12
    decoded.clear()
    for index in np.random.default_rng(0).permutation(96):  # what a full shuffle would cost
        cache[int(index)]
    assert decoded.total() > 40


def test_the_manifest_tells_what_row_groups_take_decoded(path: Path) -> None:
    """Exactly, where all rows have the same number of entries."""
    cache = open_cache(path)
    sizes = []
    for index in (0, ROW_GROUP_RESPONSES, ROW_GROUP_RESPONSES + 20):
        before = cache._kept_bytes
        cache[index]
        sizes.append(cache._kept_bytes - before)
    assert cache._row_group_bytes()[:3].tolist() == sizes
    held = sum(
        getattr(response, name).nbytes
        for response in RESPONSES[:ROW_GROUP_RESPONSES]
        for name in ("input_ids", "num_entries", "entry_token_ids", "entry_logprobs")
    )
    assert sizes[0] > held


def test_the_window_follows_from_the_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_cache(path).order(0).window_groups > 4  # all of them: a full shuffle
    monkeypatch.setattr(reader, "KEEP_BYTES", 1)
    assert open_cache(path).order(0).window_groups == reader.MIN_KEPT_GROUPS


def read_some(cache: LogitCache, indices: list[int]) -> list[bytes]:
    return [cache[index].entry_logprobs.tobytes() for index in indices]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same_numbers(path: Path, method: str) -> None:
    cache = open_cache(path)
    _ = cache[0]  # an open file and decoded rows must not travel
    indices = [0, 5, ROW_GROUP_RESPONSES + 1, len(RESPONSES) - 1]
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(read_some, [(cache, indices)] * 2)
        pool.close()
        pool.join()  # or the end of the block kills workers, which some libraries' handlers survive
    assert found == [[RESPONSES[i].entry_logprobs.tobytes() for i in indices]] * 2


def files_after_fork(cache: LogitCache, index: int) -> tuple[bool, bool, bytes]:
    """In a worker: was the parent's file used, is it still used later, and what was read."""
    inherited = cache._files.get(0)
    logprobs = cache[index].entry_logprobs.tobytes()
    own = cache._files[0]
    cache[0]
    return own is inherited, own is not cache._files[0], logprobs


def child_main(cache: LogitCache, index: int, sender) -> None:
    sender.send(files_after_fork(cache, index))


def test_a_fork_opens_its_own_files(path: Path) -> None:
    """A forked worker inherits the object as it is: its open files share their place with ours."""
    cache = open_cache(path)
    _ = cache[0]
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=child_main, args=(cache, ROW_GROUP_RESPONSES + 1, sender))
    child.start()
    reused, reopened, logprobs = receiver.recv()
    child.join()
    assert not reused
    assert not reopened
    assert logprobs == RESPONSES[ROW_GROUP_RESPONSES + 1].entry_logprobs.tobytes()
    assert_equal(cache[ROW_GROUP_RESPONSES + 1], RESPONSES[ROW_GROUP_RESPONSES + 1])


def test_opening_decodes_no_lengths(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening takes the same time for any number of responses in a shard."""
    monkeypatch.setattr("storage_schema.lengths.zlib", None)
    cache = open_cache(path)
    assert len(cache) == len(RESPONSES)
    with pytest.raises(AttributeError):
        _ = cache.sequence_lengths


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
