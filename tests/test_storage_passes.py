"""Records of what a cache took: added up, never part of the cache, refused when damaged."""

import json
from pathlib import Path

import pytest
from cache_factory import make_cache, random_responses

from storage_schema import open_cache
from storage_schema.audit import CacheAudit
from storage_schema.errors import CacheDamagedError
from storage_schema.passes import read_passes, record_pass

PASS = {"engine_start_seconds": 1, "engine_seconds": 2.5, "prompt_tokens": 9, "response_tokens": 3}


def test_records_lie_beside_the_cache_and_change_nothing_of_it(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", random_responses(4))
    fingerprint = open_cache(cache).fingerprint
    assert read_passes(cache) == []
    record_pass(cache, PASS)
    record_pass(str(cache), {**PASS, "shards": 2})
    assert len(read_passes(cache)) == 2
    assert {record.get("shards") for record in read_passes(cache)} == {None, 2}
    assert open_cache(cache).fingerprint == fingerprint
    assert CacheAudit(cache).strangers == []
    (cache / "passes" / "pass-x.json.tmp-host-1-ab").write_text("half")
    assert len(read_passes(cache)) == 2


@pytest.mark.parametrize("value", [None, "1", True, -1])
def test_a_damaged_record_is_named(tmp_path: Path, value: object) -> None:
    cache = make_cache(tmp_path / "cache", random_responses(4))
    record_pass(cache, {**PASS, "engine_seconds": value})
    with pytest.raises(CacheDamagedError, match=rf"json: field 'engine_seconds' is {value!r}"):
        read_passes(cache)


def test_a_link_out_of_the_cache_is_not_followed(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", random_responses(4))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "pass-1.json").write_text(json.dumps(PASS))
    (cache / "passes").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheDamagedError, match="passes is a symbolic link to"):
        read_passes(cache)
