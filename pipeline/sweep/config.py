"""Settings of sweep-alpha; standard library only, read by --help."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.settings import check_local, setting


@dataclass(frozen=True, kw_only=True)
class SweepAlphaConfig:
    """Which cells, from which cache, run where.

    Raises:
        ConfigError: a setting is out of range or contradicts another one.
    """

    config: str | None = setting(
        "YAML file: its section sweep-alpha gives defaults for these flags, train-student the "
        "settings of every cell, evaluate-student and evaluations those of the evaluations.",
        None,
    )
    student: str | None = setting(
        "Model every cell starts from: a directory or a hub name. Default: train-student's.", None
    )
    cache: str = setting("Logit cache written by precompute-logits, a directory or a URL.")
    output: str = setting("Directory of the sweep, new or to be continued.")
    # The method's paper: none, and four magnitudes.
    alpha: tuple[float, ...] = setting(
        "Weight of the KL term; repeat for several. 0 is plain fine-tuning.",
        (0.0, 0.01, 0.1, 1.0, 10.0),
    )
    seed: tuple[int, ...] = setting(
        "Seed of initial weights and data order; repeat for several.", (0,)
    )
    axis: tuple[str, ...] = setting(
        "A further axis NAME=V1,V2: any setting of train-student, by its flag without the dashes; "
        "repeat for several.",
        (),
    )
    baseline_model: tuple[str, ...] = setting(
        "Model that is only evaluated, NAME=PATH: the untouched student, the teacher; repeat for "
        "several.",
        (),
    )
    processes: int = setting(
        "Cells that run at once; on a node with GPUs each sees one of them.", 1
    )
    ray: bool = setting("Run every cell as a task of a running Ray cluster.", False)
    dry_run: bool = setting("Check everything, print the plan, and run nothing.", False)

    def __post_init__(self) -> None:
        refuse_none_or_twice("--alpha", self.alpha)
        refuse_none_or_twice("--seed", self.seed)
        for alpha in self.alpha:
            if not 0 <= alpha < math.inf:
                raise ConfigError(f"--alpha {alpha} must be at least 0 and finite")
        split_axes(self.axis)
        if self.processes < 1:
            raise ConfigError(f"--processes {self.processes} must be at least 1")
        if self.ray and self.processes > 1:
            raise ConfigError(
                f"--ray places the cells itself, --processes is {self.processes}: give one of them"
            )
        check_local("--output", self.output)


def split_axes(values: Sequence[str]) -> dict[str, list[str]]:
    """Return {setting: its values as texts} of the --axis values; names with underscores.

    Raises:
        ConfigError: a value is not NAME=V1,V2, or names an axis or a value twice.
    """
    axes: dict[str, list[str]] = {}
    for value in values:
        flag, separator, rest = value.partition("=")
        name = flag.strip().removeprefix("--").replace("-", "_")
        texts = [text.strip() for text in rest.split(",")]
        if not separator or not name or not all(texts):
            raise ConfigError(f"--axis {value!r}: expected NAME=V1,V2, like tail=ghost,label")
        if name in axes:
            raise ConfigError(f"--axis {value!r}: the axis {name} is given twice; list its values")
        refuse_none_or_twice(f"--axis {flag}", texts)
        axes[name] = texts
    return axes


def refuse_none_or_twice(flag: str, values: Sequence[Any]) -> None:
    """Check a list of values of `flag`, as its message names it.

    Raises:
        ConfigError: there is no value, or one twice.
    """
    if not values:
        raise ConfigError(f"{flag} has no value: expected at least one")
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ConfigError(f"{flag} {value} is given twice")
