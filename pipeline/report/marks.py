"""Where an answer's invented names and numbers stand in its text."""

import re
from collections.abc import Sequence
from typing import Literal

# evaluate-student joins a name's words by spaces; in the text these may stand between them.
JOINING = r"[\s\-'\u2019.&]+"
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")

Kind = Literal["plain", "name", "number"]


def mark(
    text: str, names: Sequence[str], numbers: Sequence[str]
) -> tuple[list[tuple[str, Kind]], list[str]]:
    """Return the text in parts, and those names and numbers that could not be found in it.

    Args:
        text: the answer.
        names: as in `novel_entities`: words joined by single spaces.
        numbers: as in `novel_numbers`: normalised (1,000 is 1000, 2.50 is 2.5).
    """
    spans: list[tuple[int, int, Kind, str]] = []
    for name in set(names):
        pattern = JOINING.join(re.escape(word) for word in name.split())
        spans += [
            (found.start(), found.end(), "name", name)
            for found in re.finditer(rf"(?<!\w){pattern}(?!\w)", text)
            if found[0]
        ]
    wanted = set(numbers)
    for found in NUMBER.finditer(text):
        number = _normal(found[0])
        if number in wanted:
            spans.append((found.start(), found.end(), "number", number))
    parts: list[tuple[str, Kind]] = []
    end = 0
    # Longer names first, so that a name inside another is not marked twice.
    for start, stop, kind, _ in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start < end:
            continue
        parts += [(text[end:start], "plain"), (text[start:stop], kind)]
        end = stop
    parts.append((text[end:], "plain"))
    there = {found for *_, found in spans}
    absent = [one for one in dict.fromkeys([*names, *numbers]) if one not in there]
    return [part for part in parts if part[0]], absent


def _normal(number: str) -> str:
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", number):
        number = number.replace(",", "")
    if "," in number or number.count(".") > 1:
        return number
    whole, _, rest = number.partition(".")
    rest = rest.rstrip("0")
    whole = whole.lstrip("0") or "0"
    return f"{whole}.{rest}" if rest else whole
