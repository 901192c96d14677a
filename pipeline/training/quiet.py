"""Keep transformers from saying what a user of the commands does not need."""

import sys

from transformers.utils import logging


def quiet_transformers() -> None:
    """Let errors through only, and show loading bars on a terminal only."""
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
