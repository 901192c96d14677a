"""Which figures one model's rows give, as sums over documents; and what each is called.

Shape suffixes: D rows (one a document), M bins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.evaluation.bootstrap import Figure, by_document, ratio
from pipeline.evaluation.calibration import (
    TokenScores,
    calibration_figures,
    mean_of_bin_errors,
)
from pipeline.evaluation.consistency import consistency_figures, judges_of
from pipeline.evaluation.rouge import CONVENTIONS

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Compared:
    """How a figure is compared between models.

    Attributes:
        label: its name for people.
        unit: of the figure times `scale`.
        scale: 100 for shares, else 1.
        primary: one of the few that a claim rests on; all others are exploratory.
        per_document: a single document has it, so a sign test can count documents.
    """

    label: str
    unit: str = "points"
    scale: float = 100.0
    primary: bool = False
    per_document: bool = True


COMPARED = {
    "rougeL_f1": Compared("ROUGE-L F1", primary=True),
    "rougeLsum_f1": Compared("ROUGE-Lsum F1 (the paper's convention)"),
    "rougeL_f1_stemmed": Compared("ROUGE-L F1 (MiniLLM's convention)"),
    "novel_entity_rate": Compared("names not in the source", primary=True),
    "novel_number_rate": Compared("numbers not in the source"),
    "novel_bigram_rate": Compared("word pairs not in the source"),
    "coverage": Compared("coverage"),
    "density": Compared("density", "words", 1.0),
    "mean_prediction_words": Compared("length", "words", 1.0),
    "confident_unsupported_rate": Compared("answers sure of names or numbers not in the source"),
    "empty_rate": Compared("empty answers"),
    "refused_rate": Compared("refusals"),
    "factual_rate": Compared("factual rate", primary=True),
    "factual_rate_at_half": Compared("factual rate at 0.5"),
    "factual_rate_of_answers": Compared("factual rate, mean over answers"),
    "all_factual_rate": Compared("answers with factual windows only"),
    "mean_lookback_ratio": Compared("mean lookback ratio"),
}
# Per token: comparable between models of one tokenizer only.
COMPARED_TOKENS = {
    "overconfidence_gap": Compared("over-confidence gap", primary=True),
    "ece": Compared("ECE", per_document=False),
    "full_ece": Compared("Full-ECE", per_document=False),
    "response_nll_nats": Compared("NLL", "nats/token", 1.0),
    "brier": Compared("Brier score", "", 1.0),
    "mean_entropy_nats": Compared("entropy", "nats/token", 1.0),
    "accuracy": Compared("token accuracy"),
}
# Against the baseline rescaled by one number: is the student better than that?
COMPARED_RESCALED = {
    "ece": Compared("ECE", primary=True, per_document=False),
    "response_nll_nats": COMPARED_TOKENS["response_nll_nats"],
    "brier": COMPARED_TOKENS["brier"],
}
# Of each judge J, under "J_" and these names.
COMPARED_CONSISTENCY = {
    "consistency": Compared("factual consistency", primary=True),
    "consistent_rate": Compared("answers judged consistent"),
    "confident_unsupported_rate": Compared("answers sure and judged unsupported"),
    "sentence_mean": Compared("factual consistency by sentence"),
    "sentence_min": Compared("factual consistency of the worst sentence"),
}
NGRAM_NAMES = ("unigram", "bigram", "trigram", "fourgram")


def document_figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Return the figures that weigh documents equally; some may be undefined (None).

    Raises:
        DataError: there are no rows.
    """
    if not rows:
        raise DataError("no documents to score: expected at least one row")
    written = [not row["empty"] for row in rows]
    rouge = [name for convention in CONVENTIONS for name in (convention, mean_name(convention))]
    figures = {
        **{name: ratio([row[name] for row in rows]) for name in rouge},
        "rougeL_f1_without_empty": ratio(
            [row["rougeL_f1"] * full for row, full in zip(rows, written, strict=True)], written
        ),
        "empty_rate": ratio([row["empty"] for row in rows]),
        "refused_rate": ratio([row["refused"] for row in rows]),
        "token_limit_rate": ratio([row["hit_token_limit"] for row in rows]),
        "mean_prediction_tokens": ratio([row["num_prediction_tokens"] for row in rows]),
        "mean_prediction_words": ratio([row["num_prediction_words"] for row in rows]),
        **overlap_figures([row["overlap"] for row in rows]),
        **consistency_figures(rows),
    }
    if all("lookback" in row for row in rows):
        figures |= lookback_figures([row["lookback"] for row in rows])
    return _clustered(figures, rows)


def compared_documents(models: Sequence[Mapping[str, Figure]]) -> dict[str, Compared]:
    """Return how to compare the figures per document that all these models have, judges included.

    Args:
        models: the figures of each, by name.
    """
    first, *others = [judges_of(figures) for figures in models]
    judged = {
        f"{judge}_{name}": replace(how, label=f"{how.label} ({judge})")
        for judge in first
        if all(judge in other for other in others)
        for name, how in COMPARED_CONSISTENCY.items()
    }
    return {**COMPARED, **judged}


