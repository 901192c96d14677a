"""The JSON documents of a cache: read, written and compared, with named errors."""

import json
from pathlib import Path
from typing import Any, TypeVar

from storage_schema.errors import CacheDamagedError
from storage_schema.publish import publish

T = TypeVar("T")


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all; NaN is refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    publish(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        CacheDamagedError: the file is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CacheDamagedError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CacheDamagedError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def take(document: dict[str, Any], name: str, kind: type[T], where: str) -> T:
    """Return field `name` of a JSON object, checked to be of type `kind`.

    Raises:
        CacheDamagedError: the field is missing or of another type.
    """
    value = document.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CacheDamagedError(f"{where}: field {name!r} is {value!r}, expected {kind.__name__}")
    return value


def differences(there: Any, asked: Any, name: str = "") -> list[str]:
    """Return one line for each leaf in which two JSON values differ: "field: there X, asked Y"."""
    if isinstance(there, dict) and isinstance(asked, dict):
        lines = []
        for key in sorted({*there, *asked}):
            path = f"{name}.{key}" if name else key
            lines += differences(there.get(key), asked.get(key), path)
        return lines
    return [] if there == asked else [f"{name}: there {there!r}, asked {asked!r}"]
