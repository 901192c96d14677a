"""The command build-report."""

from pipeline.cli.command import stage_command
from pipeline.report.config import BuildReportConfig

main = stage_command(
    "build-report",
    BuildReportConfig,
    "pipeline.report.build",
    """Write one self-contained HTML page, and PNGs, from a sweep or from scores files.

    It opens from disk without a network: the answer first, then tables, charts, single tokens.

    \b
    build-report --sweep runs/sweep --output report.html
    build-report --scores runs/demo/scores.json --cache runs/demo/cache --output report.html
    """,
)
