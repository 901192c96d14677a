"""Read a finished cache: open and check, random access, iteration, full verification.

Opening reads plan and manifest and compares file sizes; it touches no row. A shard's SHA-256 is
compared the first time a row of it is read, so a flipped byte never becomes a wrong number. (The
checksums of Parquet pages do not cover page headers: one bit there changes how values decode.)
"""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from storage_schema.errors import CacheDamagedError
from storage_schema.layout import ROW_GROUP_RESPONSES
from storage_schema.manifest import Manifest, read_manifest
from storage_schema.plan import Plan, read_plan
from storage_schema.response import Int32Array, Response
from storage_schema.shard import check_sha256, check_size, open_shard, read_row_group, shard_path

# Decoded row groups are kept up to this size, so that small caches are decoded once.
KEEP_BYTES = 256 * 2**20
# Systems commonly allow a process 1024 open files.
MAX_OPEN_FILES = 64


def open_cache(path: str | Path) -> "LogitCache":
    """Return the finished cache at `path`.

    Raises:
        CacheNotFoundError: there is no cache.
        CacheUnfinishedError: its teacher pass has not finished.
        CacheFormatError: it is of a version this release does not read.
        CacheDamagedError: plan, manifest and files contradict each other.
    """
    return LogitCache(Path(path))


class LogitCache:
    """A finished cache: a sequence of responses, in dataset order.

    Attributes:
        path: its directory.
        plan: what was planned.
        manifest: what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan: Plan = read_plan(path)
        self.manifest: Manifest = read_manifest(path, self.plan)
        for index, shard in enumerate(self.manifest.shards):
            check_size(path, index, shard.num_bytes)
        self._sound: set[int] = set()  # shards whose SHA-256 was compared
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], list[Response]] = OrderedDict()
        self._kept_bytes = 0

    def __len__(self) -> int:
        return self.manifest.num_examples

    def __getitem__(self, index: int) -> Response:
        """Return response `index` (0 <= index < len)."""
        if not 0 <= index < len(self):
            raise IndexError(f"response {index} of a cache of {len(self)}")
        shard, row = divmod(index, self.plan.examples_per_shard)
        return self._group(shard, row // ROW_GROUP_RESPONSES)[row % ROW_GROUP_RESPONSES]

    def __iter__(self) -> Iterator[Response]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without open files and decoded rows."""
        return {
            **self.__dict__,
            "_files": OrderedDict(),
            "_groups": OrderedDict(),
            "_kept_bytes": 0,
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of plan and shard checksums."""
        return self.manifest.fingerprint

    @property
    def sequence_lengths(self) -> Int32Array:
        """int32 [len], tokens of each whole sequence, from the manifest."""
        return _concatenate([shard.sequence_lengths for shard in self.manifest.shards])

    @property
    def response_lengths(self) -> Int32Array:
        """int32 [len], response tokens of each example, from the manifest."""
        return _concatenate([shard.response_lengths for shard in self.manifest.shards])

    def verify(self) -> None:
        """Compare every shard's SHA-256 with the manifest now; reads the whole cache.

        Copies of the cache sent to other processes afterwards do not compare again.

        Raises:
            CacheDamagedError: a shard's bytes are not those that were written.
        """
        for index in range(len(self.manifest.shards)):
            self._check_bytes(index)

    def _check_bytes(self, shard: int) -> None:
        check_sha256(self.path, shard, self.manifest.shards[shard].sha256)
        self._sound.add(shard)

    def _file(self, shard: int) -> pq.ParquetFile:
        if shard not in self._sound:
            self._check_bytes(shard)
        if shard not in self._files:
            self._files[shard] = open_shard(self.path, self.plan, shard)
        self._files.move_to_end(shard)
        while len(self._files) > MAX_OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return self._files[shard]

    def _group(self, shard: int, group: int) -> list[Response]:
        key = (shard, group)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        responses = read_row_group(self._file(shard), group, shard_path(self.path, shard))
        self._check_lengths(responses, shard, group)
        self._groups[key] = responses
        self._kept_bytes += _num_bytes(responses)
        while self._kept_bytes > KEEP_BYTES and len(self._groups) > 1:
            self._kept_bytes -= _num_bytes(self._groups.popitem(last=False)[1])
        return responses

    def _check_lengths(self, responses: list[Response], shard: int, group: int) -> None:
        entry, first = self.manifest.shards[shard], group * ROW_GROUP_RESPONSES
        for row, response in enumerate(responses, first):
            found = (len(response.input_ids), response.num_response_tokens)
            listed = (entry.sequence_lengths[row], entry.response_lengths[row])
            if found != listed:
                raise CacheDamagedError(
                    f"{shard_path(self.path, shard)}, response {row} has {found[0]} tokens, "
                    f"{found[1]} of them response; the manifest lists {listed[0]} and {listed[1]}"
                )


def _concatenate(lengths: list[list[int]]) -> Int32Array:
    return np.asarray([length for shard in lengths for length in shard], np.int32)


def _num_bytes(responses: list[Response]) -> int:
    return sum(r.entry_token_ids.nbytes * 2 + r.input_ids.nbytes * 4 for r in responses)
