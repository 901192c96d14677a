"""What train-student would refuse of any arm of a sweep, before the first cell runs."""

from pipeline.cli.reference import load_command
from pipeline.errors import ConfigError
from pipeline.models.checkpoint import find_checkpoint
from pipeline.student.fit import check_run
from pipeline.sweep.plan import SweepSettings
from storage_schema.errors import SmoothkdError
from storage_schema.reader import LogitCache


def check_cells(settings: SweepSettings, cache: LogitCache) -> None:
    """Make the checks of a run that need no weights for the first cell of every arm.

    Raises:
        ConfigError: naming the cell, and what its training would refuse.
    """
    command = load_command("train-student")
    place = {"student": settings.student, "cache": "cache", "output": "output"}
    first = {cell.arm: cell for cell in reversed(settings.cells)}
    for cell in reversed(first.values()):
        config = command.build({**settings.train_student, **cell.settings, **place}, cell.name)
        try:
            check_run(config, cache, find_checkpoint(config.student, config.revision))
        except SmoothkdError as error:
            raise ConfigError(f"{cell.name}: {error}") from error
