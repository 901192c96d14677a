"""The command verify-cache."""

from pipeline.cli.command import stage_command
from pipeline.teacher.verify_config import VerifyCacheConfig

main = stage_command(
    "verify-cache",
    VerifyCacheConfig,
    "pipeline.teacher.verify",
    """Check every byte and row of a cache, and show what it holds and how good its teacher is.

    Damage is named, with exit code 1.

    \b
    verify-cache --cache cache
    verify-cache --cache cache --rescore 16 --teacher teacher
    """,
)
