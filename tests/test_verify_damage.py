"""Every damage of a cache makes verify-cache end with exit code 1 and the damage's name."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cache_factory import make_cache, make_plan, random_responses, resign
from click.testing import CliRunner

from pipeline.cli.verify_cache import main
from storage_schema import LogitCache, Response, claim_plan, open_cache, write_shard
from storage_schema.audit import CacheAudit
from storage_schema.codec import encode
from storage_schema.errors import CacheDamagedError, CacheError
from storage_schema.lengths import decode_lengths, encode_lengths
from storage_schema.shard import shard_metadata, shard_path

RESPONSES = random_responses(6)
PLAN = make_plan(RESPONSES, examples_per_shard=2)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Three shards of two responses."""
    return make_cache(tmp_path / "cache", RESPONSES, examples_per_shard=2)


def verify(cache: Path, *flags: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["--cache", str(cache), *flags])
    return result.exit_code, result.output


def rewrite(
    cache: Path, table: pa.Table, metadata: dict[Any, Any] | None = None, **options: Any
) -> None:
    """Put a table in the place of shard 0, and make the manifest agree with its bytes."""
    metadata = shard_metadata(PLAN, 0) | (metadata or {})
    metadata = {key: value for key, value in metadata.items() if value is not None}
    pq.write_table(table.replace_schema_metadata(metadata), shard_path(cache, 0), **options)
    resign(cache)


def rewrite_row(cache: Path, response: Response) -> None:
    rewrite(cache, encode([response, RESPONSES[1]]))


