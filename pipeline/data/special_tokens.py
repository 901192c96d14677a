"""Which special tokens open a prompt and end a response, asked of the tokenizer itself."""

from typing import TYPE_CHECKING

from pipeline.data.templates import render_chat
from pipeline.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "a"
SENTINEL = "smoothkd"
SPACE_MARKS = ("\u2581", "\u0120")  # how SentencePiece and byte-level BPE write a leading space


def opening_ids(template: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids a prompt starts with: what the tokenizer itself puts before a text (BOS).

    A chat template writes its own, so "chat" has none here.
    """
    if template == "chat":
        return []
    alone = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    usual = list(tokenizer(PROBE)["input_ids"])
    for start in range(len(usual)):
        if usual[start : start + len(alone)] == alone:
            return usual[:start]
    return []


def end_id(template: str, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id of the token that ends a response.

    For "chat" it is the first special or added token that the chat template writes after an
    assistant's message (<|im_end|>, <|eot_id|>, <end_of_turn>); where there is none, and for
    every other template, the tokenizer's end-of-sequence token.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token to fall back on.
    """
    if template == "chat":
        turn_end = _turn_end_id(tokenizer)
        if turn_end is not None:
            return turn_end
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has eos_token None, so no response could "
            "end: set eos_token in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def _turn_end_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    messages = [
        {"role": "user", "content": SENTINEL},
        {"role": "assistant", "content": SENTINEL},
    ]
    text = render_chat(tokenizer, messages, 0, add_generation_prompt=False)
    _, _, after = text.rpartition(SENTINEL)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return next((int(token) for token in ids if token in special), None)


def adds_leading_space(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the tokenizer puts a space before every text by itself (Llama-2 does)."""
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    return "".join(tokenizer.convert_ids_to_tokens(ids)).startswith(SPACE_MARKS)
