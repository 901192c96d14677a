"""Turn a dataset into token ids: prompt and response encoded apart, limits applied and counted.

Encoding the two apart keeps a merge from crossing the border, so the response always starts at
`response_start`, whatever the tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.data.config import DataSettings
from pipeline.data.records import Record
from pipeline.data.sources import load_records, name_data
from pipeline.data.special_tokens import adds_leading_space, end_id, opening_ids
from pipeline.data.templates import fingerprint_template, render
from pipeline.errors import DataError
from storage_schema import fingerprint_examples, response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENCODE_BATCH = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One prompt with its response.

    Attributes:
        input_ids: int32 [T], prompt then response.
        response_start: index of the first response token, 1 <= response_start < T.
    """

    input_ids: npt.NDArray[np.int32]
    response_start: int

    @property
    def num_response_tokens(self) -> int:
        """N, the number of response tokens, the end token included unless it was cut."""
        return len(self.input_ids) - self.response_start

    @property
    def example_id(self) -> bytes:
        """The 32-byte key of the example, equal to its row's in a cache."""
        return response.example_id(self.input_ids, self.response_start)


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedDataset:
    """The examples kept, and the account of the rows that were not.

    Attributes:
        settings: what was read, and under which limits.
        examples: the examples kept, in the dataset's order.
        records: the record of each example, parallel to `examples`.
        counts: rows, kept, dropped_prompt_too_long, dropped_without_prompt,
            dropped_empty_response, dropped_duplicate, cut_responses, cut_tokens;
            rows = kept + the four dropped.
        fingerprint: SHA-256 (hex) over the example ids in order.
        template_fingerprint: SHA-256 (hex) of the template's name and text.
        end_token_id: the token that ends every response that was not cut.
    """

    settings: DataSettings
    examples: list[Example]
    records: list[Record]
    counts: dict[str, int]
    fingerprint: str
    template_fingerprint: str
    end_token_id: int

    @property
    def num_response_tokens(self) -> int:
        """The response tokens of all examples together."""
        return sum(example.num_response_tokens for example in self.examples)

    def describe(self) -> str:
        """Return two lines for people: what was kept, and what was dropped or cut."""
        return (
            f"{self.settings.data}: {self.counts['kept']} of {self.counts['rows']} rows kept, "
            f"{self.num_response_tokens} response tokens\n"
            f"  {_account(self.counts, self.settings)}"
        )


def _account(counts: dict[str, int], settings: DataSettings) -> str:
    return (
        f"dropped: {counts['dropped_prompt_too_long']} with a prompt over "
        f"{settings.max_prompt_tokens} tokens, {counts['dropped_without_prompt']} without a "
        f"prompt, {counts['dropped_empty_response']} with an empty response, "
        f"{counts['dropped_duplicate']} duplicates; cut at {settings.max_sequence_tokens} tokens: "
        f"{counts['cut_responses']} responses, by {counts['cut_tokens']} tokens"
    )


def tokenize_dataset(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerBase"
) -> TokenizedDataset:
    """Return the dataset's examples under the settings' template and limits.

    Args:
        settings: dataset, template and limits.
        tokenizer: of the teacher or of the student; both give the same ids, or must not meet.

    Raises:
        DataError: the dataset cannot be read, a row does not fit the template, or no row is left.
        ConfigError: the template is "chat" and the tokenizer has no chat template.
        ModelError: the tokenizer has no end-of-sequence token.
    """
    template = settings.template
    template_fingerprint = fingerprint_template(template, tokenizer)
    end = end_id(template, tokenizer)
    records = load_records(settings)
    prompts, texts = encode_prompts(settings, records, tokenizer)
    responses = encode_responses(texts, tokenizer)

    kept = _Kept(settings)
    for record, prompt_ids, response_ids in zip(records, prompts, responses, strict=True):
        kept.add(record, prompt_ids, response_ids, end)
    if not kept.examples:
        raise DataError(
            f"{settings.data}: none of {kept.counts['rows']} rows is left; "
            f"{_account(kept.counts, settings)}"
        )
    return TokenizedDataset(
        settings=settings,
        examples=list(kept.examples.values()),
        records=kept.records,
        counts=kept.counts,
        fingerprint=fingerprint_examples(kept.examples),
        template_fingerprint=template_fingerprint,
        end_token_id=end,
    )


def encode_prompts(
    settings: DataSettings, records: Sequence[Record], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[list[int]], list[str]]:
    """Return each record's prompt as token ids, opening tokens included, and its response's text.

    Raises:
        DataError: a record does not fit the template; the message names dataset and row.
        ConfigError: the template is "chat" and the tokenizer has no chat template.
    """
    template = settings.template
    opening = opening_ids(template, tokenizer)
    with name_data(settings.data):
        texts = [render(template, record, row, tokenizer) for row, record in enumerate(records, 1)]
    prompts = encode(tokenizer, [prompt for prompt, _ in texts])
    return [opening + prompt for prompt in prompts], [response for _, response in texts]


def encode_responses(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the token ids of rendered responses, without their end token."""
    if adds_leading_space(tokenizer):  # or there would be two
        texts = [text.removeprefix(" ") for text in texts]
    return encode(tokenizer, texts)


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without the special tokens a tokenizer adds itself."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), ENCODE_BATCH):
        batch = tokenizer(
            list(texts[start : start + ENCODE_BATCH]),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids += batch["input_ids"]
    return ids


class _Kept:
    """The examples kept so far by their id, with the counts of what was not."""

    def __init__(self, settings: DataSettings) -> None:
        self.settings = settings
        self.examples: dict[bytes, Example] = {}
        self.records: list[Record] = []
        self.counts = dict.fromkeys(
            (
                "rows",
                "kept",
                "dropped_prompt_too_long",
                "dropped_without_prompt",
                "dropped_empty_response",
                "dropped_duplicate",
                "cut_responses",
                "cut_tokens",
            ),
            0,
        )

    def add(self, record: Record, prompt: list[int], response_ids: list[int], end: int) -> None:
        """Keep one example, or count why not."""
        self.counts["rows"] += 1
        if len(prompt) > self.settings.max_prompt_tokens:
            self.counts["dropped_prompt_too_long"] += 1
            return
        if record.lacks_prompt:
            self.counts["dropped_without_prompt"] += 1
            return
        if not record.response.strip() or not response_ids:
            self.counts["dropped_empty_response"] += 1
            return
        ids = [*prompt, *response_ids, end]
        num_over = max(0, len(ids) - self.settings.max_sequence_tokens)
        # Without any prompt the first token of the text is the context of the rest.
        example = Example(
            np.asarray(ids[: len(ids) - num_over], dtype=np.int32), max(1, len(prompt))
        )
        key = example.example_id
        if key in self.examples:
            self.counts["dropped_duplicate"] += 1
            return
        self.examples[key] = example
        self.records.append(record)
        self.counts["kept"] += 1
        self.counts["cut_responses"] += num_over > 0
        self.counts["cut_tokens"] += num_over