def edit(cache: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((cache / name).read_text())
    change(document)
    (cache / name).write_text(json.dumps(document))


def write_bytes(cache: Path, shard: int, change: Callable[[bytes], bytes]) -> None:
    path = shard_path(cache, shard)
    path.write_bytes(change(path.read_bytes()))


def changed(name: str, place: int, value: float, source: int = 0) -> Response:
    """Response 0 with one value of one array replaced."""
    array = getattr(RESPONSES[source], name).copy()
    array[place] = value
    return dataclasses.replace(RESPONSES[source], **{name: array})


def swap(cache: Path) -> None:
    one, two = shard_path(cache, 0), shard_path(cache, 1)
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    resign(cache)


def another_cache(cache: Path) -> None:
    other = make_cache(cache.parent / "other", RESPONSES, examples_per_shard=2, k=9)
    shutil.copy(shard_path(other, 0), shard_path(cache, 0))
    resign(cache)


def other_types(cache: Path) -> None:
    table = encode(RESPONSES[:2])
    index = table.schema.get_field_index("entry_logprobs")
    doubles = table.column(index).cast(pa.list_(pa.float64()))
    rewrite(cache, table.set_column(index, "entry_logprobs", doubles))


def no_tail(cache: Path) -> None:
    tail = np.zeros_like(RESPONSES[0].log_tail_mass)
    rewrite_row(cache, dataclasses.replace(RESPONSES[0], log_tail_mass=tail))


def other_examples(cache: Path) -> None:
    """Sound rows of the planned lengths, other tokens."""
    ids = RESPONSES[0].input_ids.copy()
    ids[0] ^= 1
    rewrite_row(cache, dataclasses.replace(RESPONSES[0], input_ids=ids))


def one_token_more(document: dict[str, Any]) -> None:
    shard = document["shards"][0]
    lengths = decode_lengths(shard["sequence_lengths"], shard["num_examples"], "test")
    lengths[0] += 1
    shard["sequence_lengths"] = encode_lengths(lengths)


def one_entry_more(document: dict[str, Any]) -> None:
    document["shards"][0]["num_entries"] -= 1
    document["totals"]["num_entries"] -= 1


def swap_best(cache: Path) -> None:
    ids = RESPONSES[0].entry_token_ids.copy()
    logprobs = RESPONSES[0].entry_logprobs.copy()
    ids[:2], logprobs[:2] = ids[1::-1].copy(), logprobs[1::-1].copy()
    rewrite_row(
        cache, dataclasses.replace(RESPONSES[0], entry_token_ids=ids, entry_logprobs=logprobs)
    )


def id_twice(cache: Path) -> None:
    rewrite_row(cache, changed("entry_token_ids", 1, RESPONSES[0].entry_token_ids[0]))


def too_many_bytes(cache: Path) -> None:
    write_bytes(cache, 1, lambda data: data + b"\0")


LENGTH = len(RESPONSES[0].input_ids)
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda c: write_bytes(c, 1, lambda data: data[:-1]),
        "bytes, the manifest says",
    ),
    "longer": (too_many_bytes, "the manifest says"),
    "empty": (
        lambda c: write_bytes(c, 1, lambda data: b""),
        "shard-00001.parquet has 0 bytes, the manifest says",
    ),
    "truncated before signing": (
        lambda c: [write_bytes(c, 1, lambda data: data[: len(data) // 2]), resign(c)],
        "shard-00001.parquet cannot be opened",
    ),
    "missing": (lambda c: shard_path(c, 2).unlink(), "shard-00002.parquet is missing, the man"),
    "renamed": (
        lambda c: shard_path(c, 2).rename(c / "shards" / "shard-00002.parquet.bak"),
        "shard-00002.parquet is missing, the manifest lists it",
    ),
    "swapped": (swap, "shard-00000.parquet: smoothkd.shard_index is '1', expected '0'"),
    "duplicated": (
        lambda c: [shutil.copy(shard_path(c, 0), shard_path(c, 1)), resign(c)],
        "shard-00001.parquet: smoothkd.shard_index is '0', expected '1'",
    ),
    "of another cache": (another_cache, "shard-00000.parquet: smoothkd.plan_fingerprint is"),
    "no metadata": (
        lambda c: rewrite(c, encode(RESPONSES[:2]), dict.fromkeys(shard_metadata(PLAN, 0))),
        "smoothkd.format is None, expected 'smoothkd-cache'",
    ),
    "future shard": (
        lambda c: rewrite(c, encode(RESPONSES[:2]), {"smoothkd.format_version": "2"}),
        "smoothkd.format_version is '2', expected '1'",
    ),
    "other codec": (
        lambda c: rewrite(c, encode(RESPONSES[:2]), {"smoothkd.codec": "float16"}),
        "smoothkd.codec is 'float16', expected 'float16-rounded'",
    ),
    "other position rule": (
        lambda c: rewrite(c, encode(RESPONSES[:2]), {"smoothkd.position_rule": "next"}),
        "smoothkd.position_rule is 'next', expected",
    ),
    "metadata in no encoding": (
        lambda c: rewrite(c, encode(RESPONSES[:2]), {"smoothkd.shard_index": b"\xff"}),
        "smoothkd.shard_index is '\ufffd', expected '0'",
    ),
    "a row less": (lambda c: rewrite(c, encode(RESPONSES[:1])), "has 1 rows, the plan 2"),
    "a row more": (lambda c: rewrite(c, encode(RESPONSES[:3])), "has 3 rows, the plan 2"),
    "other row groups": (
        lambda c: rewrite(c, encode(RESPONSES[:2]), row_group_size=1),
        "row group 0 has 1 rows, expected 2",
    ),
    "other types": (other_types, "row group 0: columns are"),
    "sum over 1": (no_tail, "and tail mass sum to 1."),
    "NaN": (
        lambda c: rewrite_row(c, changed("entry_logprobs", 3, np.nan)),
        "response 0: entry_logprobs[3] is np.float32(nan), expected a float16-rounded value",
    ),
    "infinite label": (
        lambda c: rewrite_row(c, changed("label_logprobs", 0, -np.inf)),
        "response 0: label_logprobs[0] is np.float32(-inf), expected",
    ),
    "NaN in the second response": (
        lambda c: rewrite(c, encode([RESPONSES[0], changed("label_logprobs", 0, np.nan, 1)])),
        "shard-00000.parquet, response 1: label_logprobs[0] is np.float32(nan), expected",
    ),
    "not rounded": (
        lambda c: rewrite_row(c, changed("label_logprobs", 0, -1.00001)),
        "response 0: label_logprobs[0] is np.float32(-1.00001), expected",
    ),
    "entry beyond the vocabulary": (
        lambda c: rewrite_row(c, changed("entry_token_ids", 2, 1000)),
        "response 0: entry_token_ids[2] is 1000, expected an id from 0 to 999",
    ),
    "token beyond the vocabulary": (
        lambda c: rewrite_row(c, changed("input_ids", 0, 1000)),
        "response 0: input_ids[0] is 1000, expected an id from 0 to 999",
    ),
    "order": (swap_best, "response 0: row 0 is not in canonical order"),
    "an id twice": (id_twice, "response 0: row 0 holds token id"),
    "no entries": (
        lambda c: rewrite_row(c, changed("num_entries", 0, 0)),
        "response 0: entry_token_ids has",
    ),
    "shifted rows": (
        lambda c: rewrite_row(c, changed("label_logprobs", 0, 0.0)),
        "the rows are shifted against the tokens",
    ),
    "other examples": (other_examples, "hold examples with fingerprint"),
    "edited length": (
        lambda c: edit(c, "manifest.json", one_token_more),
        f"response 0 has {LENGTH} tokens, {RESPONSES[0].num_response_tokens} of them response; "
        f"the manifest lists {LENGTH + 1} and",
    ),
    "edited entries": (
        lambda c: edit(c, "manifest.json", one_entry_more),
        "entries, the manifest says",
    ),
    "edited totals": (
        lambda c: edit(c, "manifest.json", lambda d: d["totals"].update(num_bytes=1)),
        "are not the shards' sums",
    ),
    "edited plan": (
        lambda c: edit(c, "plan.json", lambda d: d["teacher"].update(name="other")),
        "but the plan beside it is",
    ),
    "future plan": (
        lambda c: edit(c, "plan.json", lambda d: d.update(format_version=2)),
        "plan.json is format 'smoothkd-cache' version 2; this release reads",
    ),
    "future manifest": (
        lambda c: edit(c, "manifest.json", lambda d: d.update(format_version=2)),
        "manifest.json is format 'smoothkd-cache' version 2; this release reads",
    ),
    "no JSON": (
        lambda c: (c / "manifest.json").write_text("{"),
        "manifest.json is not valid JSON",
    ),
    "no plan": (lambda c: (c / "plan.json").unlink(), "holds manifest.json and shards, but no pl"),
    "unfinished": (lambda c: (c / "manifest.json").unlink(), "is unfinished (manifest.json is mi"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_named_with_exit_code_1(cache: Path, name: str) -> None:
    damage, text = DAMAGES[name]
    assert verify(cache)[0] == 0
    damage(cache)
    code, output = verify(cache)
    assert code == 1, output
    assert text in output
    assert "\nError: " in "\n" + output
    assert "sound" not in output.replace("may be sound", "")


# Each row is sound and of the planned lengths: only reading all examples shows that they are
# others. A manifest that agrees with them is another cache, and has another fingerprint.
ONLY_VERIFIED = {"other examples"}
# The number of entries is told to people and used to guess sizes; no row is read by it.
HARMLESS = {"edited entries"}


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in ONLY_VERIFIED])
def test_each_damage_is_named_when_the_cache_is_read(cache: Path, name: str) -> None:
    """What train-student does: open, plan its order from the lengths, read in any order."""
    damage, text = DAMAGES[name]
    damage(cache)

    def read_in_order(cache: LogitCache) -> list[Response]:
        return list(cache)

    def read_at_random(cache: LogitCache) -> list[Response]:
        return [cache[index] for index in (5, 0, 3, 1, 4, 2)]

    for read in (read_in_order, read_at_random):
        if name in HARMLESS:
            read(open_cache(cache))
            continue
        with pytest.raises(CacheError, match=re.escape(text)):
            read(open_cache(cache))


def test_what_only_the_whole_dataset_shows_changes_the_fingerprint(cache: Path) -> None:
    before = open_cache(cache).fingerprint
    other_examples(cache)
    assert open_cache(cache).fingerprint != before
    assert verify(cache)[0] == 1


def test_a_flipped_byte_in_any_region_is_named(cache: Path) -> None:
    data = shard_path(cache, 1).read_bytes()
    for position in (0, 5, len(data) // 3, len(data) // 2, len(data) - 600, len(data) - 1):
        flipped = data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]
        shard_path(cache, 1).write_bytes(flipped)
        code, output = verify(cache)
        assert code == 1
        assert "shard-00001.parquet: SHA-256 is" in output


def test_every_damaged_shard_is_named(cache: Path) -> None:
    too_many_bytes(cache)
    shard_path(cache, 2).unlink()
    code, output = verify(cache)
    assert code == 1
    assert "2 of 3 shards are damaged:" in output
    assert "shard-00001.parquet has" in output
    assert "shard-00002.parquet is missing" in output


def test_entries_below_the_plans_minimum_are_named(tmp_path: Path) -> None:
    """A shard of the same examples, cut at another minimum."""
    sound = random_responses(2, min_prob=0.05)
    cache = make_cache(tmp_path / "cache", sound, min_prob=0.05)
    assert verify(cache)[0] == 0
    plan = make_plan(sound, min_prob=0.05)
    table = encode(random_responses(2)).replace_schema_metadata(shard_metadata(plan, 0))
    pq.write_table(table, shard_path(cache, 0))
    resign(cache)
    code, output = verify(cache)
    assert code == 1
    assert "shard-00000.parquet, response 0: row 0 holds an entry of probability" in output
    assert "below the minimum 0.05" in output


def test_response_tokens_are_compared_with_the_plan(tmp_path: Path) -> None:
    plan = make_plan(RESPONSES, examples_per_shard=6)
    plan = dataclasses.replace(plan, dataset={**plan.dataset, "num_response_tokens": 3})
    claim_plan(tmp_path, plan)
    write_shard(tmp_path, plan, 0, RESPONSES)
    total = sum(response.num_response_tokens for response in RESPONSES)
    with pytest.raises(CacheDamagedError, match=f"hold {total} response tokens, the plan says 3"):
        list(CacheAudit(tmp_path, allow_incomplete=True).read())
