"""Declares one setting of a stage: its default and the one text that is also its flag's help.

Also writes settings back as the command line that gives them.

A stage's config is a frozen dataclass whose fields are made by `setting`; the command line
turns each field into exactly one flag (pipeline.cli.command). Standard library only.
"""

import dataclasses
import shlex
from collections.abc import Mapping
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


def write_command(name: str, settings: Mapping[str, Any]) -> str:
    """Return a command line, quoted for a shell, that gives these settings; None needs no flag.

    Args:
        name: of the command.
        settings: by field name, underscores in it; a tuple or list repeats its flag.
    """
    parts = [name]
    for field, value in settings.items():
        flag = field.replace("_", "-")
        for one in value if isinstance(value, tuple | list) else [value]:
            if isinstance(one, bool):
                parts.append(f"--{flag}" if one else f"--no-{flag}")
            elif one is not None:
                parts += [f"--{flag}", shlex.quote(str(one))]
    return " ".join(parts)


def changed_settings(config: Any) -> dict[str, Any]:
    """Return the settings of a stage's config that are not at their default."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if value != defaults[name]}


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
