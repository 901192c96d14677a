"""Find the dataset an argument names and return its rows, then its records.

A file, a folder or hub name with `:config` and `@split`, or a built-in `demo:docstrings`.
Wrong names, configs, splits and fields are refused before anything is downloaded or tokenised.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from pipeline.data.config import DataSettings
from pipeline.data.files import READERS, Row, read_file
from pipeline.data.layouts import find_layout, to_record
from pipeline.data.records import Record
from pipeline.errors import DataError

DEMOS = ("demo:docstrings",)
DEFAULT_SPLIT = "train"
ARGUMENT = re.compile(r"(?P<name>.+?)(:(?P<config>[^:@/]+))?(@(?P<split>[^@/]+))?")
MAX_REASON_LINES = 12
HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def load_records(settings: DataSettings) -> list[Record]:
    """Return the dataset's records, in its own order.

    Raises:
        DataError: nothing is found, a file is broken, there are no rows, the fields have no
            known layout, a row has another layout, or a value has the wrong type; the message
            names file, row and field.
    """
    rows = load_rows(settings)
    layout = find_layout(dict.fromkeys(field for row in rows for field in row), settings)
    with name_data(settings.data):
        return [to_record(row, layout, number) for number, row in enumerate(rows, 1)]


@contextmanager
def name_data(data: str) -> Iterator[None]:
    """Put the dataset's name before the message of a DataError that begins with a row."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{data}, {error}") from error


def load_rows(settings: DataSettings) -> list[Row]:
    """Return the first `max_examples` rows with every field they have, in the dataset's order.

    Raises:
        DataError: nothing is found, a file is broken, or there are no rows.
    """
    rows = _read(settings.data, settings.max_examples)
    if not rows:
        raise DataError(f"{settings.data} has no rows: expected at least one")
    return rows


def _read(data: str, max_rows: int | None) -> list[Row]:
    path = Path(data).expanduser()
    if path.is_file():
        return read_file(path, max_rows)
    if path.is_dir():
        return _read_hub(str(path), None, DEFAULT_SPLIT, max_rows)
    parts = ARGUMENT.fullmatch(data)
    name, config, split = parts.group("name", "config", "split") if parts else (data, None, None)
    if name == "demo":
        return _read_demo(data, f"{name}:{config}", split or DEFAULT_SPLIT, max_rows)
    base = Path(name).expanduser()
    if base.is_file():
        raise DataError(f"{data!r}: a single file has no config or split; write {name!r}")
    if not base.is_dir() and (base.suffix.lower() in READERS or not HUB_NAME.fullmatch(name)):
        raise DataError(
            f"{data!r} is not there: expected a file ({', '.join(READERS)}), a folder, a hub "
            f"name (org/name:config@split) or {', '.join(DEMOS)}"
        )
    return _read_hub(str(base), config, split or DEFAULT_SPLIT, max_rows)


def _read_demo(data: str, demo: str, split: str, max_rows: int | None) -> list[Row]:
    from pipeline.data.docstrings import SPLITS, collect_docstrings

    if demo not in DEMOS:
        raise DataError(f"{data!r}: no demo of that name; there is {', '.join(DEMOS)}")
    if split not in SPLITS:
        raise DataError(f"{data!r}: no split {split!r}; the splits are {', '.join(SPLITS)}")
    return list(islice(collect_docstrings().rows[split], max_rows))


def _read_hub(name: str, config: str | None, split: str, max_rows: int | None) -> list[Row]:
    """Read a hub dataset, or a folder of data files, which behaves as one."""
    import datasets

    with _no_progress_bars(), _named_errors(name):
        configs = datasets.get_dataset_config_names(name)
        if config is None:
            config = configs[0] if len(configs) == 1 else "default"
        if config not in configs:
            raise DataError(
                f"{name}: no config {config!r}; choose one as {name}:CONFIG of {', '.join(configs)}"
            )
        splits = datasets.get_dataset_split_names(name, config)
        if split not in splits:
            raise DataError(
                f"{name}: no split {split!r}; choose one as {name}@SPLIT of {', '.join(splits)}"
            )
        return list(islice(datasets.load_dataset(name, config, split=split), max_rows))


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # the library and the hub client raise many unrelated types
        nothing_here = "" if Path(name).is_dir() else "; and no file or folder of that name is here"
        raise DataError(
            f"dataset {name!r} cannot be read: {type(error).__name__}: "
            f"{_reason(error)}{nothing_here}"
        ) from error


def _reason(error: Exception) -> str:
    """Return what the library found, in at most MAX_REASON_LINES lines."""
    from datasets.table import CastError

    cause = error.__cause__ or error
    if isinstance(cause, CastError):  # its own text lists all columns of both sides
        return f"the files have not the same columns: {cause.details()}"
    lines = [line for line in str(cause).splitlines() if line.strip()]
    cut = [*lines[:MAX_REASON_LINES], "..."] if len(lines) > MAX_REASON_LINES else lines
    return "\n  ".join(cut)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    import datasets

    if not datasets.are_progress_bars_disabled():
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            datasets.enable_progress_bars()
    else:
        yield
