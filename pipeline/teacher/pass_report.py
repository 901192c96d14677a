"""What a person sees of a teacher pass: expectations, progress, and at the end where time went."""

import time
from collections.abc import Sequence
from types import TracebackType

from pipeline.data.tokenization import Example
from pipeline.progress import Progress
from pipeline.teacher.expectations import describe_first_shard, describe_work, measure_work
from pipeline.teacher.pass_times import PassTimes
from storage_schema import Plan
from storage_schema.location import Location
from storage_schema.shard import shard_path


class PassReport:
    """Shows a pass over some shards; a context manager around the scoring alone."""

    def __init__(
        self, cache: Location, plan: Plan, examples: Sequence[Example], shards: Sequence[int]
    ) -> None:
        """Print what is to be done.

        Raises:
            CacheWriteError: there is clearly too little space for it.
        """
        self._cache, self._plan, self._examples = cache, plan, examples
        self._work = measure_work(plan, examples, shards)
        print(describe_work(plan, self._work, cache))
        self._said_first = False

    def __enter__(self) -> "PassReport":
        self.scoring_begins()
        self._progress = Progress("precompute-logits", self._work.tokens, "tokens").__enter__()
        return self

    def scoring_begins(self) -> None:
        """Start the clock; engines that were loaded inside the block do not count then."""
        self._start = time.monotonic()

    def advance(self, tokens: int) -> None:
        """Count tokens scored."""
        self._progress.advance(tokens)

    def say(self, line: str) -> None:
        """Print a line for people."""
        self._progress.say(line)

    def published(self, shard: int) -> None:
        """Note a shard; after the first of several, say what all of them will take."""
        if self._said_first or self._work.num_shards == 1:
            return
        self._said_first = True
        line = describe_first_shard(
            shard_path(self._cache, shard).stat().st_size,
            measure_work(self._plan, self._examples, [shard]),
            self._work,
            self._progress.done,
            time.monotonic() - self._start,
        )
        self.say(line)

    def finish(self, times: PassTimes) -> dict[str, float | int]:
        """Print and return rates over the block's time, and shares; call it after the block."""
        found = {
            "prompt_tokens": self._work.prompt_tokens,
            "response_tokens": self._work.response_tokens,
            "prompt_tokens_per_s": self._work.prompt_tokens / self._seconds,
            "response_tokens_per_s": self._work.response_tokens / self._seconds,
            "engine_start_seconds": times.engine_start,
            "pass_seconds": self._seconds,
            # Of all engines together; of a lone one the same.
            "engine_seconds": times.seconds,
            **times.shares(),
        }
        print(
            f"scored: {found['prompt_tokens_per_s']:.0f} prompt and "
            f"{found['response_tokens_per_s']:.0f} response tokens/s in {self._seconds:.1f} s "
            f"after {times.engine_start:.1f} s of loading\n"
            f"        time: engine {found['share_engine']:.1%}, waiting for the writer "
            f"{found['share_waiting']:.1%}; beside it: extraction "
            f"{found['share_extraction']:.1%}, encoding and writing {found['share_writing']:.1%}"
        )
        return found

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._seconds = time.monotonic() - self._start
        self._progress.__exit__(kind, error, trace)
