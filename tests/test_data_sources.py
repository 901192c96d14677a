"""The dataset argument: files, folders and hub names with config and split, and the demo."""

import json
from pathlib import Path

import datasets
import pytest

from pipeline.data.config import DataSettings
from pipeline.data.records import Record
from pipeline.data.sources import _named_errors, load_records, load_rows
from pipeline.errors import DataError

CARD = """---
configs:
- config_name: long
  data_files:
  - split: train
    path: long/train.jsonl
  - split: test
    path: long/test.jsonl
- config_name: short
  data_files: short/train.jsonl
---
"""


def write_rows(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that behaves as a hub dataset with two configs."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub"
    write_rows(folder / "long" / "train.jsonl", "a", "b")
    write_rows(folder / "long" / "test.jsonl", "c")
    write_rows(folder / "short" / "train.jsonl", "d")
    (folder / "README.md").write_text(CARD)
    return folder


def texts(data: str, max_examples: int | None = None) -> list[str]:
    rows = load_rows(DataSettings(data=data, max_examples=max_examples))
    return [row["text"] for row in rows]


def test_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", "a", "b", "c")
    assert texts(str(path)) == ["a", "b", "c"]
    assert texts(str(path), max_examples=2) == ["a", "b"]


def test_literal_path_comes_first(tmp_path: Path) -> None:
    assert texts(str(write_rows(tmp_path / "rows:x@y.jsonl", "a"))) == ["a"]


def test_records_keep_rows_with_absent_fields(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"instruction": "I", "response": "R"}\n'
        '{"instruction": "I", "context": "C", "response": "R"}\n'
    )
    assert load_records(DataSettings(data=str(path))) == [
        Record("I", None, "R"),
        Record("I", "C", "R"),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ['{"prompt": "I", "completion": "R"}', '{"prompt": "I", "completion": 3}'],
            r"rows\.jsonl, row 2: field 'completion' is 3",
        ),
        (
            ['{"prompt": "I", "completion": "R"}', '{"text": "T"}'],
            r"rows\.jsonl, row 2: the fields are 'text' \(layout text\), without 'prompt', 'comp",
        ),
    ],
)
def test_row_errors_name_the_file(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        load_records(DataSettings(data=str(path)))


def test_an_empty_references_column_of_a_csv_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,references\nI,R,\nI,R,R2\n")
    first, second = load_records(DataSettings(data=str(path)))
    assert (first.references, second.references) == (("R",), ("R2",))


def test_folder_with_config_and_split(hub: Path) -> None:
    assert texts(f"{hub}:long") == ["a", "b"]
    assert texts(f"{hub}:long", max_examples=1) == ["a"]
    assert texts(f"{hub}:long@test") == ["c"]
    assert texts(f"{hub}:short@train") == ["d"]


def test_folder_with_one_config(tmp_path: Path, hub: Path) -> None:
    folder = write_rows(tmp_path / "plain" / "train.jsonl", "a").parent
    write_rows(folder / "test.jsonl", "b")
    assert texts(str(folder)) == ["a"]
    assert texts(f"{folder}@test") == ["b"]


def test_progress_bars_are_put_back(hub: Path) -> None:
    before = datasets.are_progress_bars_disabled()
    texts(f"{hub}:long")
    assert datasets.are_progress_bars_disabled() == before


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("", r"no config 'default'.*long, short"),
        (":medium", r"no config 'medium'.*long, short"),
        (":long@dev", r"no split 'dev'.*train, test"),
    ],
)
def test_folder_wrong_config_or_split(hub: Path, suffix: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(f"{hub}{suffix}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("missing.jsonl", r"'missing\.jsonl' is not there"),
        ("some/folder/missing.csv", r"'some/folder/missing\.csv' is not there"),
        ("./missing", r"'\./missing' is not there"),
        ("a/b/c", r"'a/b/c' is not there: expected a file \(\.jsonl, .* demo:docstrings"),
        ("demo:poems", r"'demo:poems': no demo of that name; there is demo:docstrings"),
        ("demo:docstrings@dev", r"no split 'dev'; the splits are train, evaluation"),
    ],
)
def test_nothing_there(data: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(data)


def test_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: EmptyDatasetError"):
        texts(str(tmp_path))


def test_folder_of_files_that_do_not_fit_together(tmp_path: Path, hub: Path) -> None:
    folder = write_rows(tmp_path / "mixed" / "train-a.jsonl", "a").parent
    (folder / "train-b.jsonl").write_text('{"prompt": "I", "completion": "R"}\n')
    with pytest.raises(
        DataError, match=r"not the same columns: .* 2 new columns .*completion"
    ) as e:
        texts(str(folder))
    assert "of that name" not in str(e.value)


def test_reasons_of_the_library_are_bounded() -> None:
    with pytest.raises(DataError) as caught, _named_errors("org/name"):
        raise ValueError("\n\n".join(f"line {number}" for number in range(20)))
    lines = str(caught.value).splitlines()
    assert lines[0] == "dataset 'org/name' cannot be read: ValueError: line 0"
    assert lines[11:] == ["  line 11", "  ...; and no file or folder of that name is here"]


@pytest.mark.parametrize("name", ["no-such-org/no-such-name", "nothere"])
def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = rf"dataset '{name}' cannot be read: .*; and no file or folder of that name is here"
    with pytest.raises(DataError, match=message):
        texts(name)


def test_file_has_no_split(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", "a")
    with pytest.raises(DataError, match=r"a single file has no config or split"):
        texts(f"{path}@train")


@pytest.mark.parametrize(("name", "content"), [("rows.jsonl", ""), ("rows.json", "[]")])
def test_empty(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=rf"{name} has no rows"):
        texts(str(path))


def test_demo() -> None:
    train = load_records(DataSettings(data="demo:docstrings", max_examples=5))
    evaluation = load_records(DataSettings(data="demo:docstrings@evaluation", max_examples=5))
    assert len(train) == len(evaluation) == 5
    assert not set(train) & set(evaluation)
    assert train == load_records(DataSettings(data="demo:docstrings@train", max_examples=5))
    assert all(record.context and record.instruction for record in train)
