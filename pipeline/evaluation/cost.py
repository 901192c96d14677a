"""What each part of an evaluation costs: its rows, seconds, and rows a second."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Costs = dict[str, dict[str, Any]]


@contextmanager
def timed(costs: Costs, part: str, num_rows: int) -> Iterator[None]:
    """Add what the block takes to `costs` under the name `part`.

    Args:
        costs: changed in place.
        part: what is done, "generation" for example.
        num_rows: rows it is done to; 0 where it has none, as loading.
    """
    start = time.monotonic()
    yield
    seconds = time.monotonic() - start
    rate = round(num_rows / max(seconds, 1e-9), 3) if num_rows else None
    costs[part] = {"rows": num_rows, "seconds": round(seconds, 3), "rows_per_second": rate}


def format_costs(name: str, costs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one line for people: what each part took and how fast it was."""
    parts = []
    for part, cost in costs.items():
        rate = "" if cost["rows_per_second"] is None else f" ({cost['rows_per_second']:.3g} rows/s)"
        parts.append(f"{part.replace('_', ' ')} {cost['seconds']:.1f} s{rate}")
    return f"cost of {name}: " + ", ".join(parts)
