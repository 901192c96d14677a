"""Hold back a share of the examples for evaluation, whole documents at a time."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from pipeline.errors import DataError
from pipeline.training.collation import TokenSequence

# Running text has no prompt but its opening, which says nothing about the document: its first
# token, or those that a tokenizer puts before it; the longest known opening, GLM's, has two.
OPENING_TOKENS = 2

Example = TypeVar("Example", bound=TokenSequence)


def split_held_out(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Return the examples to train on and those held back, each in the order given.

    Examples with the same prompt are never on both sides, of running text equal texts are not.
    Which are held back is a function of seed and prompts (texts) alone, not of their order.

    Args:
        examples: prompt and response each.
        share: of the examples to hold back, in (0, 1); documents are added until it is reached.
        seed: chooses the documents.

    Raises:
        DataError: nothing would be left to train on.
    """
    held_out = choose_held_out(examples, share, seed)
    kept = [example for place, example in enumerate(examples) if place not in held_out]
    return kept, [examples[place] for place in sorted(held_out)]


def choose_held_out(examples: Iterable[TokenSequence], share: float, seed: int) -> set[int]:
    """Return the places of the examples that split_held_out holds back; reads each one once."""
    groups: dict[bytes, list[int]] = {}
    num_examples = 0
    for num_examples, example in enumerate(examples, 1):
        groups.setdefault(_key(example, seed), []).append(num_examples - 1)
    held_out: set[int] = set()
    for key in sorted(groups):
        if len(held_out) >= share * num_examples:
            break
        held_out.update(groups[key])
    if len(held_out) == num_examples:
        raise DataError(
            f"--eval-share {share} of {num_examples} examples with {len(groups)} different "
            "prompts leaves none to train on: use a smaller share or more data"
        )
    return held_out


def _key(example: TokenSequence, seed: int) -> bytes:
    has_prompt = example.response_start > OPENING_TOKENS
    end = example.response_start if has_prompt else len(example.input_ids)
    prompt = example.input_ids[:end].astype("<i4").tobytes()
    return hashlib.sha256(f"{seed} ".encode() + prompt).digest()
