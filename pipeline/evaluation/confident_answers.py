"""How sure a model is of its own answers, and how often it is sure of what is not supported.

An answer's confidence is exp(mean log-probability of its tokens), teacher-forced at temperature 1.
What counts as supported is, for each judge, its verdict; and without one, that the source has
every name and number of the answer ("names_and_numbers").

Shape suffixes: D answers (one a document), M bins.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.auroc import auroc
from pipeline.evaluation.bootstrap import Figure, by_document, intervals, ratio
from pipeline.evaluation.calibration import equal_width_bins, mean_of_bin_errors
from pipeline.evaluation.consistency import judge_names
from pipeline.evaluation.discrimination import estimates

Row = dict[str, Any]
MODEL_FREE = "names_and_numbers"
RATE = "confident_unsupported_rate"


def median_confidence(models: Mapping[str, Sequence[Row]]) -> float | None:
    """Return the median confidence of all answers of all models; None where all are empty."""
    found = [row["confidence"] for rows in models.values() for row in rows]
    there = [confidence for confidence in found if confidence is not None]
    return float(np.median(there)) if there else None


def confident_figures(rows: Sequence[Row], median: float | None) -> dict[str, dict[str, Figure]]:
    """Return {target: figures over documents} of one model's answers.

    confident_unsupported_rate: share of the answers that can be told that are unsupported, with
    a confidence above `median`; empty answers are in the share and never confident. auroc: chance
    that a supported answer is more confident than an unsupported one; absent where all are alike.
    ece: mean distance of confidence from the share supported, over as many bins as the tokens' ECE
    has by default. Targets that no answer has are left out.
    """
    targets = {MODEL_FREE: [_has_all_names(row) for row in rows]}
    for name in judge_names(rows):
        verdicts = [row["judges"][name] for row in rows]
        targets[name] = [None if one is None else one["consistent"] for one in verdicts]
    return {
        name: _figures_of(rows, supported, math.inf if median is None else median)
        for name, supported in targets.items()
        if any(one is not None for one in supported)
    }


def _has_all_names(row: Row) -> bool | None:
    overlap = row["overlap"]
    if overlap is None:
        return None
    return not overlap["novel_entities"] and not overlap["novel_numbers"]


def _figures_of(
    rows: Sequence[Row], supported: Sequence[bool | None], median: float
) -> dict[str, Figure]:
    documents = [row["document_id"] for row in rows]
    sure = [(row["confidence"] or 0.0) > median for row in rows]
    pairs = list(zip(supported, sure, strict=True))
    rate = ratio([ok is False and high for ok, high in pairs], [ok is not None for ok, _ in pairs])
    figures = {RATE: by_document(rate, documents)}
    places = [
        place
        for place, row in enumerate(rows)
        if supported[place] is not None and row["confidence"] is not None
    ]
    labels_D = np.array([bool(supported[place]) for place in places])
    confidences_D = np.array([rows[place]["confidence"] for place in places])
    own = [documents[place] for place in places]
    if len(places):
        figures["ece"] = by_document(_calibration_error(confidences_D, labels_D), own)
    if len(set(labels_D.tolist())) == 2:
        figures["auroc"] = auroc(confidences_D, labels_D, own)
    return figures


def _calibration_error(confidences_D: Any, labels_D: Any, num_bins: int = 15) -> Figure:
    errors_DM = np.zeros((len(labels_D), num_bins))
    bins_D = equal_width_bins(confidences_D, num_bins)
    errors_DM[np.arange(len(labels_D)), bins_D] = labels_D - confidences_D
    return mean_of_bin_errors(errors_DM, np.ones(len(labels_D)))


def describe_confident_answers(models: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Return {"median_confidence", "models": {name: {target: figures and intervals}}}."""
    median = median_confidence(models)
    described: dict[str, Any] = {}
    for name, rows in models.items():
        described[name] = {}
        for target, figures in confident_figures(rows, median).items():
            # One by one: the figures are over different answers.
            ends = {key: intervals({key: figure})[key] for key, figure in figures.items()}
            described[name][target] = estimates(figures, ends)
    return {"median_confidence": median, "models": described}


def compared_figures(rows: Sequence[Row], median: float | None) -> dict[str, Figure]:
    """Return the rates under the names that comparisons know: of judge J, J_confident_...rate."""
    return {
        RATE if target == MODEL_FREE else f"{target}_{RATE}": figures[RATE]
        for target, figures in confident_figures(rows, median).items()
    }
