"""Turns a stage's config class and its run function into a click command.

Every setting becomes exactly one flag with the same default and help. --config reads one
section of a YAML file as defaults; flags override it. Exit codes: 0 done, 1 failed with a
named error, 2 usage, 128 and its number stopped by a signal.
"""

import contextlib
import dataclasses
import importlib
import json
import logging
import os
import signal
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

from pipeline.errors import ConfigError, StoppedError
from pipeline.run_record import is_first_process
from storage_schema.errors import SmoothkdError

# A recipe has a section for each command, one that run_all.sh reads, and one with a name and
# settings for each evaluation of a sweep.
COMMANDS = (
    "finetune-teacher",
    "generate-responses",
    "precompute-logits",
    "verify-cache",
    "train-student",
    "sweep-alpha",
    "evaluate-student",
    "fit-lookback-lens",
    "build-report",
)
CONFIG_SECTIONS = ("run", "evaluations", *COMMANDS)


class StageCommand(click.Command):
    """A command that knows the config its flags build."""

    config_type: type

    def build(self, settings: dict[str, Any], where: str) -> Any:
        """Return the config that settings of a file make, with the defaults of the rest.

        Args:
            settings: values by setting, underscores in the names.
            where: names their place in errors.

        Raises:
            ConfigError: an unknown setting, or a value that the command itself would refuse.
        """
        known = {field.name for field in dataclasses.fields(self.config_type)}
        _refuse_unknown(settings, known, where)
        values = _checked_values(settings, self.config_type, where)
        try:
            parameters = dict(self.make_context(self.name, [], default_map=values).params)
            del parameters["as_json"]
            return self.config_type(**_expanded(parameters))
        except click.ClickException as error:
            raise ConfigError(f"{where}: {error.format_message()}") from error
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def convert(self, name: str, text: str) -> Any:
        """Return the value of one setting from its text on the command line; "null" is none.

        Raises:
            ConfigError: there is no such setting, or the text is no value of its type.
        """
        options = {option.name: option for option in self.params}
        hints = typing.get_type_hints(self.config_type)
        if name not in hints:
            flags = ", ".join(sorted(hints)).replace("_", "-")
            raise ConfigError(f"{self.name} has no setting {name!r}; it has {flags}")
        if text == "null" and isinstance(hints[name], types.UnionType):
            return None
        try:
            return options[name].type.convert(text, options[name], None)
        except click.ClickException as error:
            raise ConfigError(error.format_message()) from error

    def check(self, arguments: list[str]) -> Any:
        """Return the config that command line arguments make, and run nothing.

        Raises:
            ConfigError: what the command itself would say of them.
        """
        try:
            values = dict(self.make_context(self.name, [*arguments]).params)
            del values["as_json"]
            return self.config_type(**_expanded(values))
        except click.ClickException as error:
            raise ConfigError(f"{self.name}: {error.format_message()}") from error
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from error


def stage_command(name: str, config_type: type, stage: str, help: str) -> StageCommand:
    """Return the command that builds a config from flags and runs a stage with it.

    Args:
        name: of the command, and of its section in a config file.
        config_type: frozen dataclass of `pipeline.settings.setting` fields.
        stage: module with `run(config) -> dict`, imported only when the command runs.
        help: one sentence, a blank line, an example.
    """
    options: list[click.Parameter] = [
        _option(config_type, f) for f in dataclasses.fields(config_type) if f.name != "config"
    ]
    options.append(_config_option(name, config_type))
    options.append(
        click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON.")
    )

    def callback(as_json: bool, **values: Any) -> None:
        _quiet_imports()
        with _reported_errors():
            config = _build(config_type, values)
            run: Callable[[Any], dict[str, Any]] = importlib.import_module(stage).run
            # With --json standard output holds the JSON and nothing else.
            with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
                result = run(config)
            if as_json and is_first_process():
                click.echo(json.dumps(result, indent=2, allow_nan=False))

    command = StageCommand(
        name,
        params=options,
        callback=callback,
        help=help,
        context_settings={"show_default": True, "max_content_width": 100},
    )
    command.config_type = config_type
    return command


def _option(config_type: type, field: dataclasses.Field[Any]) -> click.Option:
    kind, multiple = _click_type(typing.get_type_hints(config_type)[field.name])
    flag = "--" + field.name.replace("_", "-")
    required = field.default is dataclasses.MISSING
    choices = field.metadata["choices"]
    # Not default=None: click takes that as a value given, and nothing would be required.
    default: dict[str, Any] = {} if required else {"default": field.default}
    return click.Option(
        [f"{flag}/--no-{flag[2:]}" if kind is bool else flag, field.name],
        type=click.Choice(choices) if choices else kind,
        multiple=multiple,
        required=required,
        show_default=not required and field.default is not None,
        help=field.metadata["help"],
        **default,
    )


