"""Read one data file into rows, every format by its own plain reader.

Nothing is guessed: JSON and CSV text stays text (a column of dates or digits too), nothing is
copied to a cache folder, and a broken file is refused with its line.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator
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
        DataError: another suffix, a broken file, or a row that is no object.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'!r} files; "
            f"supported are {', '.join(READERS)}"
        )
    try:
        return list(islice(reader(path), max_rows))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield _checked(json.loads(line), f"{path}, line {number}")
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} is not JSON: {error}") from error


def _read_json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not JSON: {error}; call it .jsonl if each line is an object of its own"
        ) from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a JSON {type(rows).__name__}: expected a list of objects")
    for number, row in enumerate(rows, 1):
        yield _checked(row, f"{path}, row {number}")


def _checked(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{place} holds a JSON {type(row).__name__}: expected an object")
    return row


def _read_csv(path: Path) -> Iterator[Row]:
    limit = csv.field_size_limit(sys.maxsize)  # the default refuses documents over 131,072 bytes
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row:
                    raise DataError(
                        f"{path}, line {reader.line_num}: more cells than the "
                        f"{len(reader.fieldnames or ())} columns of the header"
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
