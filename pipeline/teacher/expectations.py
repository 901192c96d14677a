"""What a teacher pass will take, said before it starts and again after its first shard."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.tokenization import Example
from storage_schema import Plan
from storage_schema.errors import CacheWriteError
from storage_schema.location import Location

# Bytes on disk. docs/results/cache-codec.md has whole files of 2.1 to 3.1 bytes an entry; labels,
# tail mass and counts take about 5 bytes a response token, token ids 1.5 to 2.5 each.
ENTRY_BYTES = (2.0, 2.9)
ROW_BYTES = (2.0, 6.0)
TOKEN_BYTES = (1.0, 2.5)


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be scored."""

    num_shards: int
    num_examples: int
    prompt_tokens: int
    response_tokens: int

    @property
    def tokens(self) -> int:
        """Prompt and response tokens together."""
        return self.prompt_tokens + self.response_tokens


def measure_work(plan: Plan, examples: Sequence[Example], shards: Sequence[int]) -> Work:
    """Return what these shards hold."""
    positions = [position for shard in shards for position in plan.shard_examples(shard)]
    return Work(
        num_shards=len(shards),
        num_examples=len(positions),
        prompt_tokens=sum(examples[i].response_start for i in positions),
        response_tokens=sum(examples[i].num_response_tokens for i in positions),
    )


def entries_per_row(plan: Plan) -> tuple[int, int]:
    """Return the least and the most entries that a row of the plan can hold.

    At most 1 / min_prob tokens have a probability of min_prob or more.
    """
    if plan.min_prob > 0:
        return 1, max(1, min(plan.k, int(1 / plan.min_prob)))
    return (plan.k if plan.support["kind"] == "top_k" else 1), plan.k


def estimate_bytes(plan: Plan, work: Work) -> tuple[int, int]:
    """Return the least and the most bytes that the shards can be expected to take."""
    low, high = (
        int(
            work.response_tokens * (entries * ENTRY_BYTES[end] + ROW_BYTES[end])
            + work.tokens * TOKEN_BYTES[end]
        )
        for end, entries in enumerate(entries_per_row(plan))
    )
    return low, high


def describe_work(plan: Plan, work: Work, cache: Location) -> str:
    """Return lines for people: what will be scored, how large it may get, and the space there is.

    Raises:
        CacheWriteError: there is less space than the least estimate.
    """
    low, high = estimate_bytes(plan, work)
    least, most = entries_per_row(plan)
    lines = [
        f"to score: {work.num_examples} responses in {work.num_shards} shards, "
        f"{work.prompt_tokens} prompt and {work.response_tokens} response tokens",
        f"to write: {show_bytes(low)} to {show_bytes(high)} ({least} to {most} entries per "
        "response token)",
    ]
    if not isinstance(cache, Path):  # an object store does not tell
        return "\n".join(lines)
    free = shutil.disk_usage(cache).free
    if free < low:
        raise CacheWriteError(
            f"the shards will take at least {show_bytes(low)}, {cache} has {show_bytes(free)} "
            "left: free some space, or store fewer entries with --k or --min-prob"
        )
    lines[-1] += f"; {show_bytes(free)} are free at {cache}"
    if free < high:
        lines.append("warning: that may not be enough; the first shard will tell")
    return "\n".join(lines)


def describe_first_shard(
    num_bytes: int, first: Work, work: Work, tokens_scored: int, seconds: float
) -> str:
    """Return a line for people: what the first shard says of all of them.

    Args:
        num_bytes: of its file.
        first: what it holds.
        work: what all shards to be written hold.
        tokens_scored: tokens of all examples scored so far.
        seconds: since scoring began.
    """
    per_token = num_bytes / first.response_tokens
    left = (work.tokens - tokens_scored) * seconds / tokens_scored
    return (
        f"first shard: {per_token:.1f} bytes per response token, so about "
        f"{show_bytes(int(per_token * work.response_tokens))} in all; about {show_seconds(left)} "
        "left"
    )


def show_bytes(number: int) -> str:
    """Return a number of bytes for people, in decimal units."""
    size, unit = float(number), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}" if unit != "B" else f"{number} B"


def show_seconds(seconds: float) -> str:
    """Return a time for people: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
