"""JSON files of other stages, read with named errors: damage and other versions have a path."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

Document = dict[str, Any]


def read_document(path: Path, fields: dict[str, type], maker: str) -> Document:
    """Return the JSON object at `path`, with these fields of these types.

    Args:
        path: the file.
        fields: name and type of what it must have.
        maker: the command that writes such files, for the message.

    Raises:
        DataError: the file is missing, unreadable, not a JSON object, or lacks a field.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: expected what {maker} writes") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged or no file of {maker} ({error}); copy it again, or run {maker} "
            "again"
        ) from error
    check_fields(value, fields, str(path), maker)
    return dict(value)


def check_fields(value: Any, fields: dict[str, type], where: str, maker: str) -> None:
    """Check that a JSON object has these fields.

    Raises:
        DataError: it is no object, or a field is missing or of another type.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where} holds a {type(value).__name__}, expected a JSON object")
    for name, kind in fields.items():
        # 0 and 1 are numbers too, true and false are not.
        kinds = (int, float) if kind is float else kind
        if not isinstance(value.get(name), kinds) or _is_foreign_bool(value[name], kind):
            raise DataError(
                f"{where}: field {name!r} is {_short(value.get(name))}, expected "
                f"{_kind_name(kind)}; it is damaged or was written by another version: run "
                f"{maker} again"
            )


def _is_foreign_bool(value: Any, kind: type) -> bool:
    return isinstance(value, bool) and kind is not bool


def read_lines(path: Path, fields: dict[str, type], maker: str) -> Iterator[Document]:
    """Yield the JSON objects of a .jsonl file, each with these fields.

    Raises:
        DataError: naming file and line.
    """
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise DataError(
                        f"{path}, line {number} is damaged ({error}); run {maker} again"
                    ) from error
                check_fields(value, fields, f"{path}, line {number}", maker)
                yield value
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged ({error}); run {maker} again") from error


def _refuse(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no JSON number")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind_name(kind: type) -> str:
    return {dict: "an object", list: "a list", str: "a text", float: "a number"}.get(
        kind, kind.__name__
    )
