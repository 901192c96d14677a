"""What a judge says of texts whose faithfulness is known: does it pass what is copied, and fall
where a fact was changed?"""

import hashlib
from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.bootstrap import Figure, by_document, intervals, ratio
from pipeline.evaluation.consistency import judge_documents
from pipeline.evaluation.discrimination import estimates
from pipeline.evaluation.judges.protocol import Judge
from pipeline.evaluation.judging import BLOCK_DOCUMENTS
from pipeline.evaluation.known_answers import CHANGES, KnownAnswer
from pipeline.progress import Progress

# Controls without a change, and whether the text is supported.
EXPECTED = {"source_sentence": True, "itself": True, "other_summary": False, "empty": False}
SOURCES = ("source_sentence", "summary")


def measure_controls(name: str, judge: Judge, answers: Sequence[KnownAnswer]) -> dict[str, Any]:
    """Return {"unchanged": {control: figures}, "changed": {source: {change: figures}}}.

    Unchanged: `mean_score` and `consistent_rate`. Changed: `mean_score_before`, `mean_drop` of the
    score, and `falls`, the share of texts whose score becomes lower. Each has `num_texts` and
    intervals over documents; None stands where no text could be made.

    Raises:
        DataError: a hypothesis does not fit the judge, or a score is no number in [0, 1].
    """
    before = _score(name, judge, [(one.document, one.text) for one in answers])
    changed = [place for place, one in enumerate(answers) if one.changed is not None]
    after = dict(
        zip(
            changed,
            _score(name, judge, [(answers[p].document, answers[p].changed or "") for p in changed]),
            strict=True,
        )
    )
    threshold = judge.threshold
    return {
        "unchanged": {
            control: _unchanged(
                [(one, before[p]) for p, one in enumerate(answers) if one.control == control],
                threshold,
            )
            for control in EXPECTED
        },
        "changed": {
            source: {
                change: _changed(
                    [
                        (answers[p], before[p], after[p])
                        for p in changed
                        if (answers[p].source, answers[p].control) == (source, change)
                    ]
                )
                for change in CHANGES
            }
            for source in SOURCES
        },
    }


def _score(name: str, judge: Judge, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return the score of each whole text."""
    scores: list[float] = []
    with Progress(f"judge {name}: known answers", len(pairs), "texts") as progress:
        for first in range(0, len(pairs), BLOCK_DOCUMENTS):
            block = pairs[first : first + BLOCK_DOCUMENTS]
            rows = judge_documents(name, judge, [d for d, _ in block], [t for _, t in block])
            scores += [0.0 if row is None else row["score"] for row in rows]
            progress.advance(len(block))
    return scores


def _unchanged(
    scored: Sequence[tuple[KnownAnswer, float]], threshold: float
) -> dict[str, Any] | None:
    if not scored:
        return None
    values = [score for _, score in scored]
    figures = {
        "mean_score": ratio(values),
        "consistent_rate": ratio([score > threshold for score in values]),
    }
    return _described(figures, [one for one, _ in scored])


def _changed(scored: Sequence[tuple[KnownAnswer, float, float]]) -> dict[str, Any] | None:
    if not scored:
        return None
    drops = [before - after for _, before, after in scored]
    figures = {
        "mean_score_before": ratio([before for _, before, _ in scored]),
        "mean_drop": ratio(drops),
        "falls": ratio([drop > 0 for drop in drops]),
    }
    return _described(figures, [one for one, _, _ in scored])


def _described(figures: dict[str, Figure], answers: Sequence[KnownAnswer]) -> dict[str, Any]:
    documents = [hashlib.sha256(one.document.encode()).hexdigest() for one in answers]
    clustered = {name: by_document(figure, documents) for name, figure in figures.items()}
    return {"num_texts": len(answers), **estimates(clustered, intervals(clustered))}


def format_controls(name: str, found: dict[str, Any]) -> list[str]:
    """Return the lines that are printed of one judge."""
    lines = [f"  {name}, known answers:"]
    for control, figures in found["unchanged"].items():
        if figures is not None:
            wanted = "near 1" if EXPECTED[control] else "near 0"
            lines.append(
                f"    {control.replace('_', ' ')}: mean score {figures['mean_score']:.3f} "
                f"({wanted} is right), {figures['num_texts']} texts"
            )
    for source, changes in found["changed"].items():
        for change, figures in changes.items():
            if figures is not None:
                lines.append(
                    f"    {change.replace('_', ' ')} in a {source.replace('_', ' ')}: falls in "
                    f"{100 * figures['falls']:.0f} % of {figures['num_texts']}, by "
                    f"{figures['mean_drop']:.3f} on average from {figures['mean_score_before']:.3f}"
                )
    return lines
