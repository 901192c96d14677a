"""Reads human-labelled pairs: a document, a summary of it, and whether people found it faithful.

A dataset without labels serves for what needs none: its responses are taken to be faithful.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.config import DataSettings
from pipeline.data.files import Row, read_lines
from pipeline.data.sources import load_records, load_rows
from pipeline.errors import DataError
from pipeline.evaluation.extractiveness import words

LABEL_FIELDS = ("label", "faithful")


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """A summary of a document, and whether it is faithful to it."""

    document: str
    summary: str
    faithful: bool


def read_pairs(settings: DataSettings) -> tuple[list[LabelledPair], bool]:
    """Return the pairs of `settings.data`, and whether they are labelled by people.

    They are where the file's first line has a label. Otherwise it is read as any dataset is, and
    each row that has a source is a pair of source and response.

    Raises:
        DataError: there is no such dataset, no row has a source, or a labelled file is wrong.
    """
    path = Path(settings.data).expanduser()
    if _is_labelled(path):
        return read_labelled_pairs(path, settings.max_examples), True
    fields = {field for row in load_rows(settings) for field in LABEL_FIELDS if field in row}
    if fields:
        raise DataError(
            f"--validate-judge {settings.data}: its rows have {' and '.join(sorted(fields))}; "
            "pairs with labels are read from JSON Lines, in a file whose every line has document, "
            "summary and label"
        )
    pairs = [
        LabelledPair(record.context, record.response, faithful=True)
        for record in load_records(settings)
        if record.context and words(record.context)
    ]
    if not pairs:
        raise DataError(
            f"--validate-judge {settings.data}: no row has a source to judge against, nor a label"
        )
    return pairs, False


def _is_labelled(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = next((line for line in file if line.strip()), "")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # another format, or damage that its reader names
        return False
    return isinstance(row, dict) and any(field in row for field in LABEL_FIELDS)


def read_labelled_pairs(path: Path, max_pairs: int | None = None) -> list[LabelledPair]:
    """Return the first pairs of a JSON Lines file with the fields document, summary and label.

    The label is 1 or true for faithful, 0 or false for not; `faithful` is another name for it.

    Raises:
        DataError: no such file, a line that is not of this form (named), or labels of one class.
    """
    if not path.is_file():
        raise DataError(f"--validate-judge {path}: no such file")
    pairs = [_read(row, place) for place, row in read_lines(path, max_pairs)]
    faithful = sum(pair.faithful for pair in pairs)
    if faithful in (0, len(pairs)):
        raise DataError(
            f"{path}: {faithful} of {len(pairs)} pairs are labelled faithful; a judge is measured "
            "on pairs of both classes"
        )
    return pairs


def _read(row: Row, where: str) -> LabelledPair:
    texts = {}
    for field in ("document", "summary"):
        text = row.get(field)
        if not isinstance(text, str):
            raise DataError(f"{where}: {field} is {text!r}, expected a text")
        texts[field] = text
    if not words(texts["document"]):
        raise DataError(f"{where}: document {texts['document']!r} has no words to judge against")
    return LabelledPair(**texts, faithful=_label(row, where))


def _label(row: Row, where: str) -> bool:
    fields = [field for field in LABEL_FIELDS if field in row]
    if not fields:
        raise DataError(f"{where} has no {' or '.join(LABEL_FIELDS)}; it has {', '.join(row)}")
    if len(fields) > 1:
        raise DataError(f"{where} has {' and '.join(fields)}, two names of one thing; keep one")
    field = fields[0]
    value = row[field]
    number = isinstance(value, bool | int | float) and not math.isnan(value)
    if not number or value not in (0, 1):
        raise DataError(f"{where}: {field} is {value!r}, expected 1 (faithful) or 0 (not)")
    return bool(value)
