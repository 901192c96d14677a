"""The cells of a sweep: every combination of the axes, each with the settings of its student.

Cells are ordered seed by seed, so that the first seed's answer is there early.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.cli.command import StageCommand
from pipeline.errors import ConfigError
from pipeline.sweep.config import SweepAlphaConfig, refuse_none_or_twice, split_axes

# They shape the KL term alone: students at alpha 0 that differ only in them are one student.
KL_SETTINGS = (
    "alpha_mode",
    "alpha_schedule",
    "divergence",
    "min_prob",
    "normalize_loss",
    "tail",
    "teacher_temperature",
    "temperature",
    "top_k",
)
# What the sweep itself gives every cell.
GIVEN = ("alpha", "cache", "dry_run", "output", "seed", "student")


@dataclass(frozen=True, slots=True)
class Cell:
    """One student: its name ARM@SEED, and its values of the axes, alpha and seed among them."""

    arm: str
    seed: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The name its scores have."""
        return f"{self.arm}@{self.seed}"


def read_axes(config: SweepAlphaConfig, train_student: StageCommand) -> dict[str, list[Any]]:
    """Return {setting: values} of alpha and every further axis, each value of its own type.

    Raises:
        ConfigError: an axis is no setting of train-student, or a value is none of its type, or
            there twice in two wordings.
    """
    axes: dict[str, list[Any]] = {"alpha": list(config.alpha)}
    for name, texts in split_axes(config.axis).items():
        flag = name.replace("_", "-")
        if name in GIVEN:
            raise ConfigError(f"--axis {flag}: sweep-alpha sets it; use --{flag}")
        try:
            axes[name] = [train_student.convert(name, text) for text in texts]
            refuse_none_or_twice("the value", axes[name])
        except ConfigError as error:
            raise ConfigError(f"--axis {flag}={','.join(texts)}: {error}") from error
    return axes


def make_cells(axes: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> list[Cell]:
    """Return the cells of all combinations; at alpha 0 the axes of the KL term do not count.

    Raises:
        ConfigError: two combinations have one name.
    """
    arms: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        if settings["alpha"] == 0:
            settings = {k: v for k, v in settings.items() if k not in KL_SETTINGS}
        name = name_arm(settings)
        if arms.setdefault(name, settings) != settings:
            raise ConfigError(f"{arms[name]} and {settings} would both be named {name}")
    return [
        Cell(name, seed, {**settings, "seed": seed})
        for seed in seeds
        for name, settings in arms.items()
    ]


def name_arm(settings: Mapping[str, Any]) -> str:
    """Return the name of a combination, like "alpha-0.1,tail-ghost,top-k-8"."""
    return ",".join(f"{key.replace('_', '-')}-{_text(value)}" for key, value in settings.items())


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).removesuffix(".0")


def count_steps(settings: Mapping[str, Any], num_examples: int) -> int:
    """Return the optimiser steps of a cell; fewer where it stops early.

    Args:
        settings: of train-student, complete.
        num_examples: responses in the cache.
    """
    if settings["max_steps"] is not None:
        return int(settings["max_steps"])
    held_out: float = num_examples * settings["eval_share"]
    trained_on = num_examples - round(held_out)
    epochs: float = settings["epochs"]
    return math.ceil(epochs * math.ceil(trained_on / per_step(settings)))


def per_step(settings: Mapping[str, Any]) -> int:
    """Return the responses of an optimiser step."""
    return int(settings["batch_size"] * settings["gradient_accumulation_steps"])
