"""Declares one setting of a stage: its default and the one text that is also its flag's help.

A stage's config is a frozen dataclass whose fields are made by `setting`; the command line
turns each field into exactly one flag (pipeline.cli.command). Standard library only.
"""

import dataclasses
from typing import Any

from pipeline.errors import ConfigError

REQUIRED = dataclasses.MISSING
# The help of --dry-run, the same wherever it is.
DRY_RUN = (
    "Print rows, steps, disk, memory and time, all estimated, without loading weights; run nothing."
)


def setting(help: str, default: Any = REQUIRED, choices: tuple[str, ...] = ()) -> Any:
    """Return a dataclass field carrying its help text, default and allowed values.

    Args:
        help: one sentence, shown by --help and in docs/cli.md.
        default: value when the flag is absent; leave out for a required setting.
        choices: the allowed values of a text setting; () allows any.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def check_local(flag: str, value: str) -> None:
    """Refuse a URL where a local path is needed.

    Raises:
        ConfigError: naming the flag and the URL.
    """
    if "://" in value:
        raise ConfigError(
            f"{flag} {value} is a URL, expected a local path: only a logit cache can lie on an "
            "object store"
        )
