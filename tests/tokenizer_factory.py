"""A tokenizer whose ids can be written by hand: one token per character, then special tokens."""

import string
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

ALPHABET = string.ascii_letters + string.digits + " \n.,:;!?#'-_▁"
SPECIAL = ("<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<end_of_turn>", "<|eot_id|>")


def ids(text: str) -> list[int]:
    """The ids of plain characters."""
    return [ALPHABET.index(character) for character in text]


def special(token: str) -> int:
    """The id of a special token."""
    return len(ALPHABET) + SPECIAL.index(token)


def make_tokenizer(
    *,
    chat_template: str | None = None,
    adds_bos: bool = False,
    eos: str | None = "<eos>",
    leading_space: bool = False,
    merges: Sequence[tuple[str, str]] = (),
) -> PreTrainedTokenizerFast:
    """Return a tokenizer over ALPHABET; merged pairs get the ids after the special tokens."""
    vocabulary = {character: place for place, character in enumerate(ALPHABET)}
    vocabulary |= {token: len(vocabulary) + place for place, token in enumerate(SPECIAL)}
    vocabulary |= {a + b: len(vocabulary) + place for place, (a, b) in enumerate(merges)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    raw.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    raw.decoder = decoders.Fuse()
    if leading_space:  # as SentencePiece does in Llama-2
        raw.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    if adds_bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", special("<bos>"))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token=eos)
    tokenizer.chat_template = chat_template
    return tokenizer
