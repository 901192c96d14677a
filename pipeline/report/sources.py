"""The documents behind the answers: predictions do not hold them, so the data is read once more.

A sweep's plan has all settings that reading the data needs; scores files alone do not. A document
is recognised by its reference texts; where two documents share them, neither is shown.
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from pipeline.data.config import DataSettings
from pipeline.data.sources import load_records
from pipeline.errors import DataError

Sources = dict[tuple[str, ...], str]


def read_sources(name: str, settings: Mapping[str, Any] | None) -> Sources:
    """Return {reference texts: document} of an evaluation's data; {} where it cannot be read.

    Args:
        name: of the evaluation, for the message.
        settings: of evaluate-student in the sweep's plan, names with underscores or dashes; None
            outside a sweep.
    """
    if not settings or "data" not in settings:
        return {}
    known = {field.name for field in dataclasses.fields(DataSettings)}
    given = {key.replace("-", "_"): value for key, value in settings.items()}
    try:
        records = load_records(DataSettings(**{k: v for k, v in given.items() if k in known}))
    except DataError as error:
        # The answers are worth showing without it, and the page says that it is missing.
        print(f"{name}: documents are not shown beside answers: {error}", file=sys.stderr)
        return {}
    found: Sources = {}
    twice = set()
    for record in records:
        if record.references in found:
            twice.add(record.references)
        if record.context:
            found[record.references] = record.context
    return {references: text for references, text in found.items() if references not in twice}
