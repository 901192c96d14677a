"""Errors of the stages; the family tree is drawn in storage_schema.errors."""

from storage_schema.errors import SmoothkdError


class ConfigError(SmoothkdError):
    """A setting is missing, out of range or contradicts another one."""


class DataError(SmoothkdError):
    """A dataset cannot be found or read, or does not have the expected fields."""


class ModelError(SmoothkdError):
    """A model, tokenizer or adapter cannot be loaded or does not fit its partner."""


class OutputExistsError(SmoothkdError):
    """The output path already holds something made with other settings."""


class OutputWriteError(SmoothkdError):
    """The operating system refuses to write a file of an output: the disk is full."""


class MissingPackageError(SmoothkdError):
    """An optional package is needed for what was asked."""


class EngineError(SmoothkdError):
    """An engine did not start, stopped, or returned something other than what was asked."""


class SweepError(SmoothkdError):
    """Cells of a sweep failed; the others are done."""


class StoppedError(SmoothkdError):
    """A signal ended the work; what was finished is kept.

    Attributes:
        exit_code: 128 and the signal's number, as shells have it.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
