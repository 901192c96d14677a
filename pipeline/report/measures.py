"""The figures that the report shows: their names for people, units and good directions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Better = Literal["higher", "lower", "zero", "neither"]
ARROWS: dict[Better, str] = {"higher": "↑", "lower": "↓", "zero": "→ 0", "neither": ""}


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a scores file.

    Attributes:
        name: its name there.
        label: its name for people.
        better: the good direction.
        scale: 100 where it is shown in percent, and its differences in points.
        unit: behind a value.
        faithful: it measures whether answers keep to their source.
    """

    name: str
    label: str
    better: Better
    scale: float = 100.0
    unit: str = "%"
    faithful: bool = False

    @property
    def difference_unit(self) -> str:
        """The unit behind a difference."""
        return "points" if self.scale == 100.0 else self.unit

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the greatest value it can have, unscaled: a share, or no less than 0."""
        return -1.0 if self.better == "zero" else 0.0, 1.0 if self.scale == 100.0 else math.inf


ROUGE = Measure("rougeL_f1", "ROUGE-L", "higher")
FACTUAL_RATE = Measure("factual_rate", "factual rate", "higher", faithful=True)
NEW_NAMES = Measure("novel_entity_rate", "names not in the source", "lower", faithful=True)
NEW_NUMBERS = Measure("novel_number_rate", "numbers not in the source", "lower", faithful=True)
GAP = Measure("overconfidence_gap", "over-confidence gap", "zero")
ECE = Measure("ece", "ECE", "lower")
NLL = Measure("response_nll_nats", "NLL of the gold text", "lower", 1.0, "nats/token")
DENSITY = Measure("density", "copied density", "neither", 1.0, "words")
WORDS = Measure("mean_prediction_words", "answer length", "neither", 1.0, "words")
CONSISTENCY = "_consistency"
# Half an interval of 0.9999999 is 1.
ROUNDING = 1e-6


def find_measures(entries: Iterable[Mapping[str, Any]]) -> list[Measure]:
    """Return the measures that any of these entries has, in the order of the report's columns."""
    entries = list(entries)
    judges = list(dict.fromkeys(j for entry in entries for j in entry.get("judges") or {}))
    known = [
        ROUGE,
        *(consistency(judge) for judge in judges),
        *(FACTUAL_RATE, NEW_NAMES, NEW_NUMBERS, GAP, ECE, NLL, DENSITY, WORDS),
    ]
    return [m for m in known if any(entry.get(m.name) is not None for entry in entries)]


def consistency(judge: str) -> Measure:
    """Return the measure of one judge's mean score."""
    label = f"factual consistency ({judge})"
    return Measure(f"{judge}{CONSISTENCY}", label, "higher", faithful=True)


def capital(text: str) -> str:
    """Return the text with its first letter upper-case."""
    return text[:1].upper() + text[1:]


def format_value(measure: Measure, value: float | None, *, signed: bool = False) -> str:
    """Return the value in the measure's scale, three significant digits or so; "–" for none."""
    if value is None:
        return "–"
    number = value * measure.scale
    return _number(number, 2 if abs(number) < 10 else 1, signed=signed)


def format_interval(measure: Measure, ends: Sequence[float] | None) -> str:
    """Return "[low, high]" in the measure's scale, "" without an interval."""
    if ends is None:
        return ""
    decimals = _decimals(measure, ends)
    return "[" + ", ".join(_number(end * measure.scale, decimals) for end in ends) + "]"


def format_change(measure: Measure, change: float, ends: Sequence[float] | None) -> str:
    """Return "+1.2 points [0.4, 2.0]", as exact as the interval is narrow."""
    if ends is None:
        return f"{format_value(measure, change, signed=True)} {measure.difference_unit}"
    value = _number(change * measure.scale, _decimals(measure, ends), signed=True)
    return f"{value} {measure.difference_unit} {format_interval(measure, ends)}"


def _decimals(measure: Measure, ends: Sequence[float]) -> int:
    """Return the decimals that give half an interval two digits, 1 to 3."""
    half = (ends[1] - ends[0]) * measure.scale / 2
    return 1 if half <= 0 else min(3, max(1, 1 - math.floor(math.log10(half) + ROUNDING)))


def _number(number: float, decimals: int, *, signed: bool = False) -> str:
    text = f"{number:+.{decimals}f}" if signed else f"{number:.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")
