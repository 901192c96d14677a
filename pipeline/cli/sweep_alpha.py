"""The command sweep-alpha."""

from pipeline.cli.command import stage_command
from pipeline.sweep.config import SweepAlphaConfig

main = stage_command(
    "sweep-alpha",
    SweepAlphaConfig,
    "pipeline.sweep.run",
    """Train and evaluate a grid of students from one cache: alpha x seed x any further axis.

    Stopped at any moment, the same command continues. A failed cell does not end the others.

    \b
    sweep-alpha --config my.yaml --cache cache --output sweep --seed 0 --seed 1
    sweep-alpha --config my.yaml --cache cache --output sweep --axis tail=renormalize,ghost
    """,
)
