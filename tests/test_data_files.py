"""Each file format gives the same rows, and a broken file is refused with its place."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.files import read_file
from pipeline.errors import DataError

ROWS = [
    {"instruction": 'Say, "hi"\nnow.', "response": "2024-01-01"},
    {"instruction": "Count: ü", "response": "42"},
]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".JSONL"])
def test_formats_agree_and_text_stays_text(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix.lower()}", ROWS).rename(tmp_path / f"rows{suffix}")
    assert read_file(path, None) == ROWS
    assert read_file(path, 1) == ROWS[:1]


def test_missing_keys_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff{"a": "x"}\n\n{"a": null, "b": "y"}\n', encoding="utf-8")
    assert read_file(path, None) == [{"a": "x"}, {"a": None, "b": "y"}]


def test_csv_keeps_words_that_look_like_nulls_and_long_cells(tmp_path: Path) -> None:
    rows = [{"text": "None", "more": ""}, {"text": "NA", "more": "x" * 200_000}]
    limit = csv.field_size_limit()
    assert read_file(write(tmp_path / "rows.csv", rows), None) == rows
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", b"x", r"cannot read '\.txt' files.*\.jsonl, \.json, \.csv, \.parquet"),
        ("rows", b"x", r"cannot read 'a file without suffix'"),
        ("rows.jsonl", b'{"a": 1}\n{"a": \n', r"rows\.jsonl, line 2 is not JSON"),
        ("rows.jsonl", b'{"a": 1}\n\n[1]\n', r"rows\.jsonl, line 3 holds a JSON list"),
        ("rows.jsonl", b'{"a": "\xff"}\n', r"rows\.jsonl is not UTF-8"),
        ("rows.json", b'{"a": 1}\n{"a": 2}\n', r"rows\.json is not JSON.*call it \.jsonl"),
        ("rows.json", b'{"a": 1}', r"rows\.json holds a JSON dict"),
        ("rows.json", b'[{"a": 1}, 3]', r"rows\.json, row 2 holds a JSON int"),
        (
            "rows.jsonl",
            b'{"a": 1}\n{"a": 1, "a": 2}',
            r"line 2 cannot be read: .* name 'a' 2 times",
        ),
        ("rows.json", b'[{"m": [{"a": 1, "a": 2}]}]', r"rows\.json cannot be read: an object has"),
        ("rows.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r"line 1 cannot be read: .*5000 digits"),
        ("rows.jsonl", b"[" * 100_000, r"line 1 cannot be read: .*recursion"),
        ("rows.json", b"\xff", r"rows\.json is not UTF-8"),
        ("rows.csv", b"a,b,b\nx,y,z\n", r"rows\.csv: the header has the field name 'b' 2 times"),
        ("rows.csv", b"a,b\nx,y,z\n", r"line 2: more cells than the 2 columns"),
        ("rows.csv", b"a,b\nx,\n\nx\n", r"line 4: fewer cells than the 2 columns"),
        ("rows.csv", b'a,b\nx,"y"z\n', r"after line 1, is not CSV"),
        ("rows.parquet", b"PAR1 but not really", r"rows\.parquet is not a sound Parquet"),
    ],
)
def test_broken(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_file(path, None)


def test_parquet_with_a_repeated_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table([["x"], ["y"]], names=["a", "a"]), path)
    with pytest.raises(DataError, match=r"rows\.parquet has the field name 'a' 2 times; rename"):
        read_file(path, None)


def test_rows_after_the_last_wanted_one_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nbroken\n')
    assert read_file(path, 1) == [{"a": 1}]


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "folder.jsonl"
    path.mkdir()
    with pytest.raises(DataError, match=r"folder\.jsonl cannot be read"):
        read_file(path, None)
