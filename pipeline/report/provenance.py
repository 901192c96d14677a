"""Where the results come from: models, data, cache, versions, seeds, commands."""

from typing import Any

from pipeline.report.arms import group_arms
from pipeline.report.inputs import Cell, Evaluation, Inputs
from pipeline.settings import write_command
from storage_schema import LogitCache

Rows = list[tuple[str, ...]]
SHOWN_DIGITS = 16


def model_rows(inputs: Inputs) -> Rows:
    """Return (model, checkpoint, weights, number type, device) of every model evaluated."""
    seen: dict[str, tuple[str, ...]] = {}
    for evaluation in inputs.evaluations:
        for name, entry in evaluation.models.items():
            made = entry["made_with"]
            seen[name] = (
                name,
                entry["checkpoint"],
                entry["fingerprint"][:SHOWN_DIGITS],
                str(made.get("dtype", "")),
                str(made.get("device", "")),
            )
    return list(seen.values())


def data_rows(inputs: Inputs) -> Rows:
    """Return (evaluation, data, records, fingerprint, template, limits, decoding)."""
    plan = (inputs.plan or {}).get("evaluations") or {}
    rows: Rows = []
    for evaluation in inputs.evaluations:
        settings = evaluation.scores["settings"]
        dataset = settings["dataset"]
        rows.append(
            (
                evaluation.name,
                str((plan.get(evaluation.name) or {}).get("data") or _data_name(evaluation)),
                str(dataset.get("num_records", "")),
                str(dataset.get("fingerprint", ""))[:SHOWN_DIGITS],
                str(settings.get("template", "")),
                _pairs(settings.get("limits")),
                _pairs(settings.get("decoding")),
            )
        )
    return rows


def _data_name(evaluation: Evaluation) -> str:
    names = [entry["made_with"].get("data") for entry in evaluation.models.values()]
    return ", ".join(dict.fromkeys(name for name in names if name)) or "not recorded by name"


def _pairs(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value or "")
    return ", ".join(f"{name.replace('_', ' ')} {part}" for name, part in value.items())


def cache_rows(inputs: Inputs, cache: LogitCache | None) -> Rows:
    """Return (what, value) lines on the cache, from itself or from the runs that recorded it."""
    records = [cell.record for cell in inputs.cells if cell.record is not None]
    used = sorted({str(r["identity"].get("cache_fingerprint")) for r in records} - {"None"})
    rows: Rows = [("fingerprint recorded by the training runs", fp) for fp in used]
    if cache is None:
        return rows
    plan, manifest = cache.plan, cache.manifest
    rows += [
        ("fingerprint of the cache read here", cache.fingerprint),
        ("teacher", f"{plan.teacher.get('name')} ({plan.teacher.get('dtype')}, weights "
         f"{str(plan.teacher.get('fingerprint'))[:SHOWN_DIGITS]})"),
        ("data", f"{plan.dataset.get('name')}: {plan.num_examples} examples, "
         f"{manifest.num_response_tokens} response tokens"),
        ("entries", _pairs(plan.support)),
        ("stored as", f"{plan.codec}, "
         f"{manifest.num_bytes / max(1, manifest.num_response_tokens):.1f} bytes a token"),
        ("engine", str(plan.engine.get("name"))),
    ]  # fmt: skip
    return rows


def version_rows(inputs: Inputs) -> Rows:
    """Return (package, versions) over all runs and evaluations; several are all listed."""
    found: dict[str, set[str]] = {}
    sources: list[Any] = [(inputs.plan or {}).get("versions")]
    sources += [cell.record.get("versions") for cell in inputs.cells if cell.record is not None]
    for evaluation in inputs.evaluations:
        sources += [entry["made_with"].get("versions") for entry in evaluation.models.values()]
    for versions in sources:
        for name, value in (versions or {}).items():
            found.setdefault(name, set()).add(str(value))
    return [(name, ", ".join(sorted(values))) for name, values in sorted(found.items())]


def seed_rows(inputs: Inputs) -> Rows:
    """Return (arm, seeds) of every arm that was trained."""
    rows: Rows = []
    records = {cell.name: cell.record for cell in inputs.cells}
    for arm in group_arms(records, records):
        seeds = [
            seed or _recorded_seed(inputs, model) or "not recorded"
            for seed, model in arm.models.items()
        ]
        rows.append((arm.name, ", ".join(seeds)))
    return rows


def _recorded_seed(inputs: Inputs, model: str) -> str:
    record = next((cell.record for cell in inputs.cells if cell.name == model), None)
    return "" if record is None else str(record["identity"].get("seed", ""))


def commands(inputs: Inputs) -> list[str]:
    """Return the commands of training, written anew from their records, and of evaluation."""
    trained = [_training(cell) for cell in inputs.cells if cell.record is not None]
    made = [entry["made_with"] for one in inputs.evaluations for entry in one.models.values()]
    # One run evaluates several models. Scores of before commands were recorded have none.
    return trained + list(dict.fromkeys(one["command"] for one in made if "command" in one))


def _training(cell: Cell) -> str:
    record = cell.record or {}
    # Fingerprints and sums are no settings.
    settings = {
        name: value
        for name, value in {**(record.get("inputs") or {}), **record["identity"]}.items()
        if not name.endswith("_fingerprint") and name != "responses_per_step"
    }
    return write_command(record["command"], {**settings, "output": cell.path})
