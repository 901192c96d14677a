"""How much data a stage reads: counted in a tokenised dataset, or expected from stated means."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.config import DataSettings
from pipeline.data.tokenization import TokenizedDataset
from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSize:
    """Examples, their tokens, and where the numbers are from.

    Attributes:
        rows: examples that are kept.
        tokens: of prompts and responses together.
        response_tokens: of the responses.
        longest: most tokens of one example.
        longest_response: most response tokens of one example.
        source: "counted" or "expected".
    """

    rows: int
    tokens: int
    response_tokens: int
    longest: int
    longest_response: int
    source: str

    @property
    def mean_length(self) -> float:
        """Tokens of an example in the mean."""
        return self.tokens / self.rows


def count_tokens(dataset: TokenizedDataset) -> DataSize:
    """Return the size of a tokenised dataset."""
    return size_of_lengths(
        [len(example.input_ids) for example in dataset.examples],
        [example.num_response_tokens for example in dataset.examples],
    )


def size_of_lengths(lengths: Sequence[int], response_lengths: Sequence[int]) -> DataSize:
    """Return the size of examples of these lengths, in tokens."""
    return DataSize(
        rows=len(lengths),
        tokens=int(sum(lengths)),
        response_tokens=int(sum(response_lengths)),
        longest=int(max(lengths)),
        longest_response=int(max(response_lengths)),
        source="counted",
    )


def expect_tokens(stated: Sequence[float], settings: DataSettings) -> DataSize:
    """Return the size a dataset should have.

    Args:
        stated: rows, mean tokens of a prompt, mean tokens of a response.
        settings: its limits; what they would drop or cut is not known and counts as kept.

    Raises:
        ConfigError: not three numbers above 0.
    """
    if len(stated) != 3 or not all(isinstance(v, int | float) and v > 0 for v in stated):
        raise ConfigError(
            f"run.expected of {settings.data} is {list(stated)!r}, expected three numbers: rows, "
            "mean tokens of a prompt, mean tokens of a response"
        )
    rows = min(int(stated[0]), settings.max_examples or int(stated[0]))
    prompt = min(stated[1], settings.max_prompt_tokens)
    response = min(stated[2], settings.max_sequence_tokens - prompt)
    return DataSize(
        rows=rows,
        tokens=round(rows * (prompt + response)),
        response_tokens=round(rows * response),
        longest=settings.max_sequence_tokens,
        longest_response=settings.max_sequence_tokens,
        source="expected",
    )
