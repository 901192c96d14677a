"""Say which vocabulary a tokenizer has, so that teacher, cache and student provably share it.

Padding rows of an embedding matrix (Qwen2.5 has 151,936 rows for 151,665 tokens) are no part
of the vocabulary and never make two models differ.
"""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return one more than the largest token id the tokenizer knows (added tokens included)."""
    return int(max(tokenizer.get_vocab().values())) + 1


def fingerprint_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the SHA-256 (hex) of the mapping from token to id, added tokens included."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0]))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
