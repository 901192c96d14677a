"""Declares one setting of a stage: its default and the one text that is also its flag's help.

A stage's config is a frozen dataclass whose fields are made by `setting`; the command line
turns each field into exactly one flag (pipeline.cli.command). Standard library only.
"""

import dataclasses
from typing import Any

REQUIRED = dataclasses.MISSING


def setting(help: str, default: Any = REQUIRED, choices: tuple[str, ...] = ()) -> Any:
    """Return a dataclass field carrying its help text, default and allowed values.

    Args:
        help: one sentence, shown by --help and in docs/cli.md.
        default: value when the flag is absent; leave out for a required setting.
        choices: the allowed values of a text setting; () allows any.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})
