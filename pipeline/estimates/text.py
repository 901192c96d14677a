"""Words the estimates of pipeline.estimates.stages for people: a few lines a stage."""

from typing import Any


def describe(name: str, estimate: dict[str, Any]) -> str:
    """Return the lines of one stage."""
    lines = [name]
    if "parameters" in estimate:
        lines.append(
            f"  model    {estimate['parameters']:,} parameters\n"
            f"  data     {estimate['rows']:,} rows ({estimate['rows_are']}), "
            f"{estimate['prompt_tokens']:,} prompt and {estimate['response_tokens']:,} response "
            "tokens"
        )
    if _plan(estimate):
        lines.append(f"  plan     {_plan(estimate)}")
    if "disk_bytes" in estimate:
        lines.append(f"  disk     {_parts(estimate['disk_bytes'])}{_per_token(estimate)}")
    memory = estimate["memory_bytes"]
    parts = {part: size for part, size in memory.items() if part != "total"}
    of_what = f" = {_parts(parts)}" if parts else ""
    fits = ", ".join(estimate["fits"]) or "none of the devices below"
    lines.append(f"  memory   {bytes_text(memory['total'])} a GPU{of_what}; fits {fits}")
    hours = ", ".join(
        f"{name} {hours_text(value)}" for name, value in estimate["gpu_hours"].items()
    )
    lines.append(f"  time     {hours} (device time, all devices together)")
    return "\n".join(lines)


def _plan(estimate: dict[str, Any]) -> str:
    if "shards" in estimate:
        return f"{estimate['shards']} shards on {_gpus(estimate['gpus'])}"
    if "steps" in estimate:
        return (
            f"{estimate['steps']:,} steps of {estimate['responses_per_step']} responses on "
            f"{_gpus(estimate['gpus'])}"
        )
    if "cells" in estimate:
        return (
            f"{estimate['cells']} students trained and evaluated, {estimate['baselines']} more "
            "models evaluated"
        )
    return ""


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _per_token(estimate: dict[str, Any]) -> str:
    if "bytes_per_response_token" not in estimate:
        return ""
    return (
        f" ({estimate['bytes_per_response_token']:.0f} bytes and "
        f"{estimate['entries_per_response_token']:.0f} entries a response token)"
    )


def _parts(parts: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {bytes_text(size)}" for name, size in parts.items())


def bytes_text(size: float) -> str:
    """Return a number of bytes in decimal units."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.0f} kB"


def hours_text(hours: float) -> str:
    """Return a time in hours or minutes."""
    if hours >= 1:
        return f"{hours:.3g} h"
    if hours * 60 >= 1:
        return f"{hours * 60:.0f} min"
    return "under 1 min"
