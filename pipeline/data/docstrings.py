"""The built-in demo dataset: docstrings of the installed dependencies, read but never imported.

A docstring's first paragraph is the summary, the prose after it the document. Rows depend only
on the installed versions; `python -m pipeline.data.docstrings` prints how many there are and
what was left out.
"""

import hashlib
import importlib.util
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# Dependencies of this project on every machine, its own or those of torch and datasets.
PACKAGES = (
    "accelerate",
    "click",
    "datasets",
    "fsspec",
    "huggingface_hub",
    "networkx",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "sympy",
    "torch",
)
SKIPPED_FOLDERS = {"tests", "test", "testing", "test_utils", "_vendor", "vendored"}
SPLITS = ("train", "evaluation")
EVALUATION_SHARE = 8  # one summary in eight
SUMMARY_WORDS = (4, 30)
DOCUMENT_WORDS = (35, 160)
MIN_LETTER_SHARE = 0.9
OVERLAP_WORDS = 8
MAX_OVERLAP = 0.2

# ast finds the same rows but for about 1 % and takes several times as long.
DOCSTRING = re.compile(r':[ \t]*(?:#[^\n]*)?\n[ \t]+[rR]?"""(.+?)"""', re.DOTALL)
UNDERLINE = re.compile(r"\s*[-=~]{3,}\s*")
SECTION = re.compile(
    r"(args|arguments|parameters?|(other|keyword) (args|arguments|parameters)|returns?|yields?|"
    r"raises|examples?|example usage|usage|notes?|references|see also|attributes|shape|warnings?|"
    r"methods|inputs?|outputs?)\s*:*",
    re.IGNORECASE,
)
NOT_PROSE = re.compile(
    r">>>|::|:math:|```|[|\t\\]|\b(Args|Parameters|Raises|Returns):|^\s*(\.\. |>|[-*+] )",
    re.MULTILINE,
)
SENTENCES = re.compile(r"[A-Z`'\"(].*[.!?][)'\"`]*", re.DOTALL)
LETTERS = re.compile(r"[A-Za-z ,.\n]")

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Docstrings:
    """The demo's rows by split, and how many docstrings were left out for which reason."""

    rows: dict[str, list[Row]]
    counts: dict[str, int]


@lru_cache(maxsize=1)
def collect_docstrings() -> Docstrings:
    """Return all rows {document, summary} of both splits, in an order unrelated to content.

    Rows are ordered by the SHA-256 of their summary's words, which also decides the split, so
    any prefix is a fair sample. Summaries and documents occur once over both splits, and an
    evaluation document shares at most a fifth of its 8-word sequences with the train split.
    """
    counts: Counter[str] = Counter()
    candidates = []
    for text in _docstrings(counts):
        row = _row(text, counts)
        if row is not None:
            candidates.append((_key(row["summary"]), _key(row["document"]), row))
    candidates.sort(key=lambda item: item[:2])
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for summary_key, document_key, row in candidates:
        if summary_key in seen or document_key in seen:
            counts["duplicate"] += 1
            continue
        seen |= {summary_key, document_key}
        rows[SPLITS[int(summary_key, 16) % EVALUATION_SHARE == 0]].append(row)
    rows["evaluation"] = _apart(rows["evaluation"], rows["train"], counts)
    counts.update({split: len(rows[split]) for split in SPLITS})
    return Docstrings(rows, dict(counts))


def _docstrings(counts: Counter[str]) -> Iterator[str]:
    for file in _source_files(counts):
        counts["files"] += 1
        for match in DOCSTRING.finditer(file.read_text(encoding="utf-8", errors="replace")):
            counts["docstrings"] += 1
            yield inspect.cleandoc(match[1])


def _source_files(counts: Counter[str]) -> Iterator[Path]:
    for package in PACKAGES:
        # find_spec of a top-level name does not import it.
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            counts["packages_not_installed"] += 1
            continue
        root = Path(spec.submodule_search_locations[0])
        for file in sorted(root.rglob("*.py")):
            if not SKIPPED_FOLDERS.intersection(file.relative_to(root).parts):
                yield file


def _row(docstring: str, counts: Counter[str]) -> Row | None:
    """Return the docstring as a row, or None with the reason counted."""
    first, _, rest = docstring.partition("\n\n")
    summary = " ".join(first.split())
    if not (summary.isascii() and summary.endswith(".") and summary[0].isupper()):
        counts["summary_is_no_sentence"] += 1
        return None
    if not SUMMARY_WORDS[0] <= len(summary.split()) <= SUMMARY_WORDS[1]:
        counts["summary_too_short_or_long"] += 1
        return None
    document = _prose(rest)
    num_words = len(document.split())
    if num_words < DOCUMENT_WORDS[0]:
        counts["too_little_prose"] += 1
        return None
    return {"document": document, "summary": summary}


def _prose(text: str) -> str:
    """Return the leading prose paragraphs before the first section, up to the word limit."""
    kept: list[str] = []
    num_words = 0
    for paragraph in re.split(r"\n\s*\n", text):
        if _is_heading(*paragraph.strip().split("\n")):
            break
        if not _is_prose(paragraph.strip()):
            continue
        num_words += len(paragraph.split())
        if num_words > DOCUMENT_WORDS[1]:
            break
        kept.append(" ".join(paragraph.split()))
    return "\n\n".join(kept)


def _is_heading(first: str, second: str = "", *_: str) -> bool:
    return bool(SECTION.fullmatch(first.strip()) or UNDERLINE.fullmatch(second))


def _is_prose(paragraph: str) -> bool:
    return (
        paragraph.isascii()
        and SENTENCES.fullmatch(paragraph) is not None
        and NOT_PROSE.search(paragraph) is None
        and len(LETTERS.findall(paragraph)) >= MIN_LETTER_SHARE * len(paragraph)
    )


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _key(text: str) -> str:
    return hashlib.sha256(" ".join(_words(text)).encode()).hexdigest()


def _sequences(row: Row) -> set[str]:
    words = _words(row["document"])
    return {
        " ".join(words[start : start + OVERLAP_WORDS])
        for start in range(len(words) - OVERLAP_WORDS + 1)
    }


def _apart(evaluation: list[Row], train: list[Row], counts: Counter[str]) -> list[Row]:
    """Return the evaluation rows that are no near copy of the train split."""
    known = set[str]().union(*(_sequences(row) for row in train))
    kept = []
    for row in evaluation:
        sequences = _sequences(row)
        if len(sequences & known) > MAX_OVERLAP * len(sequences):
            counts["evaluation_like_train"] += 1
        else:
            kept.append(row)
    return kept


if __name__ == "__main__":
    for reason, count in collect_docstrings().counts.items():
        print(f"{count:7d}  {reason.replace('_', ' ')}")
