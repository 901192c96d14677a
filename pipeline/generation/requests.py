"""What is asked of a generator and what it answers, the same for every engine."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are chosen and where an answer ends.

    Attributes:
        stop_ids: tokens that end an answer, at least one; they are cut off it.
        stop_strings: texts that end an answer; they are cut off its text.
        temperature: 0 takes the most probable token; above it, draws are made.
        top_p: draws are made among the most probable tokens that together reach this mass.
    """

    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is wanted.

    Attributes:
        prompt_ids: token ids of the prompt, at least one.
        max_new_tokens: longest answer in tokens, the stop token included.
        seed: of this answer's draws alone; unused at temperature 0.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer.

    Attributes:
        text: decoded without special tokens, otherwise as written, up to a stop string.
        token_ids: the generated tokens before the stop token; with a stop string, the fewest
            first ones that hold the text.
        hit_token_limit: generation ended because of the limit, not by a stop token or string.
    """

    text: str
    token_ids: list[int]
    hit_token_limit: bool

    @property
    def empty(self) -> bool:
        """Whether there is no text besides white space."""
        return not self.text.strip()

    @property
    def finish_reason(self) -> FinishReason:
        """Why generation ended, in the words that inference servers use."""
        return "length" if self.hit_token_limit else "stop"


def derive_seed(seed: int, prompt_ids: Sequence[int], sample: int) -> int:
    """Return the seed in [0, 2^63) of one answer: a function of seed, prompt and sample alone.

    A prompt's answers therefore depend neither on its place in the dataset nor on its neighbours.
    """
    text = f"{seed} {sample} {' '.join(map(str, prompt_ids))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def to_prediction(
    token_ids: Sequence[int],
    request: Request,
    decoding: Decoding,
    tokenizer: "PreTrainedTokenizerBase",
) -> Prediction:
    """Return the answer in generated tokens that may run on past its end."""

    def decode(ids: Sequence[int]) -> str:
        return str(
            tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    token_ids = list(token_ids[: request.max_new_tokens])
    end = next((at for at, token in enumerate(token_ids) if token in decoding.stop_ids), None)
    token_ids = token_ids[:end]
    text = decode(token_ids)
    stops = [at for stop in decoding.stop_strings if (at := text.find(stop)) >= 0]
    if stops:
        text = text[: min(stops)]
        while token_ids and decode(token_ids[:-1]).startswith(text):
            token_ids.pop()
    return Prediction(text, token_ids, hit_token_limit=end is None and not stops)
