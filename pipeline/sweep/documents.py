"""The JSON documents of a sweep, validated when they are read: damage is named, never passed on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import OutputExistsError
from storage_schema.documents import read_json
from storage_schema.errors import CacheError

# A scores file of hundreds of models stays far below.
MAX_BYTES = 2**30


def read_document(
    path: Path, what: str, fields: Mapping[str, type | tuple[type, ...]]
) -> dict[str, Any]:
    """Return the JSON object in `path`, with at least these fields of these types.

    Raises:
        OutputExistsError: it is no such document; names the file, the field and its value.
    """
    try:
        document = read_json(path, MAX_BYTES)
    except CacheError as error:
        raise OutputExistsError(f"{error}; it should be {what}: {_ADVICE}") from error
    for name, kind in fields.items():
        value = document.get(name)
        if not isinstance(value, kind):
            expected = " or ".join(
                one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,))
            )
            raise OutputExistsError(
                f"{path} is not {what}: field {name!r} is {value!r}, expected {expected}; {_ADVICE}"
            )
    return document


_ADVICE = "restore the file, or delete it and run the same command again"
