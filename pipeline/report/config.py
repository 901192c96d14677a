"""Settings of `build-report`. Standard library only, so that --help answers at once."""

import re
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.settings import check_local, setting

# Hex digits that name an example; fewer would name many.
EXAMPLE_PATTERN = re.compile(r"[0-9a-f]{6,64}")
MAX_TOKEN_EXAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class BuildReportConfig:
    """Settings of `build-report`: what to read, what to show of single tokens, where to write."""

    sweep: str | None = setting("Directory of sweep-alpha; or give --scores.", None)
    scores: tuple[str, ...] = setting(
        "Scores file of evaluate-student, in place of --sweep; repeat for several evaluations.", ()
    )
    cache: str | None = setting(
        "Logit cache (directory or URL) for the token view; the sweep's own by default.", None
    )
    token_examples: int = setting(
        "Examples of the token view, and documents whose answers are shown; 0 leaves both out.", 8
    )
    example: tuple[str, ...] = setting(
        "Show this cached example in the token view (first hex digits of its id, 6 at least) in "
        "place of evenly spaced ones; repeat for several.",
        (),
    )
    output: str = setting(
        "Page to write (.html); NAME-charts/ and NAME-token_view.json go beside it.", "report.html"
    )

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: naming the flag and its value.
        """
        if (self.sweep is None) == (not self.scores):
            raise ConfigError("give either --sweep DIRECTORY or --scores FILE")
        if not 0 <= self.token_examples <= MAX_TOKEN_EXAMPLES:
            raise ConfigError(
                f"--token-examples {self.token_examples}: must be 0 to {MAX_TOKEN_EXAMPLES}"
            )
        for example in self.example:
            if not EXAMPLE_PATTERN.fullmatch(example):
                raise ConfigError(
                    f"--example {example!r}: expected 6 to 64 digits of 0-9a-f, the id's first ones"
                )
        if self.example and not self.token_examples:
            raise ConfigError("--example shows tokens, but --token-examples 0 leaves them out")
        if not self.output.endswith(".html"):
            raise ConfigError(f"--output {self.output!r}: must be a file name ending in .html")
        for flag, path in (("--output", self.output), ("--sweep", self.sweep or "")):
            check_local(flag, path)
