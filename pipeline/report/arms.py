"""Which models belong together: an arm is one setting, trained with one or several seeds.

Names are those of sweep-alpha: ARM@SEED, where ARM is `alpha-0.1` or, with further axes,
`alpha-0.1,tail-ghost`. `alpha-0` is plain supervised fine-tuning (SFT), every larger alpha is
distillation (KD). An arm of another name has the alpha that the records of its training hold;
without one it is a baseline: the teacher, or the untouched student.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

ALPHA_PATTERN = re.compile(r"alpha[-=](\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?:,(.*))?", re.IGNORECASE)

Role = Literal["teacher", "untouched", "sft", "kd"]
Records = Mapping[str, Mapping[str, Any] | None]
NO_RECORDS: Records = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Arm:
    """One setting and the models trained with it.

    Attributes:
        name: without the seed.
        role: what it is compared as.
        alpha: weight of the teacher's term; None for a baseline.
        variant: its values on further axes, "" without one; the name where a record has the alpha.
        models: {seed: name of the model}; the seed is "" where the name has none.
    """

    name: str
    role: Role
    alpha: float | None
    variant: str
    models: dict[str, str]

    @property
    def label(self) -> str:
        """The name for people: what it is, and its alpha."""
        if self.alpha is None or self.variant == self.name:
            return self.name
        text = "SFT" if self.role == "sft" else f"α {self.alpha:g}"
        return f"{text}, {self.variant.replace(',', ', ')}" if self.variant else text


def group_arms(names: Iterable[str], records: Records = NO_RECORDS) -> list[Arm]:
    """Return the arms of these models: untouched students, teacher, SFT, then by rising alpha.

    Args:
        names: of the models.
        records: {name: run.json of train-student, or None}.
    """
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        arm, _, seed = name.partition("@")
        groups.setdefault(arm, {})[seed] = name
    arms = [
        Arm(arm, *_read_arm(arm, [records.get(name) for name in models.values()]), models)
        for arm, models in groups.items()
    ]
    order: dict[Role, int] = {"untouched": 0, "teacher": 1, "sft": 2, "kd": 3}
    return sorted(arms, key=lambda arm: (order[arm.role], arm.alpha or 0.0, arm.variant))


def _read_arm(
    arm: str, records: Sequence[Mapping[str, Any] | None]
) -> tuple[Role, float | None, str]:
    """Return role, alpha and variant by the name, else by the records where all seeds agree."""
    if found := ALPHA_PATTERN.fullmatch(arm):
        alpha, variant = float(found[1]), found[2] or ""
    elif arm.startswith("teacher"):
        return "teacher", None, ""
    else:
        recorded: set[Any] = {None if one is None else one["identity"]["alpha"] for one in records}
        if len(recorded) != 1 or None in recorded:
            return "untouched", None, ""
        alpha, variant = recorded.pop(), arm
    return ("kd" if alpha > 0 else "sft"), alpha, variant


def first_model(arm: Arm) -> str:
    """Return the model of the arm's first seed: numbers in their order, before other texts."""
    key = min(arm.models, key=lambda seed: (not seed.isdigit(), int(seed) if seed.isdigit() else 0))
    return arm.models[key]
