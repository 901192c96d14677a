"""The prompts of a dataset as token ids, for generating responses to them.

They are exactly the prompts that `tokenize_dataset` gives the same rows.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.data.config import DataSettings
from pipeline.data.records import Record
from pipeline.data.sources import load_records
from pipeline.data.special_tokens import end_id, opening_ids
from pipeline.data.templates import fingerprint_template
from pipeline.data.tokenization import encode_prompts
from pipeline.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DROPS = ("dropped_prompt_too_long", "dropped_without_prompt", "dropped_repeated_prompt")


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedPrompts:
    """The prompts kept, and the account of the rows that were not.

    Attributes:
        settings: what was read, and under which limits.
        prompts: token ids of each prompt kept, in the dataset's order, all different.
        records: the record of each prompt; its response may be empty.
        rows: each record's place in the dataset, counted from 1.
        counts: rows, kept, dropped_prompt_too_long, dropped_without_prompt,
            dropped_repeated_prompt; rows = kept + the three dropped.
        fingerprint: SHA-256 (hex) over the prompts in order.
        template_fingerprint: SHA-256 (hex) of the template's name and text.
        end_token_id: the token that ends a response under the template.
    """

    settings: DataSettings
    prompts: list[list[int]]
    records: list[Record]
    rows: list[int]
    counts: dict[str, int]
    fingerprint: str
    template_fingerprint: str
    end_token_id: int

    def describe(self) -> str:
        """Return two lines for people: what was kept, and what was dropped."""
        return (
            f"{self.settings.data}: {self.counts['kept']} prompts of {self.counts['rows']} rows\n"
            f"  {_account(self.counts, self.settings)}"
        )


def tokenize_prompts(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerBase"
) -> TokenizedPrompts:
    """Return the dataset's prompts under the settings' template and prompt limit.

    Raises:
        DataError: the dataset cannot be read, a row does not fit the template, or no row is left.
        ConfigError: the template is "chat" and the tokenizer has no chat template.
        ModelError: the tokenizer has no end-of-sequence token.
    """
    template = settings.template
    records = load_records(settings)
    template_fingerprint = fingerprint_template(template, tokenizer)
    prompts, _ = encode_prompts(settings, records, tokenizer)
    opening = opening_ids(template, tokenizer)
    counts = {"rows": len(records), "kept": 0}
    counts |= dict.fromkeys(DROPS, 0)
    kept: dict[tuple[int, ...], int] = {}
    for place, prompt in enumerate(prompts):
        if len(prompt) > settings.max_prompt_tokens:
            counts["dropped_prompt_too_long"] += 1
        elif prompt == opening or records[place].lacks_prompt:
            counts["dropped_without_prompt"] += 1
        elif tuple(prompt) in kept:
            counts["dropped_repeated_prompt"] += 1
        else:
            kept[tuple(prompt)] = place
    counts["kept"] = len(kept)
    if not kept:
        raise DataError(
            f"{settings.data}: none of {len(records)} rows is left; {_account(counts, settings)}"
        )
    return TokenizedPrompts(
        settings=settings,
        prompts=[list(prompt) for prompt in kept],
        records=[records[place] for place in kept.values()],
        rows=[place + 1 for place in kept.values()],
        counts=counts,
        fingerprint=hashlib.sha256(repr(list(kept)).encode()).hexdigest(),
        template_fingerprint=template_fingerprint,
        end_token_id=end_id(template, tokenizer),
    )


def _account(counts: dict[str, int], settings: DataSettings) -> str:
    return (
        f"dropped: {counts['dropped_prompt_too_long']} with a prompt over "
        f"{settings.max_prompt_tokens} tokens, {counts['dropped_without_prompt']} without a "
        f"prompt, {counts['dropped_repeated_prompt']} with the prompt of an earlier row"
    )
