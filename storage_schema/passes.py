"""What the teacher passes over a cache cost: a small document for each one that ended.

They lie beside the manifest and are no part of what the cache is: no fingerprint covers them,
readers of the cache ignore them, and a cache without them is whole.
"""

import secrets
import time
from typing import Any

from storage_schema.documents import read_json, write_json
from storage_schema.errors import CacheDamagedError
from storage_schema.inside import check_inside
from storage_schema.layout import MAX_PASS_BYTES, PASS_DIRECTORY
from storage_schema.location import Location, locate
from storage_schema.publish import writing

# What a record must hold to be added up with others.
_NUMBERS = ("engine_start_seconds", "engine_seconds", "prompt_tokens", "response_tokens")


def record_pass(cache: str | Location, record: dict[str, Any]) -> None:
    """Add the record of a pass that ended, under a name no other process takes.

    Args:
        cache: where it lies.
        record: JSON-ready; engine_start_seconds and engine_seconds (of all engines together),
            prompt_tokens and response_tokens that it scored, and anything else.

    Raises:
        CacheWriteError: the disk is full or refuses.
    """
    directory = locate(cache) / PASS_DIRECTORY
    with writing(directory):
        directory.mkdir(exist_ok=True)
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    write_json(directory / f"pass-{moment}-{secrets.token_hex(4)}.json", record)


def read_passes(cache: str | Location) -> list[dict[str, Any]]:
    """Return the records of the passes, oldest first; [] where none was kept.

    Raises:
        CacheDamagedError: a record is no JSON object, or lacks a number; the file is named.
        CacheError: the system refuses to read one.
    """
    cache = locate(cache)
    directory = cache / PASS_DIRECTORY
    check_inside(cache, directory)
    if not directory.is_dir():
        return []
    records = []
    found: list[Location] = list(directory.iterdir())
    for path in sorted(found, key=lambda path: path.name):
        if not path.name.endswith(".json"):
            continue  # half written by a process that was killed
        record = read_json(path, MAX_PASS_BYTES)
        for name in _NUMBERS:
            value = record.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise CacheDamagedError(
                    f"{path}: field {name!r} is {value!r}, expected a number of at least 0; delete "
                    "the file, the cache needs none of its kind"
                )
        records.append(record)
    return records
