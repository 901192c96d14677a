"""The plan and the manifest: round trips, refusals field by field, edits and foreign files."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from cache_factory import make_cache, make_plan, random_responses

from storage_schema import Plan, claim_plan, missing_shards, open_cache
from storage_schema.documents import differences, read_json, take, write_json
from storage_schema.errors import (
    CacheDamagedError,
    CacheError,
    CacheFormatError,
    CacheNotFoundError,
    CacheUnfinishedError,
    PlanMismatchError,
)
from storage_schema.lengths import encode_lengths
from storage_schema.manifest import read_manifest
from storage_schema.plan import fingerprint_examples, read_plan

RESPONSES = random_responses(9)
SECTIONS = ("teacher", "tokenizer", "template", "dataset", "engine", "support", "limits")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return make_cache(tmp_path / "cache", RESPONSES)


def edit(path: Path, *place: object, value: object) -> None:
    """Set one place of a JSON file, as a person with an editor would."""
    document = json.loads(path.read_text())
    target = document
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    path.write_text(json.dumps(document))


# The plan.


def test_plan_travels_through_json(tmp_path: Path) -> None:
    plan = make_plan(RESPONSES, min_prob=1e-4)
    claim_plan(tmp_path, plan)
    assert read_plan(tmp_path) == plan
    assert read_plan(tmp_path).fingerprint == plan.fingerprint
    names = ["format", "format_version", *SECTIONS[:-1], "codec", "limits", "examples_per_shard"]
    assert list(json.loads((tmp_path / "plan.json").read_text())) == names


def test_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    plan = make_plan(RESPONSES)
    turned = {
        name: dict(reversed(section.items())) if isinstance(section, dict) else section
        for name, section in reversed(dataclasses.asdict(plan).items())
    }
    assert Plan(**turned).fingerprint == plan.fingerprint
    assert len(plan.fingerprint) == 64


def change(plan: Plan, section: str) -> Plan:
    return dataclasses.replace(plan, **{section: {**getattr(plan, section), "extra": 1}})


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_counts_for_the_fingerprint_and_the_refusal(
    tmp_path: Path, section: str
) -> None:
    plan = make_plan(RESPONSES)
    other = change(plan, section)
    assert other.fingerprint != plan.fingerprint
    claim_plan(tmp_path, plan)
    claim_plan(tmp_path, plan)  # the same one again
    with pytest.raises(PlanMismatchError, match=rf"{section}\.extra: there nothing, asked 1"):
        claim_plan(tmp_path, other)
    assert read_plan(tmp_path) == plan


def test_the_refusal_names_every_differing_field(tmp_path: Path) -> None:
    claim_plan(tmp_path, make_plan(RESPONSES, k=8, min_prob=0.0, examples_per_shard=4))
    with pytest.raises(PlanMismatchError) as caught:
        claim_plan(tmp_path, make_plan(RESPONSES, k=9, min_prob=0.5, examples_per_shard=5))
    assert str(caught.value).splitlines()[1:-1] == [
        "  examples_per_shard: there 4, asked 5",
        "  support.k: there 8, asked 9",
        "  support.min_prob: there 0.0, asked 0.5",
    ]


def test_values_with_another_json_text_differ(tmp_path: Path) -> None:
    """0 and 0.0 give two fingerprints: shards of the one would not fit the other."""
    claim_plan(tmp_path, make_plan(RESPONSES, min_prob=0.0))
    with pytest.raises(PlanMismatchError, match=r"support.min_prob: there 0.0, asked 0\n"):
        claim_plan(tmp_path, make_plan(RESPONSES, min_prob=0))


def test_differences_tell_missing_from_null() -> None:
    assert differences({"a": None}, {}) == ["a: there None, asked nothing"]
    assert differences({}, {"a": {"b": 1}}) == ["a: there nothing, asked {'b': 1}"]
    assert differences({"a": [1, 2]}, {"a": [1, 3]}) == ["a: there [1, 2], asked [1, 3]"]
    assert differences({"a": True}, {"a": 1}) == ["a: there True, asked 1"]
    assert differences({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}) == []


def test_a_directory_or_file_of_something_else_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(PlanMismatchError, match="not empty .thesis.tex. and holds no plan.json"):
        claim_plan(tmp_path, make_plan(RESPONSES))
    with pytest.raises(PlanMismatchError, match="thesis.tex is a file, a cache is a directory"):
        claim_plan(tmp_path / "thesis.tex", make_plan(RESPONSES))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("name", "claimed"), [("manifest.json", True), ("shards", False)])
def test_a_cache_that_lost_its_plan_is_neither_claimed_nor_called_none(
    tmp_path: Path, name: str, claimed: bool
) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(CacheDamagedError, match=f"holds {name}, but no plan.json: it was not copi"):
        claim_plan(tmp_path, make_plan(RESPONSES)) if claimed else open_cache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_left_over_temporary_files_do_not_block_a_claim(tmp_path: Path) -> None:
    (tmp_path / "plan.json.tmp-elsewhere-1-00").write_text("{")
    claim_plan(tmp_path, make_plan(RESPONSES))
    assert read_plan(tmp_path) == make_plan(RESPONSES)


def test_a_plan_with_nan_is_not_written(tmp_path: Path) -> None:
    plan = dataclasses.replace(make_plan(RESPONSES), engine={"x": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        claim_plan(tmp_path, plan)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("section", "field", "value", "error", "text"),
    [
        ("dataset", "num_examples", 0, CacheFormatError, "num_examples is 0, expected 1 to"),
        ("dataset", "num_examples", 2**41, CacheFormatError, "num_examples is 2199023255552"),
        ("dataset", "num_examples", "9", CacheDamagedError, "'num_examples' is '9', expected int"),
        ("dataset", "num_examples", True, CacheDamagedError, "'num_examples' is True"),
        ("dataset", "fingerprint", None, CacheDamagedError, "'fingerprint' is None, expected str"),
        ("tokenizer", "vocabulary_size", 0, CacheFormatError, "vocabulary_size is 0, expected 1"),
        ("tokenizer", "vocabulary_size", 2**31, CacheFormatError, "vocabulary_size is 2147483648"),
        ("tokenizer", "vocabulary_size", 9.5, CacheDamagedError, "'vocabulary_size' is 9.5"),
        ("tokenizer", "vocabulary_fingerprint", 7, CacheDamagedError, "'vocabulary_fing.* is 7"),
        ("support", "kind", "best", CacheFormatError, "kind is 'best', this .* top_k, sampled"),
        ("support", "kind", None, CacheDamagedError, "'kind' is None, expected str"),
        ("support", "k", -1, CacheFormatError, "k is -1, expected 1 to"),
        ("support", "k", 10**400, CacheFormatError, "k is 1000"),
        ("support", "min_prob", 1.0, CacheFormatError, "min_prob is 1.0, expected 0 <= min_prob"),
        ("support", "min_prob", -0.1, CacheFormatError, "min_prob is -0.1"),
        ("support", "min_prob", False, CacheFormatError, "min_prob is False"),
        ("support", "min_prob", None, CacheFormatError, "min_prob is None"),
        ("support", "entropy", 1, CacheDamagedError, "'entropy' is 1, expected bool"),
        ("teacher", "vocabulary_rows", 999, CacheFormatError, "vocabulary_rows is 999, exp.* 1000"),
        ("teacher", "vocabulary_rows", "x", CacheDamagedError, "'vocabulary_rows' is 'x'"),
    ],
)
def test_absurd_plan_values_are_refused_in_memory_and_on_disk(
    cache: Path, section: str, field: str, value: object, error: type, text: str
) -> None:
    fields = copy.deepcopy(dataclasses.asdict(make_plan(RESPONSES)))
    fields[section][field] = value
    with pytest.raises(error, match=f"^plan: .*{text}"):
        Plan(**fields)
    edit(cache / "plan.json", section, field, value=value)
    with pytest.raises(error, match=f"plan.json: plan: .*{text}"):
        open_cache(cache)


@pytest.mark.parametrize("name", ["plan.json", "manifest.json"])
def test_a_document_the_system_refuses_to_show_is_not_called_damaged(
    cache: Path, name: str
) -> None:
    (cache / name).unlink()
    (cache / name).mkdir()
    with pytest.raises(CacheError, match=f"{name} cannot be read .*may be sound"):
        open_cache(cache)


@pytest.mark.parametrize(
    ("field", "value", "error", "text"),
    [
        ("num_samples", 9, CacheFormatError, "num_samples is 9 and k 8, expected the same"),
        ("num_samples", None, CacheDamagedError, "'num_samples' is None, expected int"),
        ("seed", "x", CacheDamagedError, "'seed' is 'x', expected int"),
        ("min_prob", 0.01, CacheFormatError, "min_prob is 0.01 of a sampled support, expected 0"),
    ],
)
def test_a_sampled_support_has_its_own_fields(
    tmp_path: Path, field: str, value: object, error: type, text: str
) -> None:
    plan = make_plan(RESPONSES, kind="sampled", k=8)
    claim_plan(tmp_path, plan)
    assert read_plan(tmp_path) == plan
    with pytest.raises(error, match=f"^plan: .*{text}"):
        dataclasses.replace(plan, support={**plan.support, field: value})
    edit(tmp_path / "plan.json", "support", field, value=value)
    with pytest.raises(error, match=f"plan.json: plan: .*{text}"):
        read_plan(tmp_path)


@pytest.mark.parametrize("value", ["float8", None, 3])
def test_a_codec_of_the_future_is_refused_by_name(cache: Path, value: object) -> None:
    edit(cache / "plan.json", "codec", value=value)
    text, error = (
        f"codec is {value!r}, this release reads float16-rounded, bfloat16-logits",
        (CacheFormatError),
    )
    if not isinstance(value, str):
        text, error = f"field 'codec' is {value!r}, expected str", CacheDamagedError
    with pytest.raises(error, match=f"plan.json: .*{text}"):
        open_cache(cache)


@pytest.mark.parametrize("value", [0, -3, 2**20 + 1])
def test_absurd_examples_per_shard(cache: Path, value: int) -> None:
    edit(cache / "plan.json", "examples_per_shard", value=value)
    with pytest.raises(CacheFormatError, match=f"plan.json: .*examples_per_shard is {value}"):
        open_cache(cache)


def test_plan_fields_of_other_types_and_unknown_fields(cache: Path) -> None:
    path, text = cache / "plan.json", (cache / "plan.json").read_text()
    edit(path, "teacher", value=[1])
    with pytest.raises(CacheDamagedError, match=r"plan.json: field 'teacher' is \[1\], exp.* dict"):
        open_cache(cache)
    path.write_text(text)
    edit(path, "examples_per_shard", value=True)
    with pytest.raises(CacheDamagedError, match="'examples_per_shard' is True, expected int"):
        open_cache(cache)
    path.write_text(text)
    edit(path, "shard_paths", value=["/etc/passwd"])
    with pytest.raises(CacheDamagedError, match=r"plan.json: unknown fields \['shard_paths'\]"):
        open_cache(cache)


@pytest.mark.parametrize("name", ["plan.json", "manifest.json"])
@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("format_version", 2, "is format 'smoothkd-cache' version 2; this release reads .* 1"),
        ("format_version", None, "is format .* version None"),
        ("format", "other", "is format 'other' version 1"),
    ],
)
def test_other_formats_and_future_versions(
    cache: Path, name: str, field: str, value: object, text: str
) -> None:
    edit(cache / name, field, value=value)
    with pytest.raises(CacheFormatError, match=f"{name} {text}"):
        open_cache(cache)


@pytest.mark.parametrize("name", ["plan.json", "manifest.json"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not valid JSON"),
        (b'{"format": "smoothkd-ca', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b'{"format_version": NaN}', "is not valid JSON: it holds NaN, which is no JSON number"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"1" * 5000, "is not valid JSON"),
        (b"[1]", "holds a list, expected a JSON object"),
        (b'{"a": 1, "a": 2}', "is not valid JSON: field 'a' is there twice"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "nests deeper than 32 levels"),
        (b" " * (2**24 + 1), "has 16777217 bytes, expected at most"),
    ],
)
def test_damaged_json(cache: Path, name: str, content: bytes, text: str) -> None:
    (cache / name).write_bytes(content)
    with pytest.raises(CacheDamagedError, match=f"{name} {text}"):
        open_cache(cache)


def test_no_cache_and_no_manifest(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(CacheNotFoundError, match="no logit cache at .*nowhere: plan.json is miss"):
        open_cache(tmp_path / "nowhere")
    (cache / "manifest.json").unlink()
    with pytest.raises(CacheUnfinishedError, match="cache is unfinished .manifest.json is missing"):
        open_cache(cache)


def test_documents_are_written_readably_and_taken_with_types(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": 1\n}\n'
    assert read_json(tmp_path / "x.json", 100) == {"a": 1}
    assert take({"a": 1}, "a", int, "x") == 1
    with pytest.raises(CacheDamagedError, match="^here: field 'b' is None, expected int"):
        take({"a": 1}, "b", int, "here")


@pytest.mark.parametrize(("num", "per_shard", "shards"), [(1, 4, 1), (8, 4, 2), (9, 4, 3)])
def test_shards_divide_the_examples(num: int, per_shard: int, shards: int) -> None:
    plan = make_plan(RESPONSES[:num], examples_per_shard=per_shard)
    assert plan.num_shards == shards
    held = [index for shard in range(shards) for index in plan.shard_examples(shard)]
    assert held == list(range(num))


def test_fingerprint_of_examples_depends_on_their_order() -> None:
    ids = [response.example_id for response in RESPONSES]
    assert fingerprint_examples(iter(ids)) == fingerprint_examples(ids)
    assert fingerprint_examples(ids[::-1]) != fingerprint_examples(ids)


# The manifest.


def test_manifest_counts_what_was_written(cache: Path) -> None:
    manifest = open_cache(cache).manifest
    assert manifest.num_examples == 9
    assert manifest.num_response_tokens == sum(r.num_response_tokens for r in RESPONSES)
    assert manifest.num_entries == sum(len(r.entry_token_ids) for r in RESPONSES)
    shards = sorted((cache / "shards").iterdir())
    assert manifest.num_bytes == sum(path.stat().st_size for path in shards)
    assert [shard.num_examples for shard in manifest.shards] == [4, 4, 1]
    document = json.loads((cache / "manifest.json").read_text())
    assert list(document) == ["format", "format_version", "plan_fingerprint", "totals", "shards"]
    assert read_manifest(cache, read_plan(cache)) == manifest


def test_manifest_of_another_cache(tmp_path: Path, cache: Path) -> None:
    other = make_cache(tmp_path / "other", random_responses(9, seed=1))
    (cache / "manifest.json").write_bytes((other / "manifest.json").read_bytes())
    with pytest.raises(CacheDamagedError, match="manifest.json fulfils plan .*one of the two"):
        open_cache(cache)


EDITS = [
    (("shards", 0, "num_examples"), 3, "shard 0: num_examples is 3, the plan gives it 4"),
    (("shards", 0, "num_examples"), True, "shard 0: field 'num_examples' is True, expected int"),
    (("shards", 0, "num_response_tokens"), 3, "num_response_tokens is 3 .* each of 4 examples"),
    (("shards", 0, "num_entries"), 10**40, "num_entries 1000.*, expected .* .1 to k"),
    (("shards", 0, "num_entries"), 0, "and num_entries 0, expected"),
    (("shards", 0, "num_entries"), "8", "shard 0: field 'num_entries' is '8', expected int"),
    (("shards", 1, "num_bytes"), None, "shard 1: field 'num_bytes' is None, expected int"),
    (("shards", 2, "sha256"), 5, "shard 2: field 'sha256' is 5, expected str"),
    (("shards", 0, "sequence_lengths"), [9], "'sequence_lengths' is .9., expected str"),
    (("shards", 0, "response_lengths"), "int64le:", "response_lengths starts with 'int64le:', exp"),
    (("shards", 0), 17, "shard 0 is 17, expected an object"),
    (("shards",), [], "lists 0 shards, the plan 3"),
    (("shards",), 3, "field 'shards' is 3, expected list"),
    (("plan_fingerprint",), 3, "'plan_fingerprint' is 3, expected str"),
    (("plan_fingerprint",), "0" * 64, "fulfils plan 000"),
    (("totals", "num_entries"), 3, "totals {.*'num_entries': 3.* are not the shards' sums"),
    (("totals",), None, "totals None are not the shards' sums"),
]


@pytest.mark.parametrize(("place", "value", "text"), EDITS)
def test_edited_manifests_are_refused(cache: Path, place: tuple, value: object, text: str) -> None:
    edit(cache / "manifest.json", *place, value=value)
    with pytest.raises(CacheDamagedError, match=f"manifest.json.*{text}"):
        open_cache(cache)


LENGTH_EDITS = [
    ("sequence_lengths", [9], "sequence_lengths holds 1 lengths, expected exactly 4"),
    ("response_lengths", [2, 2, 2, 0], "response_lengths: length 3 is 0, expected 1 to"),
    ("sequence_lengths", [1, 1, 1, 1], r"a response of \d+ tokens in a sequence of 1"),
    (
        "response_lengths",
        [1, 1, 1, 1],
        r"num_response_tokens is \d+, its response_lengths sum to 4",
    ),
]


@pytest.mark.parametrize(("name", "lengths", "text"), LENGTH_EDITS)
def test_edited_lengths_are_refused_where_they_are_used(
    cache: Path, name: str, lengths: list[int], text: str
) -> None:
    edit(cache / "manifest.json", "shards", 0, name, value=encode_lengths(np.int32(lengths)))
    uses = (
        lambda cache: cache[3],
        lambda cache: cache.sequence_lengths,
        lambda cache: cache.response_lengths,
        lambda cache: cache.order(0),
        lambda cache: cache.verify(),
    )
    for use in uses:
        with pytest.raises(CacheDamagedError, match=f"manifest.json, shard 0.*{text}"):
            use(open_cache(cache))


def test_a_consistently_edited_entry_count_is_refused_by_its_totals(cache: Path) -> None:
    found = open_cache(cache).manifest.shards[0].num_entries
    edit(cache / "manifest.json", "shards", 0, "num_entries", value=found - 1)
    with pytest.raises(CacheDamagedError, match="are not the shards' sums"):
        open_cache(cache)


def test_fingerprint_of_a_cache_covers_plan_and_shards(tmp_path: Path, cache: Path) -> None:
    same = make_cache(tmp_path / "same", RESPONSES)
    other_plan = make_cache(tmp_path / "plan", RESPONSES, max_sequence_tokens=255)
    other_rows = make_cache(tmp_path / "rows", random_responses(9, seed=5))
    found = [open_cache(path).fingerprint for path in (cache, same, other_plan, other_rows)]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_missing_shards_of_a_plan_without_shards(tmp_path: Path) -> None:
    plan = make_plan(RESPONSES)
    claim_plan(tmp_path, plan)
    assert missing_shards(tmp_path, plan) == [0, 1, 2]
