"""`evaluate-student --validate-judge`: what a judge is worth on human-labelled pairs.

Beside every judge stand trivial ones, made of word overlap and length: a judge that does not beat
them has learnt nothing that counts here. Each judge is also asked for what is known without labels.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.config import DataSettings
from pipeline.errors import OutputExistsError
from pipeline.evaluation.auroc import auroc
from pipeline.evaluation.bootstrap import DRAWS, LEVEL, MIN_DOCUMENTS, SEED, Floats, intervals
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.consistency import judge_documents
from pipeline.evaluation.controls import format_controls, measure_controls
from pipeline.evaluation.cost import Costs, format_costs, timed
from pipeline.evaluation.discrimination import (
    balanced_accuracy,
    best_threshold,
    estimates,
    threshold_curve,
    tuned_elsewhere,
)
from pipeline.evaluation.extractiveness import measure_extractiveness, words
from pipeline.evaluation.judges.loading import find_judge, load_judge
from pipeline.evaluation.judges.protocol import Judge, read_judge_flags
from pipeline.evaluation.judging import BLOCK_DOCUMENTS
from pipeline.evaluation.known_answers import make_known_answers
from pipeline.evaluation.labelled_pairs import LabelledPair, read_pairs
from pipeline.models.loading import pick_device
from pipeline.progress import Progress
from pipeline.run_record import installed_versions, write_json

# How a document-level score is made of what a judge says; the least sentence is the strictest.
AGGREGATIONS = ("whole", "sentence_mean", "sentence_min")


def validate_judges(config: EvaluateStudentConfig, output: Path) -> dict[str, Any]:
    """Measure every judge of `config`, print the table, and return what is written to `output`.

    Raises:
        DataError: the pairs cannot be read, labels are of one class, or a judge gives no number.
        ModelError: a judge is not found or does not load.
        OutputExistsError: something lies at `output`.
    """
    if output.exists():
        raise OutputExistsError(f"{output} exists: choose another --output, or delete it")
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(DataSettings)}
    place = config.validate_judge or ""
    pairs, labelled = read_pairs(DataSettings(**{**fields, "data": place}))
    judges = [find_judge(choice) for choice in read_judge_flags(config.judge)]
    known = make_known_answers(pairs)
    found: dict[str, Any] = {
        "pairs": _describe_pairs(pairs, place, labelled),
        "settings": {
            "positive": "faithful",
            "intervals": {"level": LEVEL, "draws": DRAWS, "seed": SEED, "min": MIN_DOCUMENTS},
            "versions": installed_versions(),
        },
        "trivial": _measure_trivial(pairs) if labelled else {},
        "judges": {},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    for one in judges:
        judge = load_judge(one, batch_size=config.batch_size, device=pick_device())
        costs: Costs = {}
        about = {**one.identity, "published_threshold": judge.threshold, "cost": costs}
        if labelled:
            about |= _measure_judge(one.choice.name, judge, pairs, costs)
        with timed(costs, "known_answers", len(known)):
            about["controls"] = measure_controls(one.choice.name, judge, known)
        found["judges"][one.choice.name] = about
        del judge  # before the next one is loaded
        write_json(output, found)
    write_json(output, found)
    print(format_validation(found))
    print(f"written: {output}")
    return {"output": str(output), **found}


def _describe_pairs(pairs: Sequence[LabelledPair], place: str, labelled: bool) -> dict[str, Any]:
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(dataclasses.astuple(pair)).encode())
    return {
        "file": Path(place).name,
        "fingerprint": digest.hexdigest(),
        "num_pairs": len(pairs),
        "num_documents": len({pair.document for pair in pairs}),
        "labelled": labelled,
        "faithful_share": float(np.mean([p.faithful for p in pairs])) if labelled else None,
    }


def trivial_scores(pair: LabelledPair) -> dict[str, float]:
    """Return what needs no judge: a summary without words gets the lowest score of each."""
    taken = measure_extractiveness(pair.summary, pair.document)
    novel, bigrams = taken.novel_ngrams[1]
    return {
        "coverage": taken.coverage or 0.0,
        "density": taken.density or 0.0,
        "copied_bigram_rate": 1 - novel / bigrams if bigrams else 0.0,
        "shortness": -float(len(words(pair.summary))),
    }


def _measure_trivial(pairs: Sequence[LabelledPair]) -> dict[str, Any]:
    labels_S, documents = _labels(pairs)
    rows = [trivial_scores(pair) for pair in pairs]
    figures = {name: auroc([row[name] for row in rows], labels_S, documents) for name in rows[0]}
    ends = intervals(figures)
    return {
        name: {"auroc": figure.estimate, "interval": ends[name]} for name, figure in figures.items()
    }


def _labels(pairs: Sequence[LabelledPair]) -> tuple[Any, list[str]]:
    """Return the label of each pair, and the id of its document."""
    documents = [hashlib.sha256(pair.document.encode()).hexdigest() for pair in pairs]
    return np.array([pair.faithful for pair in pairs]), documents


def _measure_judge(
    name: str, judge: Judge, pairs: Sequence[LabelledPair], costs: Costs
) -> dict[str, Any]:
    rows: list[Any] = []
    with (
        timed(costs, "labelled_pairs", len(pairs)),
        Progress(f"judge {name}", len(pairs), "pairs") as progress,
    ):
        for first in range(0, len(pairs), BLOCK_DOCUMENTS):
            block = pairs[first : first + BLOCK_DOCUMENTS]
            rows += judge_documents(
                name, judge, [pair.document for pair in block], [pair.summary for pair in block]
            )
            progress.advance(len(block))
    scores = {
        "whole": [row["score"] for row in rows],
        "sentence_mean": [float(np.mean(row["sentence_scores"] or [0.0])) for row in rows],
        "sentence_min": [min(row["sentence_scores"], default=0.0) for row in rows],
    }
    labels_S, documents = _labels(pairs)
    return {
        "num_truncated_premises": getattr(judge, "num_truncated", 0),
        **{
            how: measure_scores(np.array(scores[how]), labels_S, documents, judge.threshold)
            for how in AGGREGATIONS
        },
    }


def measure_scores(
    scores_S: Floats, labels_S: Any, documents: Sequence[str], threshold: float
) -> dict[str, Any]:
    """Return AUROC, balanced accuracies with intervals, the best threshold and the curve.

    `balanced_accuracy` is at `threshold`, `balanced_accuracy_tuned` at thresholds tuned on other
    documents (absent where half of the documents lack a class); `best_balanced_accuracy` is at
    `best_threshold`, chosen on the same pairs and so flattered. `rates` has TPR and TNR at
    `threshold` and, for each document, what they are made of, so that they can be resampled.
    """
    figures = {
        "auroc": auroc(scores_S, labels_S, documents),
        "balanced_accuracy": balanced_accuracy(scores_S > threshold, labels_S, documents),
    }
    sums = figures["balanced_accuracy"].sums_DS  # TP, faithful, TN, others of each document
    true_positives, faithful, true_negatives, others = sums.sum(axis=0).tolist()
    tuned_S = tuned_elsewhere(scores_S, labels_S, documents)
    if tuned_S is not None:
        figures["balanced_accuracy_tuned"] = balanced_accuracy(tuned_S, labels_S, documents)
    best, accuracy = best_threshold(scores_S, labels_S)
    return {
        **estimates(figures, intervals(figures)),
        "best_threshold": best,
        "best_threshold_minus_published": best - threshold,
        "best_balanced_accuracy": accuracy,
        "curve": threshold_curve(scores_S, labels_S),
        "rates": {
            "tpr": true_positives / faithful,
            "tnr": true_negatives / others,
            "by_document": sums.astype(int).tolist(),
        },
    }


def format_validation(found: dict[str, Any]) -> str:
    """Return the table that is printed: judges by aggregation, then the trivial ones."""
    about = found["pairs"]
    share = (
        f"{100 * about['faithful_share']:.1f} % faithful"
        if about["labelled"]
        else "no labels: known answers only"
    )
    lines = [
        f"{about['file']}: {about['num_pairs']} pairs about {about['num_documents']} documents, "
        f"{share}"
    ]
    for name, judge in found["judges"].items():
        for how in AGGREGATIONS if about["labelled"] else ():
            one = judge[how]
            lines.append(
                f"  {name} ({how}): AUROC {_spread(one, 'auroc')}, balanced accuracy "
                f"{_spread(one, 'balanced_accuracy')} at {judge['published_threshold']:g}, best at "
                f"{one['best_threshold']:.3f}"
            )
        lines += format_controls(name, judge["controls"])
        lines.append(f"  {format_costs(name, judge['cost'])}")
    for name, one in found["trivial"].items():
        lines.append(f"  trivial, {name}: AUROC {_numbers(one['auroc'], one['interval'])}")
    return "\n".join(lines)


def _spread(one: dict[str, Any], figure: str) -> str:
    return _numbers(one[figure], one["intervals"][figure])


def _numbers(value: float, ends: Any) -> str:
    return f"{value:.3f}" + ("" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]")
