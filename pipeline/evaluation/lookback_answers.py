"""Factual rate: what a lookback lens says of the answers a model wrote.

The lens is read and checked against every model before the first one is loaded. It reads the kept
answers, so it can be added to finished scores.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import DataError, ModelError, OutputExistsError
from pipeline.evaluation.answers import read_answers
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.context_tokens import count_context_tokens
from pipeline.evaluation.cost import timed
from pipeline.evaluation.inputs import ModelInputs
from pipeline.evaluation.lookback import attention_layers, lookback_ratios
from pipeline.evaluation.lookback_lens import (
    LookbackLens,
    check_lens_fits,
    read_architecture,
    read_lens,
)
from pipeline.evaluation.model_in_use import ModelInUse
from pipeline.evaluation.scores import aggregate, read_rows, write_rows
from pipeline.evaluation.scores_file import answers_path, predictions_path
from pipeline.evaluation.windows import window_means
from pipeline.generation.requests import Prediction
from pipeline.models.vocabulary import fingerprint_vocabulary
from pipeline.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_lens(path: str | None, inputs: Sequence[ModelInputs]) -> LookbackLens | None:
    """Return the lens, checked to fit every model; None without a path.

    Raises:
        DataError: the file is not there or is no lens.
        ModelError: a model has another architecture, tokenizer or template than the lens.
    """
    if path is None:
        return None
    lens = read_lens(Path(path).expanduser())
    for model in inputs:
        check_lens_fits(
            lens,
            model.name,
            architecture=read_architecture(model.checkpoint),
            vocabulary_fingerprint=fingerprint_vocabulary(model.tokenizer),
            template_fingerprint=model.dataset.template_fingerprint,
        )
    return lens


def check_lens(lens: LookbackLens | None, scores: dict[str, Any]) -> None:
    """Refuse a lens other than the one that models of the scores file were read with.

    Raises:
        OutputExistsError: rates of different lenses are not comparable.
    """
    if lens is None:
        return
    for name, entry in scores["models"].items():
        there = entry.get("lookback_lens", {}).get("fingerprint", lens.fingerprint)
        if there != lens.fingerprint:
            raise OutputExistsError(
                f"model {name!r} was read with another lens (fingerprint there {there[:12]}, asked "
                f"{lens.fingerprint[:12]}), whose rates are not comparable: choose another --output"
            )


def add_lens(
    lens: LookbackLens,
    model: ModelInputs,
    in_use: ModelInUse,
    config: EvaluateStudentConfig,
    engine: str,
    output: Path,
    entry: dict[str, Any],
) -> None:
    """Add what the lens says to the model's rows, stored again, and to its entry.

    The answers are read from their file: nothing is generated.

    Args:
        lens: which fits the model.
        model: which is evaluated otherwise.
        in_use: loads it.
        config: of the run.
        engine: that made the answers.
        output: the scores file.
        entry: the model's, changed in place.

    Raises:
        DataError: the answers are gone, damaged, or not those of the predictions.
        ModelError: the model gives no attention weights, or the lens read other layers.
    """
    answers = read_answers(model, config, engine, output).predictions
    path = predictions_path(output, model.name)
    rows = read_rows(path)
    if [row["prediction"] for row in rows] != [answer.text for answer in answers]:
        raise DataError(
            f"{path} and {answers_path(output, model.name)} hold different answers: delete the "
            f"entry {model.name!r} of {output.name} to score the model again"
        )
    loaded = in_use.load(entry["cost"])
    with timed(entry["cost"], "lookback_lens", len(rows)):
        found = measure_answers(lens, loaded, model, answers)
    for row, values in zip(rows, found, strict=True):
        row["lookback"] = values
    write_rows(path, rows)
    entry |= aggregate(rows, config.ece_bins)
    entry["lookback_lens"] = {
        "fingerprint": lens.fingerprint,
        "fitted_on": lens.model,
        "fitted_on_this_model": model.fingerprint == lens.model_fingerprint,
        "window": lens.window,
        "threshold": lens.threshold,
    }


def measure_answers(
    lens: LookbackLens,
    model: "PreTrainedModel",
    inputs: ModelInputs,
    predictions: Sequence[Prediction],
) -> list[dict[str, Any] | None]:
    """Return the field `lookback` of each row.

    A row without a document has None. Else: `mean_ratio`, over the answer's tokens, layers and
    heads (None for an empty answer); `probabilities` of its windows; `num_factual` of them at the
    lens's threshold; `num_factual_at_half` at 0.5.

    Raises:
        ModelError: the model gives no attention weights, or the lens read other layers.
    """
    layers = tuple(attention_layers(model))
    if layers != lens.layers:
        raise ModelError(
            f"model {inputs.name!r} attends to the whole context in the layers {layers}: the lens "
            f"was fitted on the layers {lens.layers}"
        )
    contexts = count_context_tokens(inputs.dataset, inputs.tokenizer)
    found: list[dict[str, Any] | None] = []
    with Progress(f"{inputs.name}: attention", len(predictions), "documents") as progress:
        for example, num_context, prediction in zip(
            inputs.dataset.examples, contexts, predictions, strict=True
        ):
            prompt_ids = example.input_ids[: example.response_start].tolist()
            found.append(
                None
                if num_context is None
                else _measure(lens, model, prompt_ids, prediction.token_ids, num_context)
            )
            progress.advance()
    return found


def _measure(
    lens: LookbackLens,
    model: "PreTrainedModel",
    prompt_ids: list[int],
    answer_ids: list[int],
    num_context: int,
) -> dict[str, Any]:
    (ratios_NF,) = lookback_ratios(model, prompt_ids, [answer_ids], num_context)
    probabilities_W = lens.probabilities(window_means(ratios_NF, lens.window))
    return {
        "mean_ratio": float(ratios_NF.mean(dtype=np.float64)) if len(ratios_NF) else None,
        "probabilities": [round(value, 6) for value in probabilities_W.tolist()],
        "num_factual": int((probabilities_W >= lens.threshold).sum()),
        "num_factual_at_half": int((probabilities_W >= 0.5).sum()),
    }
