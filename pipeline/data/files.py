"""Read one data file into rows, every format by its own plain reader.

Nothing is guessed: JSON and CSV text stays text (a column of dates or digits too), nothing is
copied to a cache folder, and a broken file or a repeated field name is refused with its place.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

Row = dict[str, Any]


def read_file(path: Path, max_rows: int | None) -> list[Row]:
    """Return the first `max_rows` rows of a data file, all of them for None.

    Args:
        path: an existing file whose suffix is one of READERS.
        max_rows: rows after these are not read, nor checked (a .json file is read whole).

    Raises:
        DataError: another suffix, a broken file, a field name that occurs twice, or a row that is
            no object or has not the header's number of cells.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'!r} files; "
            f"supported are {', '.join(READERS)}"
        )
    with _errors_named(path):
        return list(islice(reader(path), max_rows))


def read_lines(path: Path, max_rows: int | None) -> list[tuple[str, Row]]:
    """Return the first `max_rows` rows of a JSON Lines file, each with its place for errors.

    Raises:
        DataError: the file cannot be read, or a line is no object or repeats a field name.
    """
    with _errors_named(path):
        return list(islice(_numbered_lines(path), max_rows))


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _numbered_lines(path: Path) -> Iterator[tuple[str, Row]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            yield place, _checked(_parse(line, place), place)


def _read_jsonl(path: Path) -> Iterator[Row]:
    return (row for _, row in _numbered_lines(path))


def _read_json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    rows = _parse(text, str(path), "; call it .jsonl if each line is an object of its own")
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a JSON {type(rows).__name__}: expected a list of objects")
    for number, row in enumerate(rows, 1):
        yield _checked(row, f"{path}, row {number}")


def _parse(text: str, place: str, advice: str = "") -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error}{advice}") from error
    except (ValueError, RecursionError) as error:  # a huge number, deep nesting, a repeated key
        raise DataError(f"{place} cannot be read: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """Return a JSON object; the decoder by itself keeps the last of repeated keys."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"an object has {_repeated([key for key, _ in pairs])}; keep one of them")
    return row


def _refuse_repeats(columns: Sequence[str], place: str) -> None:
    if len(set(columns)) < len(columns):
        raise DataError(f"{place} has {_repeated(columns)}; rename or remove one of the columns")


def _repeated(names: Sequence[str]) -> str:
    name = next(name for name in names if names.count(name) > 1)
    return f"the field name {name!r} {names.count(name)} times"


def _checked(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{place} holds a JSON {type(row).__name__}: expected an object")
    return row


def _read_csv(path: Path) -> Iterator[Row]:
    limit = csv.field_size_limit(sys.maxsize)  # the default refuses documents over 131,072 bytes
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or ()
            _refuse_repeats(columns, f"{path}: the header")
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}: {'more' if None in row else 'fewer'} "
                        f"cells than the {len(columns)} columns of the header"
                    )
                yield row
    except csv.Error as error:
        raise DataError(f"{path}, after line {reader.line_num}, is not CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _refuse_repeats(file.schema_arrow.names, str(path))
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a sound Parquet file: {error}") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
