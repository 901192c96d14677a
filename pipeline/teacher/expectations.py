"""What a teacher pass will take, said before it starts and again after its first shard."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.data.tokenization import Example
from pipeline.errors import ConfigError
from storage_schema import Plan
from storage_schema.errors import CacheWriteError
from storage_schema.layout import ROW_GROUP_RESPONSES
from storage_schema.location import Location
from storage_schema.order import row_group_starts

# Bytes on disk. docs/results/cache-codec.md has whole files of 2.1 to 3.1 bytes an entry; labels,
# tail mass and counts take about 5 bytes a response token, token ids 1.5 to 2.5 each.
ENTRY_BYTES = (2.0, 2.9)
ROW_BYTES = (2.0, 6.0)
TOKEN_BYTES = (1.0, 2.5)
# Bytes of memory, the peak of write_shard on a row group of 49,152 entries a row.
ENTRY_MEMORY = 28
# What one column of a row group can hold, in Arrow's 32-bit offsets.
MOST_ENTRIES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be scored; `group_tokens` are those of the plan's largest row group."""

    num_shards: int
    num_examples: int
    prompt_tokens: int
    response_tokens: int
    group_tokens: int

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
        group_tokens=_largest_row_group(examples, plan.examples_per_shard),
    )


def _largest_row_group(examples: Sequence[Example], examples_per_shard: int) -> int:
    """Return its response tokens."""
    tokens = np.array([example.num_response_tokens for example in examples], np.int64)
    starts = row_group_starts(len(examples), examples_per_shard)
    return int(np.add.reduceat(tokens, starts[:-1]).max())


def check_row_groups(
    support: Mapping[str, Any], examples_per_shard: int, examples: Sequence[Example]
) -> None:
    """Check that no row group is sure to hold more entries than a column can.

    Args:
        support: of the plan.
        examples_per_shard: of the plan.
        examples: the whole dataset, at least one.

    Raises:
        ConfigError: one is.
    """
    tokens = _largest_row_group(examples, examples_per_shard)
    least, _ = entries_per_row(support)
    if least * tokens > MOST_ENTRIES:
        raise ConfigError(
            f"the largest row group, {tokens} response tokens, would hold {least * tokens} "
            f"entries, a column takes {MOST_ENTRIES}: {_lower(examples_per_shard)}"
        )


def entries_per_row(support: Mapping[str, Any]) -> tuple[int, int]:
    """Return the least and the most entries that a row of a plan with this support can hold.

    At most 1 / min_prob tokens have a probability of min_prob or more.
    """
    k, min_prob = int(support["k"]), float(support["min_prob"])
    if min_prob > 0:
        return 1, max(1, min(k, int(1 / min_prob)))
    return (k if support["kind"] == "top_k" else 1), k


def estimate_bytes(plan: Plan, work: Work) -> tuple[int, int]:
    """Return the least and the most bytes that the shards can be expected to take."""
    low, high = (
        int(
            work.response_tokens * (entries * ENTRY_BYTES[end] + ROW_BYTES[end])
            + work.tokens * TOKEN_BYTES[end]
        )
        for end, entries in enumerate(entries_per_row(plan.support))
    )
    return low, high


def describe_work(plan: Plan, work: Work, cache: Location) -> str:
    """Return lines for people: what will be scored, how large it may get, and the space there is.

    Raises:
        CacheWriteError: there is less space than the least estimate.
    """
    low, high = estimate_bytes(plan, work)
    least, most = entries_per_row(plan.support)
    lines = [
        f"to score: {work.num_examples} responses in {work.num_shards} shards, "
        f"{work.prompt_tokens} prompt and {work.response_tokens} response tokens",
        f"to write: {show_bytes(low)} to {show_bytes(high)} ({least} to {most} entries per "
        "response token)",
        *_describe_memory(plan, work),
    ]
    if not isinstance(cache, Path):  # an object store does not tell
        return "\n".join(lines)
    free = shutil.disk_usage(cache).free
    if free < low:
        raise CacheWriteError(
            f"the shards will take at least {show_bytes(low)}, {cache} has {show_bytes(free)} "
            "left: free some space, or store fewer entries with --k or --min-prob"
        )
    lines[1] += f"; {show_bytes(free)} are free at {cache}"
    if free < high:
        lines.append("warning: that may not be enough; the first shard will tell")
    return "\n".join(lines)


def _describe_memory(plan: Plan, work: Work) -> list[str]:
    """Return a warning where a row group may take more memory than is free, or nothing."""
    needed = entries_per_row(plan.support)[1] * work.group_tokens * ENTRY_MEMORY
    free = psutil.virtual_memory().available
    if needed < free:
        return []
    return [
        f"warning: writing the largest row group may take {show_bytes(needed)} of memory, "
        f"{show_bytes(free)} are free: {_lower(plan.examples_per_shard)}"
    ]


def _lower(examples_per_shard: int) -> str:
    return (
        f"lower --examples-per-shard ({examples_per_shard}) below {ROW_GROUP_RESPONSES}, the "
        "responses of a row group, or store fewer entries with --k or --min-prob"
    )


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
