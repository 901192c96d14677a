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

from pipeline.cli.config_file import checked_values, read_section, refuse_unknown, setting_type
from pipeline.errors import ConfigError, StoppedError
from pipeline.run_record import is_first_process
from storage_schema.errors import SmoothkdError


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
        refuse_unknown(settings, known, where)
        values = checked_values(settings, self.config_type, where)
        try:
            parameters = dict(self.make_context(self.name, [], default_map=values).params)
            del parameters["as_json"]
            return _make(self.config_type, parameters)
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
            return _make(self.config_type, values)
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
    kind, multiple = setting_type(typing.get_type_hints(config_type)[field.name])
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


def _config_option(name: str, config_type: type) -> click.Option:
    """Return --config; a command that reads other sections too has a setting of that name."""
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    known = {*fields} - {"config"}
    help = f"YAML file whose section {name} gives defaults for these flags."

    def load(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value is not None:
            with _reported_errors():
                section = read_section(Path(value), name, known)
                context.default_map = checked_values(section, config_type, f"{value}: {name}")
        return value

    return click.Option(
        ["--config"],
        type=click.Path(exists=True, dir_okay=False),
        is_eager=True,
        expose_value="config" in fields,
        callback=load,
        help=fields["config"].metadata["help"] if "config" in fields else help,
    )


def _make(config_type: type, values: dict[str, Any]) -> Any:
    """Return the config of these values, ~ at the start of a text being the home folder.

    Raises:
        ConfigError: a text that is required is empty, or what the config itself refuses.
    """
    for field in dataclasses.fields(config_type):
        if field.default is dataclasses.MISSING and values.get(field.name) == "":
            raise ConfigError(f"--{field.name.replace('_', '-')} is empty, expected a text")
    return config_type(
        **{
            name: os.path.expanduser(value)
            if isinstance(value, str) and value.startswith("~")
            else value
            for name, value in values.items()
        }
    )


def _build(config_type: type, values: dict[str, Any]) -> Any:
    try:
        return _make(config_type, values)
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