def mean_name(convention: str) -> str:
    """Return the name of a ROUGE figure's mean over references."""
    return f"{convention}_mean_over_references"


def overlap_figures(overlaps: Sequence[Row | None]) -> dict[str, Figure]:
    """Return what answers take from their sources and add to them, means over documents.

    A document without the quantity (no source, no words, no number, no name) is left out of its
    mean: it adds 0 to the divisor.

    Args:
        overlaps: the field `overlap` of each row.
    """

    def mean(value: Callable[[Row], float | None]) -> Figure:
        values = [None if overlap is None else value(overlap) for overlap in overlaps]
        return ratio([value or 0.0 for value in values], [value is not None for value in values])

    def ngram(size: int) -> Callable[[Row], float | None]:
        return lambda overlap: _share(*overlap["novel_ngrams"][size])

    return {
        "coverage": mean(lambda overlap: overlap["coverage"]),
        "density": mean(lambda overlap: overlap["density"]),
        "compression": mean(lambda overlap: overlap["compression"]),
        "longest_copied_words": mean(lambda overlap: overlap["longest_copied_words"]),
        "lead_copy_rate": mean(lambda overlap: overlap["lead_copy"]),
        **{f"novel_{name}_rate": mean(ngram(size)) for size, name in enumerate(NGRAM_NAMES)},
        "novel_entity_rate": mean(
            lambda overlap: _share(len(overlap["novel_entities"]), len(overlap["entities"]))
        ),
        "novel_number_rate": mean(
            lambda overlap: _share(len(overlap["novel_numbers"]), len(overlap["numbers"]))
        ),
    }


def lookback_figures(parts: Sequence[Row | None]) -> dict[str, Figure]:
    """Return the factual rates; answers without windows (empty, no document) add nothing.

    `factual_rate` and `factual_rate_at_half` weigh windows equally, the others answers.

    Args:
        parts: the field `lookback` of each row.
    """
    full = [part if part is not None and part["probabilities"] else None for part in parts]
    written = [part is not None for part in full]
    windows = [len(part["probabilities"]) if part else 0 for part in full]
    factual = [part["num_factual"] if part else 0 for part in full]
    shares = [_share(*pair) or 0.0 for pair in zip(factual, windows, strict=True)]
    ratios = [part["mean_ratio"] if part else 0.0 for part in full]
    return {
        "factual_rate": ratio(factual, windows),
        "factual_rate_at_half": ratio(
            [part["num_factual_at_half"] if part else 0 for part in full], windows
        ),
        "factual_rate_of_answers": ratio(shares, written),
        "all_factual_rate": ratio([share == 1.0 for share in shares], written),
        "mean_lookback_ratio": ratio(ratios, written),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def token_figures(rows: Sequence[Row], num_bins: int) -> dict[str, Figure]:
    """Return the figures that weigh gold tokens equally, at the model's own temperature.

    Raises:
        DataError: there are no rows or tokens, or a number is not finite or no probability.
    """
    return _clustered(_token_figures(rows, num_bins), rows)


def rescaled_figures(rows: Sequence[Row], num_bins: int) -> dict[str, Figure]:
    """Return the same at the fitted temperatures; {} where none was fitted.

    Raises:
        DataError: a number is not finite or no probability.
    """
    rescaled = [row["rescaled"] for row in rows]
    if any(part is None for part in rescaled):
        return {}
    return _clustered(_token_figures(rescaled, num_bins), rows)


def _token_figures(parts: Sequence[Row], num_bins: int) -> dict[str, Figure]:
    tokens = [read_tokens(part["tokens"]) for part in parts]
    figures = calibration_figures(tokens, num_bins)
    counts_D = np.array([len(part.confidences) for part in tokens], dtype=np.float64)
    errors_DM = np.array([part["full_bin_errors"] for part in parts], dtype=np.float64)
    return {**figures, "full_ece": mean_of_bin_errors(errors_DM, counts_D)}


def read_tokens(stored: Row) -> TokenScores:
    """Return the arrays of a row's field `tokens`."""
    return TokenScores(
        label_logprobs=np.asarray(stored["label_logprobs"], dtype=np.float32),
        confidences=np.asarray(stored["confidences"], dtype=np.float32),
        correct=np.asarray(stored["correct"], dtype=np.bool_),
        entropies_nats=np.asarray(stored["entropies_nats"], dtype=np.float32),
        sum_squared_probs=np.asarray(stored["sum_squared_probs"], dtype=np.float32),
    )


def _clustered(figures: dict[str, Figure], rows: Sequence[Row]) -> dict[str, Figure]:
    documents = [row["document_id"] for row in rows]
    return {name: by_document(figure, documents) for name, figure in figures.items()}
