"""Marked responses as a model reads them: lookback ratios and a label for every token.

Shape suffixes: N response tokens (the end token left out), F features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.data.layouts import find_layout, to_record
from pipeline.data.records import Record
from pipeline.data.sources import load_rows, name_data
from pipeline.data.templates import render
from pipeline.data.tokenization import Example, TokenizedDataset
from pipeline.errors import DataError, ModelError
from pipeline.evaluation.context_tokens import count_context_tokens, encode_with_offsets
from pipeline.evaluation.lookback import Ratios, lookback_ratios
from pipeline.evaluation.lookback_config import FitLookbackLensConfig
from pipeline.evaluation.scores import document_id, record_id
from pipeline.evaluation.spans import Span, label_tokens, read_spans
from pipeline.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class MarkedText:
    """One marked response, before any model has read it.

    Attributes:
        example: prompt and response ids.
        record: the texts.
        num_context: prompt tokens that are context.
        token_ids: the response's tokens, the end token left out.
        offsets: the characters of the response that each stands for.
        labels_N: bool [N], whether the token's text is supported.
    """

    example: Example
    record: Record
    num_context: int
    token_ids: list[int]
    offsets: list[Span]
    labels_N: npt.NDArray[np.bool_]

    @property
    def document(self) -> str:
        """The document it is about, the unit of folds and of resampling."""
        return document_id(self.record)


def load_spans(config: FitLookbackLensConfig) -> tuple[dict[str, tuple[Span, ...]], int]:
    """Return the unsupported spans of each row by record id, and how many rows were contradicted.

    Of rows with the same texts the first one's spans count, as the dataset keeps the first one; a
    later one that is marked otherwise is counted.

    Raises:
        DataError: a row without the field, without a document, or with spans that do not fit its
            response.
    """
    rows = load_rows(config)
    layout = find_layout(dict.fromkeys(field for row in rows for field in row), config)
    found: dict[str, tuple[Span, ...]] = {}
    num_contradicted = 0
    for number, row in enumerate(rows, 1):
        place = f"{config.data}, row {number}"
        with name_data(config.data):
            record = to_record(row, layout, number)
        if config.spans_field not in row:
            raise DataError(
                f"{place} has no field {config.spans_field!r} (--spans-field); its fields are "
                f"{', '.join(map(repr, row))}"
            )
        if not record.context:
            raise DataError(f"{place} has no document: there is nothing to look back at")
        spans = read_spans(row[config.spans_field], record.response, place)
        num_contradicted += found.setdefault(record_id(record), spans) != spans
    return found, num_contradicted


def mark_tokens(
    dataset: TokenizedDataset,
    tokenizer: "PreTrainedTokenizerBase",
    spans: Mapping[str, tuple[Span, ...]],
) -> list[MarkedText]:
    """Return the dataset's examples with a label for each response token.

    Raises:
        ModelError: the tokenizer gives no character offsets, or not the dataset's tokens.
    """
    counts = count_context_tokens(dataset, tokenizer)
    marked = []
    for number, (example, record, num_context) in enumerate(
        zip(dataset.examples, dataset.records, counts, strict=True), 1
    ):
        if num_context is None:  # load_spans has refused it
            raise DataError(f"row {number} has no document: there is nothing to look back at")
        token_ids, offsets = _response_tokens(dataset, example, record, number, tokenizer)
        labels_N = label_tokens(record.response, offsets, spans[record_id(record)])
        marked.append(MarkedText(example, record, num_context, token_ids, offsets, labels_N))
    return marked


def _response_tokens(
    dataset: TokenizedDataset,
    example: Example,
    record: Record,
    number: int,
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[list[int], list[Span]]:
    """Return the response's token ids, the end token left out, and their characters."""
    _, text = render(dataset.settings.template, record, number, tokenizer)
    there = example.input_ids[example.response_start :].tolist()
    # Tokenisation leaves out a leading space where the tokenizer adds one by itself.
    for written in (text, text.removeprefix(" ")):
        ids, offsets = encode_with_offsets(tokenizer, written)
        if there in (ids[: len(there)], [*ids, dataset.end_token_id]):
            kept = min(len(ids), len(there))
            shift = len(written) - len(record.response)
            return ids[:kept], [(start - shift, end - shift) for start, end in offsets[:kept]]
    raise ModelError(
        f"the tokenizer reads the response of example {example.example_id.hex()[:16]} as other "
        "tokens than the dataset holds"
    )


def read_ratios(model: "PreTrainedModel", texts: list[MarkedText], label: str) -> list[Ratios]:
    """Return the lookback ratios float32 [N, F] of each text; a shared prompt is read once.

    Raises:
        ModelError: the model gives no attention weights, or such as are not finite.
    """
    by_prompt: dict[tuple[bytes, int], list[int]] = {}
    for index, text in enumerate(texts):
        prompt = text.example.input_ids[: text.example.response_start]
        by_prompt.setdefault((prompt.tobytes(), text.num_context), []).append(index)
    found: dict[int, Ratios] = {}
    with Progress(f"{label}: attention", len(texts), "responses") as progress:
        for (prompt_bytes, num_context), places in by_prompt.items():
            prompt_ids = np.frombuffer(prompt_bytes, dtype=np.int32).tolist()
            answers = [texts[place].token_ids for place in places]
            ratios = lookback_ratios(model, prompt_ids, answers, num_context)
            found.update(zip(places, ratios, strict=True))
            progress.advance(len(places))
    return [found[index] for index in range(len(texts))]
