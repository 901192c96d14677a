"""Read a whole cache back and hold it against every rule, a row group at a time.

    audit = CacheAudit(path)                  # plan, manifest; nothing read yet
    for responses in audit.read(): ...        # sound rows; raises at the end if anything is not

Damage in one shard does not hide damage in the next: all damaged shards are named.
`finish_cache` checks its shards with the same code before it writes the manifest.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from storage_schema.errors import CacheDamagedError, CacheUnfinishedError
from storage_schema.inside import check_inside
from storage_schema.layout import MANIFEST_FILE, PASS_DIRECTORY, PLAN_FILE, SHARD_DIRECTORY
from storage_schema.local_copy import local_file
from storage_schema.location import Location, locate, snapshot
from storage_schema.manifest import Manifest, ShardEntry, read_manifest
from storage_schema.plan import Plan, read_plan
from storage_schema.response import Response
from storage_schema.shard import (
    check_lengths,
    check_rows,
    check_sha256,
    check_size,
    open_shard,
    read_row_group,
    shard_path,
)

_SHARD_NAME = re.compile(r"shard-(\d{5,13})\.parquet")


def read_checked(
    cache: Location, plan: Plan, index: int, at: Path, max_values: int = 2**31 - 1
) -> Iterator[list[Response]]:
    """Yield the row groups of shard `index`, every rule of the format checked in every row.

    Its bytes are read from the local file `at`, at most `max_values` of one column of a row group.

    Raises:
        CacheDamagedError: the file is not this plan's shard, or a row breaks a rule.
        CacheError: the operating system refuses to read it; it may be sound.
    """
    path, row = shard_path(cache, index), 0
    with open_shard(cache, plan, index, at) as file:
        for group in range(file.num_row_groups):
            responses = read_row_group(file, group, path, plan.schema, max_values)
            check_rows(responses, plan, path, row)
            row += len(responses)
            yield responses


def _numbers_on_disk(cache: Location) -> list[int]:
    """Return the indices of the shard files there; a plan may claim 2^40, a folder cannot."""
    directory = cache / SHARD_DIRECTORY
    check_inside(cache, directory)
    if not directory.is_dir():
        return []
    numbers = [
        int(found[1]) for path in directory.iterdir() if (found := _SHARD_NAME.fullmatch(path.name))
    ]
    return sorted({i for i in numbers if shard_path(cache, i).exists()})


class CacheAudit:
    """One reading of a cache, finished or (to look at) not.

    Attributes:
        path: where it lies.
        plan: what was planned.
        manifest: what was written; None while the cache is unfinished.
        shards: the shards to read, ascending: all, or those an unfinished cache has.
        num_bytes: their size.
    """

    def __init__(self, path: str | Location, *, allow_incomplete: bool = False) -> None:
        """Read plan and manifest.

        Args:
            path: the cache's directory, or an fsspec URL.
            allow_incomplete: look at the published shards of an unfinished cache.

        Raises:
            CacheNotFoundError: there is no cache.
            CacheUnfinishedError: it is unfinished, or has no shard yet.
            CacheFormatError: it is of a version this release does not read.
            CacheDamagedError: plan and manifest contradict each other.
        """
        self.path = locate(path)
        path = snapshot(self.path)
        self.plan = read_plan(path)
        self.manifest: Manifest | None = None
        if not allow_incomplete or (path / MANIFEST_FILE).exists():
            self.manifest = read_manifest(path, self.plan)
        everything = range(self.plan.num_shards)
        if self.manifest is not None:
            self.shards = list(everything)
            self.num_bytes = self.manifest.num_bytes
            return
        self.shards = [i for i in _numbers_on_disk(path) if i in everything]
        self.num_bytes = sum(shard_path(path, i).stat().st_size for i in self.shards)
        if not self.shards:
            raise CacheUnfinishedError(
                f"the cache at {path} has none of its {self.plan.num_shards} shards yet: run "
                "precompute-logits again with the same settings, it continues where it stopped"
            )

    @property
    def num_examples(self) -> int:
        """Responses in the shards to read, as planned."""
        return sum(len(self.plan.shard_examples(index)) for index in self.shards)

    @property
    def strangers(self) -> list[str]:
        """Files in the directory that are no part of the cache, by name; readers ignore them."""
        known = {PLAN_FILE, MANIFEST_FILE, SHARD_DIRECTORY, PASS_DIRECTORY}
        found = [p.name for p in self.path.iterdir() if p.name not in known]
        shards = {shard_path(self.path, index).name for index in self.shards}
        directory = self.path / SHARD_DIRECTORY
        found += [
            f"{SHARD_DIRECTORY}/{p.name}" for p in directory.iterdir() if p.name not in shards
        ]
        return sorted(found)

    def read(self) -> Iterator[list[Response]]:
        """Yield all responses in dataset order, a row group at a time; at the end, the verdict.

        Rows yielded before an error mean nothing: use them only after the last one.

        Raises:
            CacheDamagedError: after the last row, naming every damaged shard; or the shards
                together do not hold what was planned.
            CacheError: the operating system refuses to read a file; it may be sound.
        """
        damage: list[str] = []
        identifiers, tokens = hashlib.sha256(), 0
        for index in self.shards:
            try:
                for responses in self._read_shard(index):
                    for response in responses:
                        identifiers.update(response.example_id)
                        tokens += response.num_response_tokens
                    yield responses
            except CacheDamagedError as error:
                damage.append(str(error))
        if damage:
            many = f"{len(damage)} of {len(self.shards)} shards are damaged:\n  "
            raise CacheDamagedError(damage[0] if len(damage) == 1 else many + "\n  ".join(damage))
        if len(self.shards) == self.plan.num_shards:
            self._check_dataset(identifiers.hexdigest(), tokens)

    def _read_shard(self, index: int) -> Iterator[list[Response]]:
        entry = None if self.manifest is None else self.manifest.shards[index]
        if entry is not None:
            check_size(self.path, index, entry.num_bytes)
        with local_file(shard_path(self.path, index)) as at:
            yield from self._read_file(index, entry, at)

    def _read_file(
        self, index: int, entry: ShardEntry | None, at: Path
    ) -> Iterator[list[Response]]:
        if entry is None:
            yield from read_checked(self.path, self.plan, index, at)
            return
        check_sha256(self.path, index, entry.sha256, at)
        lengths = entry.decode_lengths(f"{self.path / MANIFEST_FILE}, shard {index}")
        most = max(
            int(lengths.sequence.sum(dtype="int64")), self.plan.k * entry.num_response_tokens
        )
        path, row, num_entries = shard_path(self.path, index), 0, 0
        for responses in read_checked(self.path, self.plan, index, at, most):
            check_lengths(responses, lengths, path, row)
            row += len(responses)
            num_entries += sum(len(response.entry_token_ids) for response in responses)
            yield responses
        if num_entries != entry.num_entries:
            raise CacheDamagedError(
                f"{path} holds {num_entries} entries, the manifest says {entry.num_entries}: the "
                "manifest was edited; copy it again, or delete it and run precompute-logits again"
            )

    def _check_dataset(self, fingerprint: str, tokens: int) -> None:
        dataset = self.plan.dataset
        if fingerprint != dataset["fingerprint"]:
            raise CacheDamagedError(
                f"the shards of {self.path} hold examples with fingerprint {fingerprint}, the plan "
                f"says {dataset['fingerprint']}"
            )
        planned = dataset.get("num_response_tokens", tokens)
        if planned != tokens:
            raise CacheDamagedError(
                f"the shards of {self.path} hold {tokens} response tokens, the plan says {planned}"
            )
