"""The built-in demo: large enough, the same every time, with splits that share nothing."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.data import docstrings
from pipeline.data.docstrings import collect_docstrings


def words(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def test_size_and_counts() -> None:
    found = collect_docstrings()
    assert len(found.rows["train"]) >= 1500
    assert len(found.rows["evaluation"]) >= 200
    left_out = (
        "summary_is_no_sentence",
        "summary_too_short_or_long",
        "too_little_prose",
        "duplicate",
        "evaluation_like_train",
    )
    kept = found.counts["train"] + found.counts["evaluation"]
    assert kept == sum(len(rows) for rows in found.rows.values())
    assert found.counts["docstrings"] == kept + sum(found.counts[name] for name in left_out)


def test_rows_are_text_of_bounded_length() -> None:
    for row in [row for rows in collect_docstrings().rows.values() for row in rows]:
        assert row.keys() == {"document", "summary"}
        assert 4 <= len(row["summary"].split()) <= 30
        assert 35 <= len(row["document"].split()) <= 160
        assert row["summary"].endswith(".")
        assert ">>>" not in row["document"]


def test_splits_share_nothing() -> None:
    rows = collect_docstrings().rows
    for field in ("summary", "document"):
        seen = Counter(words(row[field]) for split in rows.values() for row in split)
        assert seen.most_common(1)[0][1] == 1


def test_order_is_unrelated_to_the_package() -> None:
    """A prefix is a fair sample: both halves speak of tensors about as often."""
    rows = collect_docstrings().rows["train"]
    share = [
        sum("tensor" in row["document"].lower() for row in half) / len(half)
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :])
    ]
    assert share[0] == pytest.approx(share[1], abs=0.06)
    assert share[0] > 0.05


@pytest.mark.slow
def test_same_rows_in_another_process_without_importing_the_packages() -> None:
    code = (
        "import hashlib, json, sys\n"
        "from pipeline.data.docstrings import collect_docstrings\n"
        "print(hashlib.sha256(json.dumps(collect_docstrings().rows).encode()).hexdigest())\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'datasets'} & set(sys.modules)))\n"
    )
    run = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent.parent,
        ).stdout
        for _ in range(2)
    ]
    assert run[0] == run[1]
    assert run[0].splitlines()[1] == "[]"


SOURCE = '''
class Reader:
    """Reads rows from a file in order.

    Every row is read once and handed on as it was written, so that nothing a person put in the
    file is lost on the way. A reader holds one open file and closes it at the end of its life.

    | a | table |

    Parameters
    ----------
    path : str
        Where the rows are, which is a sentence that must not be part of the document at all.
    """

    def close(self):  # tidy
        """Too short."""

    def rows(self):
        """Return all the rows

        without a full stop.
        """


def copy():
    """Reads rows from a file, in order.

    This one has other words in its document, and as many of them as it takes to be long enough
    for a row, but its summary says what another one says already. So it is no row of its own.
    """


def short():
    """Return the number of rows left.

    Few words.
    """
'''


def test_rules_on_a_known_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs_demo" / "tests").mkdir(parents=True)
    (tmp_path / "docs_demo" / "__init__.py").write_text(SOURCE)
    (tmp_path / "docs_demo" / "tests" / "more.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(docstrings, "PACKAGES", ("docs_demo", "not_installed_anywhere"))
    found = collect_docstrings.__wrapped__()
    assert found.counts == {
        "files": 1,
        "packages_not_installed": 1,
        "docstrings": 5,
        "summary_too_short_or_long": 1,
        "summary_is_no_sentence": 1,
        "too_little_prose": 1,
        "duplicate": 1,
        "train": len(found.rows["train"]),
        "evaluation": len(found.rows["evaluation"]),
    }
    (row,) = found.rows["train"] + found.rows["evaluation"]
    assert row["summary"].startswith("Reads rows from a file")


def test_prose_stops_at_a_section_and_leaves_tables_out() -> None:
    paragraph = "A plain sentence with ordinary words."
    text = f"{paragraph}\n\n| a | b |\n\nAnother\nsentence.\n\nArgs:\n    x: no.\n\n{paragraph}"
    assert docstrings._prose(text) == f"{paragraph}\n\nAnother sentence."
    assert docstrings._prose(f"{paragraph}\n\nNotes\n-----\n{paragraph}") == paragraph


def test_near_copies_leave_the_evaluation_split() -> None:
    def row(text: str) -> dict[str, str]:
        return {"document": text, "summary": ""}

    first, second = " ".join("abcdefghijklmnop"), " ".join("qrstuvwxyzabcdef")
    counts: Counter[str] = Counter()
    kept = docstrings._apart([row(first), row(second)], [row(f"y z {first}")], counts)
    assert kept == [row(second)]
    assert counts == {"evaluation_like_train": 1}


def test_command_prints_the_counts() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pipeline.data.docstrings"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    printed = {line.split(maxsplit=1)[1]: int(line.split()[0]) for line in run.stdout.splitlines()}
    assert printed["train"] == collect_docstrings().counts["train"]
