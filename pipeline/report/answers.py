"""Answers to chosen documents, side by side, with what their sources do not have marked."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.arms import first_model
from pipeline.report.charts import spread
from pipeline.report.inputs import Evaluation
from pipeline.report.marks import Kind, mark
from pipeline.report.predictions import Answer, Rows
from pipeline.report.sources import Sources
from pipeline.report.token_text import visible

MAX_MODELS = 9
# Longer texts are cut for the page, and it says so.
MAX_CHARACTERS = 1200
MAX_SOURCE_CHARACTERS = 6000


@dataclass(frozen=True, slots=True)
class MarkedAnswer:
    """One model's answer.

    Attributes:
        label: the arm.
        role: of its colour.
        parts: the text in parts, each plain, an invented name or number.
        absent: invented names and numbers that could not be found in the text.
        notes: what else is to be said: empty, cut, shortened here.
    """

    label: str
    role: str
    parts: list[tuple[str, Kind]]
    absent: list[str]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class DocumentAnswers:
    """All answers to one document, its reference texts, and its text where that could be read."""

    record_id: str
    references: list[str]
    answers: list[MarkedAnswer]
    has_source: bool
    example_id: str
    source: str | None


def choose_answers(
    evaluation: Evaluation,
    rows: Rows,
    count: int,
    example_ids: Sequence[str],
    sources: Sources,
) -> list[DocumentAnswers]:
    """Return the answers to documents of the token view, then to evenly spaced others.

    Args:
        evaluation: whose models.
        rows: their answers.
        count: how many documents.
        example_ids: hex ids of the token view; documents with these come first.
        sources: the documents' texts, as far as they could be read.
    """
    arms = [arm for arm in evaluation.arms if any(m in rows for m in arm.models.values())]
    shown = [(arm, first_model(arm)) for arm in spread(arms, MAX_MODELS)]
    tables = {
        name: {answer.record_id: answer for answer in rows[name]}
        for _, name in shown
        if name in rows
    }
    if not tables:
        return []
    first = next(iter(tables.values()))
    shared = [r for r in first if all(r in table for table in tables.values())]
    named = [r for r in shared if first[r].example_id in set(example_ids)][:count]
    rest = [r for r in shared if r not in set(named)]
    step = max(1, min(count - len(named), len(rest)))
    even = [rest[int((i + 0.5) * len(rest) / step)] for i in range(step)] if rest else []
    chosen = (named + even)[:count]
    return [
        DocumentAnswers(
            record_id=record,
            references=[visible(_short(text)) for text in first[record].references],
            answers=[
                _marked(arm.label, arm.role, tables[name][record])
                for arm, name in shown
                if name in tables
            ],
            has_source=first[record].has_source,
            example_id=first[record].example_id,
            source=_source(sources.get(first[record].references)),
        )
        for record in chosen
    ]


def _source(text: str | None) -> str | None:
    if text is None or len(text) <= MAX_SOURCE_CHARACTERS:
        return None if text is None else visible(text)
    shown = visible(text[:MAX_SOURCE_CHARACTERS])
    return f"{shown} … (first {MAX_SOURCE_CHARACTERS} of {len(text)} characters)"


def _short(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"


def _marked(label: str, role: str, answer: Answer) -> MarkedAnswer:
    parts, absent = mark(_short(answer.text), answer.novel_entities, answer.novel_numbers)
    notes = []
    if not answer.text.strip():
        notes.append("empty")
    if answer.cut:
        notes.append("never ended: cut at the token limit")
    if len(answer.text) > MAX_CHARACTERS:
        notes.append(f"first {MAX_CHARACTERS} of {len(answer.text)} characters")
    shown = [(visible(text), kind) for text, kind in parts]
    return MarkedAnswer(label, role, shown, [visible(text) for text in absent], notes)
