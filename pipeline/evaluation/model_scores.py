"""Everything that is measured of one model without a judge or a lens, and its entry.

Answers, one teacher-forced pass over the gold text, a second one at the fitted temperature, one
over the answers; then each document's row is stored, and the aggregates are computed from the rows.
"""

import functools
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.tokenization import Example
from pipeline.evaluation.answers import generate_answers
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.cost import Costs, timed
from pipeline.evaluation.inputs import ModelInputs, fingerprint_records
from pipeline.evaluation.model_in_use import ModelInUse
from pipeline.evaluation.scores import aggregate, document_id, score_document, write_rows
from pipeline.evaluation.scores_file import predictions_path
from pipeline.evaluation.teacher_forced import GoldScores, score_gold_tokens
from pipeline.evaluation.temperature import cross_fit
from pipeline.generation.requests import Prediction
from pipeline.models.vocabulary import fingerprint_vocabulary
from pipeline.run_record import installed_versions
from pipeline.settings import changed_settings, write_command


def score_model(
    model: ModelInputs,
    in_use: ModelInUse,
    config: EvaluateStudentConfig,
    engine: str,
    output: Path,
) -> dict[str, Any]:
    """Return the entry of one model, after storing its rows.

    Raises:
        DataError: the kept answers are damaged.
        EngineError: vLLM does not start, or stops.
        ModelError: the model does not load, or gives a gold token no finite log-probability.
        OutputExistsError: answers made otherwise lie under the model's name.
    """
    start = time.monotonic()
    costs: Costs = {}
    dataset = model.dataset
    answers = generate_answers(model, in_use, config, engine, output, costs)
    loaded = in_use.load(costs)
    gold, rescaled = _read_gold(loaded, model, config, costs)
    confidences = _read_own(loaded, model, answers.predictions, config, costs)
    with timed(costs, "rouge_and_overlap", len(gold)):
        parts = (dataset.examples, dataset.records, answers.predictions, confidences)
        rows = [score_document(*one) for one in zip(*parts, gold, rescaled, strict=True)]
    write_rows(predictions_path(output, model.name), rows)
    with timed(costs, "aggregates", len(rows)):
        figures = aggregate(rows, config.ece_bins)
    return {
        "checkpoint": model.checkpoint.name,
        **model.identity,
        "documents_fingerprint": fingerprint_records(dataset.records),
        "template_fingerprint": dataset.template_fingerprint,
        "vocabulary_fingerprint": fingerprint_vocabulary(model.tokenizer),
        "counts": dict(dataset.counts),
        **figures,
        "seconds": round(time.monotonic() - start, 3),
        "cost": costs,
        "made_with": {
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "device": str(loaded.device),
            "batch_size": config.batch_size,
            "data": config.data,
            "command": write_command("evaluate-student", changed_settings(config)),
            "versions": {**installed_versions(), "rouge-score": version("rouge-score")},
            "answers": answers.made_with,
        },
    }


def _read_gold(
    loaded: Any, model: ModelInputs, config: EvaluateStudentConfig, costs: Costs
) -> tuple[list[GoldScores], Sequence[tuple[float, GoldScores] | None]]:
    """Return what the model says of the gold text, as it is and at the fitted temperatures."""
    dataset = model.dataset
    score = functools.partial(
        score_gold_tokens,
        loaded,
        dataset.examples,
        batch_size=config.batch_size,
        num_bins=config.ece_bins,
    )
    with timed(costs, "teacher_forcing", len(dataset.examples)):
        gold = score(label=f"{model.name}: gold text")
    nll_DG = np.array([scores.nll_G for scores in gold])
    fitted = cross_fit(nll_DG, [document_id(record) for record in dataset.records])
    if fitted is None:
        return gold, [None] * len(gold)
    with timed(costs, "teacher_forcing_rescaled", len(dataset.examples)):
        rescaled = score(
            label=f"{model.name}: gold text, rescaled", temperatures=fitted.of_document
        )
    return gold, list(zip(fitted.of_document, rescaled, strict=True))


def _read_own(
    loaded: Any,
    model: ModelInputs,
    predictions: Sequence[Prediction],
    config: EvaluateStudentConfig,
    costs: Costs,
) -> list[float | None]:
    """Return exp(mean log-probability) of each answer's tokens, at temperature 1; None if empty."""
    places = [place for place, one in enumerate(predictions) if one.token_ids]
    found: list[float | None] = [None] * len(predictions)
    own = []
    for place in places:
        example = model.dataset.examples[place]
        prompt = example.input_ids[: example.response_start]
        answer = np.array(predictions[place].token_ids, dtype=np.int32)
        own.append(Example(np.concatenate([prompt, answer]), len(prompt)))
    with timed(costs, "own_answers", len(own)):
        scores = score_gold_tokens(
            loaded,
            own,
            batch_size=config.batch_size,
            num_bins=config.ece_bins,
            label=f"{model.name}: own answers",
            temperatures=[1.0] * len(own),
        )
    for place, one in zip(places, scores, strict=True):
        found[place] = float(np.exp(one.tokens.label_logprobs.mean(dtype=np.float64)))
    return found
