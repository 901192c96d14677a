"""Reads the YAML file of --config: sections, their settings, and what each value may be."""

import types
import typing
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError

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


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which yaml alone would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is there twice; remove one", node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_sections(path: Path) -> dict[str, Any]:
    """Return the sections of a config file.

    Raises:
        ConfigError: the file is not YAML of sections, or has an unknown one.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.load(text, _Loader) or {}  # a SafeLoader
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
        refuse_unknown(settings, known, f"{path}: {name}")
    return settings


def read_settings(section: Any, where: str) -> dict[str, Any]:
    """Return a mapping of settings with underscores in their names; nothing there is {}.

    Raises:
        ConfigError: it is no mapping, or has a setting twice, as a-b and a_b.
    """
    section = section or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{where} is {section!r}, expected settings")
    settings: dict[str, Any] = {}
    for key, value in section.items():
        name = str(key).replace("-", "_")
        if name in settings:
            raise ConfigError(f"{where} has {key!r} twice, with - and with _; remove one")
        settings[name] = value
    return settings


def refuse_unknown(settings: dict[str, Any], known: set[str], where: str) -> None:
    """Check that every setting is known.

    Raises:
        ConfigError: one is not, with all that are.
    """
    for key in settings:
        if key not in known:
            flags = ", ".join(sorted(known)).replace("_", "-")
            raise ConfigError(f"{where} has no setting {key!r}; it has {flags}")


def checked_values(section: dict[str, Any], config_type: type, where: str) -> dict[str, Any]:
    """Refuse YAML values that click would convert without a word; a single value for a list is one.

    Raises:
        ConfigError: a boolean or fraction where a number or whole number is expected, a number
            where a boolean is; null for a setting that is never without a value.
    """
    hints = typing.get_type_hints(config_type)
    checked = {}
    for key, value in section.items():
        kind, multiple = setting_type(hints[key])
        values = value if multiple and isinstance(value, list | tuple) else [value]
        optional = isinstance(hints[key], types.UnionType)
        if any(_is_wrong(one, kind, optional) for one in values):
            shown = "null" if value is None else repr(value)
            raise ConfigError(f"{where}: {key} is {shown}, expected {kind.__name__}")
        checked[key] = values if multiple else value
    return checked


def _is_wrong(value: Any, kind: type, optional: bool) -> bool:
    if value is None:
        return not optional
    wrong = isinstance(value, bool) and kind is not bool
    wrong |= isinstance(value, float) and kind is int
    wrong |= isinstance(value, int | float) and not isinstance(value, bool) and kind is bool
    return wrong or isinstance(value, dict | list)


def setting_type(annotation: Any) -> tuple[type, bool]:
    """Return the type of one value, and whether the flag may be repeated."""
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    if isinstance(annotation, types.UnionType):
        return next(kind for kind in typing.get_args(annotation) if kind is not type(None)), False
    return annotation, False
