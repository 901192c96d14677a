"""What a finished cache holds: for every shard its counts, lengths, bytes and checksum.

The manifest is written last. A cache without one is unfinished and is not trained on. The
lengths let a loader plan batches without opening a shard.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage_schema.documents import read_json, take, write_json
from storage_schema.errors import CacheDamagedError, CacheUnfinishedError
from storage_schema.layout import FORMAT_NAME, FORMAT_VERSION, MANIFEST_FILE
from storage_schema.plan import Plan, check_version


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard as it was written.

    Attributes:
        num_response_tokens: teacher rows in the shard.
        num_entries: stored (token id, log-probability) pairs.
        num_bytes: size of the file.
        sha256: hex digest of the whole file.
        sequence_lengths: tokens of each response's whole sequence, in row order.
        response_lengths: response tokens of each row.
    """

    num_response_tokens: int
    num_entries: int
    num_bytes: int
    sha256: str
    sequence_lengths: list[int]
    response_lengths: list[int]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The fingerprint of the plan it fulfils, and one entry per shard in order."""

    plan_fingerprint: str
    shards: list[ShardEntry]

    @property
    def num_examples(self) -> int:
        """Responses in the cache."""
        return sum(len(shard.sequence_lengths) for shard in self.shards)

    @property
    def num_response_tokens(self) -> int:
        """Teacher rows in the cache."""
        return sum(shard.num_response_tokens for shard in self.shards)

    @property
    def num_entries(self) -> int:
        """Stored (token id, log-probability) pairs in the cache."""
        return sum(shard.num_entries for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards on disk."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of plan and shard checksums: the identity of the cache's content."""
        text = json.dumps([self.plan_fingerprint, *(shard.sha256 for shard in self.shards)])
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the content of manifest.json, totals included for people."""
        totals = {
            "num_examples": self.num_examples,
            "num_response_tokens": self.num_response_tokens,
            "num_entries": self.num_entries,
            "num_bytes": self.num_bytes,
        }
        return {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "plan_fingerprint": self.plan_fingerprint,
            "totals": totals,
            "shards": [asdict(shard) for shard in self.shards],
        }


def write_manifest(cache: Path, manifest: Manifest) -> None:
    """Publish manifest.json, which declares the cache finished."""
    write_json(cache / MANIFEST_FILE, manifest.to_json())


def read_manifest(cache: Path, plan: Plan) -> Manifest:
    """Return the manifest of the cache at `cache`, checked against its plan.

    Raises:
        CacheUnfinishedError: there is none yet.
        CacheFormatError: it is of another format or version.
        CacheDamagedError: it belongs to another plan, or its counts contradict the plan.
    """
    path = cache / MANIFEST_FILE
    if not path.exists():
        raise CacheUnfinishedError(
            f"the cache at {cache} is unfinished ({MANIFEST_FILE} is missing): run "
            "precompute-logits again with the same settings, it continues where it stopped"
        )
    document = read_json(path)
    check_version(document, path)
    shards = [
        _read_shard(shard, f"{path}, shard {i}")
        for i, shard in enumerate(take(document, "shards", list, str(path)))
    ]
    manifest = Manifest(
        plan_fingerprint=take(document, "plan_fingerprint", str, str(path)), shards=shards
    )
    if manifest.plan_fingerprint != plan.fingerprint:
        raise CacheDamagedError(
            f"{path} fulfils plan {manifest.plan_fingerprint}, but the plan beside it is "
            f"{plan.fingerprint}: one of the two files was edited or copied from another cache"
        )
    if len(shards) != plan.num_shards:
        raise CacheDamagedError(f"{path} lists {len(shards)} shards, the plan {plan.num_shards}")
    for index, shard in enumerate(shards):
        _check_counts(shard, plan, index, f"{path}, shard {index}")
    if document.get("totals") != manifest.to_json()["totals"]:
        raise CacheDamagedError(f"{path}: totals {document.get('totals')} are not the shards' sums")
    return manifest


def _read_shard(value: Any, where: str) -> ShardEntry:
    if not isinstance(value, dict):
        raise CacheDamagedError(f"{where} is {value!r}, expected an object")
    names = ShardEntry.__annotations__
    kinds = {name: kind for name, kind in names.items() if kind in (int, str)}
    fields = {name: take(value, name, kinds.get(name, list), where) for name in names}
    for name in ("sequence_lengths", "response_lengths"):
        for length in fields[name]:
            if type(length) is not int or not 0 < length < 2**31:
                raise CacheDamagedError(
                    f"{where}: {name} holds {length!r}, expected integers from 1 to 2^31 - 1"
                )
    return ShardEntry(**fields)


def _check_counts(shard: ShardEntry, plan: Plan, index: int, where: str) -> None:
    expected = len(plan.shard_examples(index))
    if not len(shard.sequence_lengths) == len(shard.response_lengths) == expected:
        raise CacheDamagedError(
            f"{where} lists {len(shard.sequence_lengths)} sequence and "
            f"{len(shard.response_lengths)} response lengths, the plan {expected} examples"
        )
    for sequence, response in zip(shard.sequence_lengths, shard.response_lengths, strict=True):
        if response >= sequence:
            raise CacheDamagedError(
                f"{where}: a response of {response} tokens in a sequence of {sequence}"
            )
    if sum(shard.response_lengths) != shard.num_response_tokens:
        raise CacheDamagedError(
            f"{where}: num_response_tokens is {shard.num_response_tokens}, its response_lengths "
            f"sum to {sum(shard.response_lengths)}"
        )
    most = shard.num_response_tokens * plan.k
    if not shard.num_response_tokens <= shard.num_entries <= most:
        raise CacheDamagedError(
            f"{where}: num_entries is {shard.num_entries}, expected "
            f"{shard.num_response_tokens} to {most} (1 to k a response token)"
        )
