"""Which models belong together: an arm is one setting, trained with one or several seeds.

Names are those of sweep-alpha: ARM@SEED, where ARM is `alpha-0.1` or, with further axes,
`alpha-0.1,tail-ghost`. `alpha-0` is plain supervised fine-tuning (SFT), every larger alpha is
distillation (KD); a name without alpha is a baseline: the teacher, or the untouched student.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

ALPHA_PATTERN = re.compile(r"alpha[-=](\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?:,(.*))?", re.IGNORECASE)

Role = Literal["teacher", "untouched", "sft", "kd"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One setting and the models trained with it.

    Attributes:
        name: without the seed.
        role: what it is compared as.
        alpha: weight of the teacher's term; None for a baseline.
        variant: its values on further axes, "" without one.
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
        if self.role == "sft":
            text = "SFT"
        elif self.role == "kd":
            text = f"α {self.alpha:g}"
        else:
            return self.name
        return f"{text}, {self.variant}" if self.variant else text


def group_arms(names: Iterable[str]) -> list[Arm]:
    """Return the arms of these models: untouched students, teacher, SFT, then by rising alpha."""
    arms: dict[str, Arm] = {}
    for name in names:
        arm, _, seed = name.partition("@")
        if arm not in arms:
            role, alpha, variant = _read_name(arm)
            arms[arm] = Arm(arm, role, alpha, variant, {})
        arms[arm].models[seed] = name
    order: dict[Role, int] = {"untouched": 0, "teacher": 1, "sft": 2, "kd": 3}
    return sorted(arms.values(), key=lambda arm: (order[arm.role], arm.alpha or 0.0, arm.variant))


def _read_name(arm: str) -> tuple[Role, float | None, str]:
    found = ALPHA_PATTERN.fullmatch(arm)
    if found is None:
        return ("teacher" if arm.startswith("teacher") else "untouched"), None, ""
    alpha = float(found[1])
    return ("kd" if alpha > 0 else "sft"), alpha, found[2] or ""


def first_model(arm: Arm) -> str:
    """Return the model of the arm's first seed: numbers in their order, before other texts."""
    key = min(arm.models, key=lambda seed: (not seed.isdigit(), int(seed) if seed.isdigit() else 0))
    return arm.models[key]
