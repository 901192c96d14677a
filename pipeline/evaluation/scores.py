"""Per-document values of one model, their file (JSON Lines), and the aggregates made from them.

Aggregates are computed from the same rows that are stored, so anyone can recompute them, or
others, from the file: `aggregate(read_rows(path), num_bins)` generates nothing.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.records import Record
from pipeline.data.tokenization import Example
from pipeline.evaluation.bootstrap import by_document, intervals
from pipeline.evaluation.calibration import ece_floor, pool
from pipeline.evaluation.extractiveness import measure_extractiveness, words
from pipeline.evaluation.figures import (
    document_figures,
    mean_name,
    overlap_figures,
    read_tokens,
    rescaled_figures,
    token_figures,
)
from pipeline.evaluation.novelty import measure_novelty
from pipeline.evaluation.refusals import is_refusal
from pipeline.evaluation.reliability import entropy_deciles, reliability_bins
from pipeline.evaluation.rouge import score_rouge, unscored_letter_share
from pipeline.evaluation.teacher_forced import GoldScores
from pipeline.generation.requests import Prediction
from storage_schema.publish import publish, writing


def record_id(record: Record) -> str:
    """Return the SHA-256 (hex) of a record's texts: the same under every tokenizer."""
    text = json.dumps(dataclasses.asdict(record), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def document_id(record: Record) -> str:
    """Return the SHA-256 (hex) of what the record is about: rows of one id are not independent.

    The source where there is one, else the whole question, of running text the text.
    """
    about: Any = record.context or [record.instruction, record.messages]
    if not (record.context or record.instruction or record.messages):
        about = record.response
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def score_document(
    example: Example,
    record: Record,
    prediction: Prediction,
    confidence: float | None,
    gold: GoldScores,
    rescaled: tuple[float, GoldScores] | None,
) -> dict[str, Any]:
    """Return one document's row: identities, texts, per-document scores, per-token numbers.

    Per-token numbers are written with the fewest digits that give the same float32 again.

    Args:
        example: prompt and gold response.
        record: the texts.
        prediction: what the model wrote.
        confidence: exp(mean log-probability) of it; None if empty.
        gold: what it says of the gold response.
        rescaled: the temperature fitted on other documents, and the same with it.
    """
    rouge = score_rouge(prediction.text, record.references)
    logprobs = gold.tokens.label_logprobs
    return {
        "example_id": example.example_id.hex(),
        "record_id": record_id(record),
        "document_id": document_id(record),
        "prediction": prediction.text,
        "references": list(record.references),
        **rouge.best,
        **{mean_name(name): value for name, value in rouge.mean.items()},
        "empty": prediction.empty,
        "refused": is_refusal(prediction.text),
        "hit_token_limit": prediction.hit_token_limit,
        "num_prediction_tokens": len(prediction.token_ids),
        "num_prediction_words": len(words(prediction.text)),
        "confidence": confidence,
        "overlap": measure_overlap(prediction.text, record),
        "judges": {},
        "num_tokens": len(logprobs),
        "response_nll_sum_nats": -float(logprobs.astype(np.float64).sum()),
        **_stored(gold),
        "rescaled": None
        if rescaled is None
        else {"temperature": rescaled[0], **_stored(rescaled[1])},
    }


def measure_overlap(text: str, record: Record) -> dict[str, Any] | None:
    """Return what `text` takes from the record's source and adds to it; None without a source."""
    if not record.context or not words(record.context):
        return None
    taken = measure_extractiveness(text, record.context)
    added = measure_novelty(text, record.context)
    return {**dataclasses.asdict(taken), **dataclasses.asdict(added)}


def measure_references(records: Sequence[Record]) -> dict[str, Any]:
    """Return the overlap figures of the gold responses, the anchor beside those of answers."""
    figures = overlap_figures([measure_overlap(record.response, record) for record in records])
    documents = [document_id(record) for record in records]
    clustered = {name: by_document(figure, documents) for name, figure in figures.items()}
    return {
        "num_documents": len(records),
        "mean_words": sum(len(words(record.response)) for record in records) / len(records),
        **{name: figure.estimate for name, figure in clustered.items()},
        "intervals": intervals(clustered),
    }


def _stored(gold: GoldScores) -> dict[str, Any]:
    return {
        "full_bin_errors": gold.full_bin_errors_M.tolist(),
        "tokens": {
            "label_logprobs": _shortest(gold.tokens.label_logprobs),
            "confidences": _shortest(gold.tokens.confidences),
            "correct": gold.tokens.correct.astype(int).tolist(),
            "entropies_nats": _shortest(gold.tokens.entropies_nats),
            "sum_squared_probs": _shortest(gold.tokens.sum_squared_probs),
        },
    }


def _shortest(values: np.ndarray[Any, Any]) -> list[float]:
    return [float(str(value)) for value in values.astype(np.float32)]


def aggregate(rows: Sequence[dict[str, Any]], num_bins: int) -> dict[str, Any]:
    """Return the aggregates of one model's rows.

    ROUGE, overlap and lengths are means over documents (each document weighs the same);
    likelihood and calibration are means over all response tokens (each token weighs the same).
    `intervals` holds the 95 % interval of each figure under the figure's name.

    Raises:
        DataError: there are no rows.
    """
    figures = {**document_figures(rows), **token_figures(rows, num_bins)}
    parts = [read_tokens(row["tokens"]) for row in rows]
    documents = [row["document_id"] for row in rows]
    return {
        **_counts(rows),
        "num_tokens": sum(row["num_tokens"] for row in rows),
        **{name: figure.estimate for name, figure in figures.items()},
        "ece_floor": ece_floor(pool(parts).confidences, num_bins),
        "intervals": intervals(figures),
        "rescaled": _rescaled(rows, num_bins),
        "reliability": reliability_bins(parts, documents, num_bins),
        "entropy_deciles": entropy_deciles(parts, documents),
    }


def _counts(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    overlaps = [row["overlap"] for row in rows if row["overlap"] is not None]
    references = [text for row in rows for text in row["references"]]
    return {
        "num_documents": len(rows),
        "num_distinct_documents": len({row["document_id"] for row in rows}),
        "num_empty": sum(row["empty"] for row in rows),
        "num_refused": sum(row["refused"] for row in rows),
        "num_hit_token_limit": sum(row["hit_token_limit"] for row in rows),
        "num_without_source": len(rows) - len(overlaps),
        "num_lower_case": sum(overlap["lower_case"] for overlap in overlaps),
        "max_references": max(len(row["references"]) for row in rows),
        "unscored_letter_share": unscored_letter_share(references),
    }


def _rescaled(rows: Sequence[dict[str, Any]], num_bins: int) -> dict[str, Any] | None:
    figures = rescaled_figures(rows, num_bins)
    if not figures:
        return None
    return {
        "temperatures": sorted({row["rescaled"]["temperature"] for row in rows}),
        **{name: figure.estimate for name, figure in figures.items()},
        "intervals": intervals(figures),
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON Lines to `path`, whole or not at all.

    Raises:
        CacheWriteError: the system refuses to write, for instance because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with writing(path), open(temporary, "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    publish(path, write)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a predictions file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]
