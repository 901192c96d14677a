"""A token's text for people: visible also where it is half a character or a control character."""

import json
import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Change the order or the presence of the text around them, so they are shown by number instead.
HIDDEN = re.compile("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e"
                    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")  # fmt: skip


def visible(text: str) -> str:
    """Return the text with control, direction and lone surrogate characters as ⟨U+202E⟩.

    New lines and tabs stay.
    """
    return HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def token_texts(tokenizer: "PreTrainedTokenizerBase", token_ids: list[int]) -> list[str]:
    """Return each token's own text; bytes that are no whole character as ⟨E2 82⟩.

    Ids the tokenizer does not know (padding rows of the model) are ⟨id 151700⟩.
    """
    pieces = tokenizer.convert_ids_to_tokens(token_ids)
    by_bytes = _is_byte_level(tokenizer)
    return [
        f"⟨id {token_id}⟩" if piece is None else visible(_text(piece, by_bytes))
        for token_id, piece in zip(token_ids, pieces, strict=True)
    ]


def _is_byte_level(tokenizer: "PreTrainedTokenizerBase") -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    state = json.loads(backend.to_str())
    return "ByteLevel" in json.dumps([state.get("decoder"), state.get("pre_tokenizer")])


def _text(piece: str, by_bytes: bool) -> str:
    found = BYTE_TOKEN.fullmatch(piece)
    if found:
        return _decode(bytes([int(found[1], 16)]))
    table = _byte_table()
    if by_bytes and all(letter in table for letter in piece):
        return _decode(bytes(table[letter] for letter in piece))
    return piece.replace("\u2581", " ")


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return f"⟨{data.hex(' ').upper()}⟩"


@cache
def _byte_table() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for.

    Printable bytes stand for themselves, the others, in order, for the letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + number): byte for number, byte in enumerate(others)}
