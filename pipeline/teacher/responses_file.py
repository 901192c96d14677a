"""The files of generate-responses: what is generated so far, and the finished dataset.

While a run goes on, each answer is one line of unfinished.jsonl, in the order of finishing. The
dataset, responses.jsonl, is then written in the order of the prompts, whole or not at all.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import DataError
from pipeline.generation.growing_file import open_growing
from storage_schema.publish import publish, writing

UNFINISHED = "unfinished.jsonl"
DATASET = "responses.jsonl"


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of unfinished.jsonl.

    Attributes:
        request: place of the request in the run.
        text: the response, as a dataset row holds it.
        finish_reason: "stop" or "length".
        num_tokens: generated tokens, the stop token not counted.
        reads_back: whether the text is tokenised into the tokens that were generated.
    """

    request: int
    text: str
    finish_reason: str
    num_tokens: int
    reads_back: bool


@contextmanager
def open_unfinished(output: Path) -> Iterator[tuple[TextIO, dict[int, Answer]]]:
    """Open unfinished.jsonl for this process alone: the file to append to, and what it holds.

    Raises:
        OutputExistsError: another process is writing it.
        DataError: a whole line is no answer.
    """
    path = output / UNFINISHED
    with open_growing(path) as (file, lines):
        yield file, {answer.request: answer for answer in _parse(path, lines)}


def _parse(path: Path, lines: Sequence[bytes]) -> Iterator[Answer]:
    for number, line in enumerate(lines, 1):
        try:
            yield Answer(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{path}, line {number} is no generated answer ({error}); delete the folder to "
                "start over"
            ) from error


def write_dataset(output: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write responses.jsonl, whole or not at all, and return its path."""
    path = output / DATASET

    def write(temporary: Path) -> None:
        with writing(path), open(temporary, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    publish(path, write)
    return path
