"""The answers of every model to every document, as far as the report shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.documents import Document, read_lines
from pipeline.report.inputs import EVALUATE, Evaluation

FIELDS: dict[str, type] = {"record_id": str, "example_id": str, "prediction": str}
FIELDS |= {"references": list}


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer to one document.

    Attributes:
        record_id: hex key of the document.
        example_id: hex key of prompt and gold response, the cache's key.
        text: the answer.
        references: the acceptable texts.
        novel_entities: names in it that the source lacks.
        novel_numbers: numbers in it that the source lacks.
        has_source: whether there was a source to compare with.
        cut: it never ended, and was cut at the token limit.
    """

    record_id: str
    example_id: str
    text: str
    references: tuple[str, ...]
    novel_entities: tuple[str, ...]
    novel_numbers: tuple[str, ...]
    has_source: bool
    cut: bool

    @property
    def invented(self) -> tuple[str, ...]:
        """Names and numbers that the source lacks."""
        return self.novel_entities + self.novel_numbers


Rows = dict[str, list[Answer]]


def read_answers(evaluation: Evaluation) -> tuple[Rows, list[str]]:
    """Return the answers by model, and the models whose file is not here.

    Raises:
        DataError: a predictions file is damaged or of another version.
    """
    rows: Rows = {}
    missing = []
    for model in evaluation.models:
        path = evaluation.predictions_path(model)
        if path.exists():
            rows[model] = [_answer(line) for line in read_lines(path, FIELDS, EVALUATE)]
        else:
            missing.append(model)
    return rows, missing


def _answer(line: Document) -> Answer:
    overlap = line.get("overlap") or {}
    return Answer(
        record_id=line["record_id"],
        example_id=line["example_id"],
        text=line["prediction"],
        references=tuple(map(str, line["references"])),
        novel_entities=_texts(overlap.get("novel_entities")),
        novel_numbers=_texts(overlap.get("novel_numbers")),
        has_source=bool(overlap),
        cut=bool(line.get("hit_token_limit")),
    )


def _texts(values: Sequence[object] | None) -> tuple[str, ...]:
    return tuple(map(str, values or ()))
