"""The command precompute-logits."""

from pipeline.cli.command import stage_command
from pipeline.teacher.precompute_config import PrecomputeConfig

main = stage_command(
    "precompute-logits",
    PrecomputeConfig,
    "pipeline.teacher.precompute",
    """Run the teacher once over a dataset and write its log-probabilities into a cache.

    Stopped at any moment, the same command continues.

    \b
    precompute-logits --teacher teacher --data train.jsonl --output cache
    """,
)
