"""Keep libraries from saying what a user of the commands does not need."""

import sys

from transformers.utils import logging as transformers_logging


def quiet_transformers() -> None:
    """Let errors through only, and show loading bars on a terminal only."""
    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