def _click_type(annotation: Any) -> tuple[type, bool]:
    """Return the type of one value, and whether the flag may be repeated."""
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    if isinstance(annotation, types.UnionType):
        return next(kind for kind in typing.get_args(annotation) if kind is not type(None)), False
    return annotation, False


def _config_option(name: str, config_type: type) -> click.Option:
    """Return --config; a command that reads other sections too has a setting of that name."""
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    known = {*fields} - {"config"}
    help = f"YAML file whose section {name} gives defaults for these flags."

    def load(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value is not None:
            with _reported_errors():
                section = read_section(Path(value), name, known)
                context.default_map = _checked_values(section, config_type, f"{value}: {name}")
        return value

    return click.Option(
        ["--config"],
        type=click.Path(exists=True, dir_okay=False),
        is_eager=True,
        expose_value="config" in fields,
        callback=load,
        help=fields["config"].metadata["help"] if "config" in fields else help,
    )


def _checked_values(section: dict[str, Any], config_type: type, where: str) -> dict[str, Any]:
    """Refuse YAML values that click would convert without a word; a single value for a list is one.

    Raises:
        ConfigError: a boolean or fraction where a number or whole number is expected.
    """
    hints = typing.get_type_hints(config_type)
    checked = {}
    for key, value in section.items():
        kind, multiple = _click_type(hints[key])
        values = value if multiple and isinstance(value, list | tuple) else [value]
        if any(_is_wrong(one, kind) for one in values):
            raise ConfigError(f"{where}: {key} is {value!r}, expected {kind.__name__}")
        checked[key] = values if multiple and value is not None else value
    return checked


def _is_wrong(value: Any, kind: type) -> bool:
    wrong = isinstance(value, bool) and kind is not bool
    wrong |= isinstance(value, float) and kind is int
    return wrong or isinstance(value, dict | list)


def read_sections(path: Path) -> dict[str, Any]:
    """Return the sections of a config file.

    Raises:
        ConfigError: the file is not YAML of sections, or has an unknown one.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds a {type(document).__name__}, expected sections")
    for section in document:
        if section not in CONFIG_SECTIONS:
            raise ConfigError(
                f"{path}: unknown section {section!r}, expected {', '.join(CONFIG_SECTIONS)}"
            )
    return document


def read_section(path: Path, name: str, known: set[str] | None) -> dict[str, Any]:
    """Return one command's section of a config file, keys with underscores.

    Args:
        path: a YAML file of sections, one a command.
        name: the section; {} when it is absent.
        known: the settings the section may hold; None allows any.

    Raises:
        ConfigError: the file is not YAML of that shape, or names an unknown section or setting.
    """
    settings = read_settings(read_sections(path).get(name), f"{path}: section {name}")
    if known is not None:
        _refuse_unknown(settings, known, f"{path}: {name}")
    return settings


def read_settings(section: Any, where: str) -> dict[str, Any]:
    """Return a mapping of settings with underscores in their names; nothing there is {}.

    Raises:
        ConfigError: it is no mapping.
    """
    section = section or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{where} is {section!r}, expected settings")
    return {str(key).replace("-", "_"): value for key, value in section.items()}


def _refuse_unknown(settings: dict[str, Any], known: set[str], where: str) -> None:
    for key in settings:
        if key not in known:
            flags = ", ".join(sorted(known)).replace("_", "-")
            raise ConfigError(f"{where} has no setting {key!r}; it has {flags}")


def _expanded(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with ~ at the start of a text as the home folder."""
    return {
        name: os.path.expanduser(value)
        if isinstance(value, str) and value.startswith("~")
        else value
        for name, value in values.items()
    }


def _build(config_type: type, values: dict[str, Any]) -> Any:
    try:
        return config_type(**_expanded(values))
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _quiet_imports() -> None:
    """Hold back warnings that libraries give at once, before a stage could; errors stay."""
    # Read when torch is loaded. vLLM's CPU build warns through it of the memory it is bound to.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # An optional CPU kernel is not there; peft imports bitsandbytes wherever it is installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextlib.contextmanager
def _reported_errors() -> typing.Iterator[None]:
    try:
        yield
    except StoppedError as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        click.echo("Error: stopped by Ctrl-C; the same command goes on where it can", err=True)
        raise click.exceptions.Exit(128 + signal.SIGINT) from error
    except SmoothkdError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:  # a full disk, a read-only folder, a file where a folder should be
        if error.filename is None:
            raise
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error
