"""Everything a report reads, opened and checked before anything is drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.report.arms import Arm, group_arms
from pipeline.report.config import BuildReportConfig
from pipeline.report.documents import Document, check_fields, read_document
from pipeline.run_record import RECORD_NAME

EVALUATE, SWEEP, TRAIN = "evaluate-student", "sweep-alpha", "train-student"
SWEEP_VERSION = 1
RESULT_FIELDS: dict[str, type] = {"model": str, "baseline": str, "figure": str, "family": str}
RESULT_FIELDS |= {"difference": float, "resolved": bool, "sentence": str}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One scores file.

    Attributes:
        name: of the evaluation, the file's name without ending.
        path: the file.
        scores: its content.
        arms: its models, grouped.
    """

    name: str
    path: Path
    scores: Document
    arms: list[Arm]

    @property
    def models(self) -> dict[str, Document]:
        """The entries by model name."""
        return dict(self.scores["models"])

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with, unless they have one of their own."""
        return str(self.scores["comparisons"]["baseline"])

    def baseline_of(self, arm: str) -> str:
        """The arm that this arm is compared with."""
        return str(self.scores["comparisons"]["baseline_of"].get(arm, self.baseline))

    def predictions_path(self, model: str) -> Path:
        """Return where evaluate-student put the model's rows."""
        return self.path.parent / "predictions" / self.path.stem / f"{model}.jsonl"


@dataclass(frozen=True, slots=True)
class Cell:
    """One training run: cell.json of a sweep, and the record of train-student.

    Attributes:
        name: ARM@SEED, or the model's name in the scores file.
        path: the student's directory.
        document: cell.json; {} outside a sweep.
        record: run.json; None where there is none, as for a failed cell.
    """

    name: str
    path: Path
    document: Document
    record: Document | None


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that was read.

    Attributes:
        evaluations: at least one.
        cells: training runs that were found.
        plan: sweep.json; None outside a sweep.
        cost: cost.json; None where there is none.
        cache: place of the cache, as given; None when none was named.
    """

    evaluations: list[Evaluation]
    cells: list[Cell]
    plan: Document | None
    cost: Document | None
    cache: str | None


def read_inputs(config: BuildReportConfig) -> Inputs:
    """Return all inputs of a report.

    Raises:
        DataError: a file is missing, damaged or of another version; the path is named.
    """
    if config.sweep is None:
        evaluations = [read_evaluation(Path(path).expanduser()) for path in config.scores]
        _check_names(evaluations)
        return Inputs(evaluations, _cells_of_scores(evaluations), None, None, config.cache)
    sweep = Path(config.sweep).expanduser()
    plan = _read_plan(sweep / "sweep.json")
    paths = sorted((sweep / "scores").glob("*.json"))
    if not paths:
        raise DataError(
            f"{sweep / 'scores'} holds no scores file: the sweep has not finished; run "
            "sweep-alpha again to continue it"
        )
    cost_path = sweep / "cost.json"
    cost = read_document(cost_path, {"totals": dict}, SWEEP) if cost_path.exists() else None
    cache = config.cache or str(plan["cache"].get("name") or "") or None
    evaluations = [read_evaluation(path, SWEEP) for path in paths]
    return Inputs(evaluations, _cells_of_sweep(sweep), plan, cost, cache)


def _read_plan(path: Path) -> Document:
    fields: dict[str, type] = {"format": dict, "cells": list, "cache": dict, "evaluations": dict}
    plan = read_document(path, fields, SWEEP)
    version = plan["format"].get("version")
    if version != SWEEP_VERSION:
        raise DataError(
            f"{path} is of format version {version!r}, this release reads {SWEEP_VERSION}: build "
            "the report with the release that made the sweep"
        )
    return plan


def read_evaluation(path: Path, maker: str = EVALUATE) -> Evaluation:
    """Return one scores file, with every field the report needs checked.

    Args:
        path: the file.
        maker: the command to run again where it is unfinished.

    Raises:
        DataError: it is missing, damaged, or of another version.
    """
    fields: dict[str, type] = {"settings": dict, "models": dict, "comparisons": dict}
    scores = read_document(path, fields, maker)
    if not scores["models"]:
        raise DataError(f"{path} holds no models: run {EVALUATE} again")
    settings = scores["settings"]
    check_fields(settings, {"dataset": dict, "calibration": dict}, f"{path}, settings", EVALUATE)
    for name, entry in scores["models"].items():
        _check_entry(entry, f"{path}, model {name!r}")
    # A sweep names every arm it trained; its baselines may have been trained, but not by it.
    records = {} if maker == SWEEP else _records(scores["models"])
    arms = group_arms(scores["models"], records)
    comparisons, where = scores["comparisons"], f"{path}, comparisons"
    check_fields(comparisons, {"baseline": str, "results": list}, where, EVALUATE)
    own = comparisons.setdefault("baseline_of", {})  # of a file of before there were any
    check_fields(comparisons, {"baseline_of": dict}, where, EVALUATE)
    for number, result in enumerate(comparisons["results"]):
        check_fields(result, RESULT_FIELDS, f"{where}, result {number}", EVALUATE)
        _check_interval(result.get("interval"), f"{where}, result {number}", "the difference")
    for baseline in (comparisons["baseline"], *own.values()):
        if baseline not in {arm.name for arm in arms}:
            raise DataError(
                f"{where}: the baseline {baseline!r} is no model of the file, expected one of "
                f"{', '.join(arm.name for arm in arms)}; run {EVALUATE} again"
            )
    return Evaluation(path.stem, path, scores, arms)


def _check_entry(entry: Any, where: str) -> None:
    fields: dict[str, type] = {"rougeL_f1": float, "num_documents": int, "intervals": dict}
    fields |= {"checkpoint": str, "fingerprint": str, "reliability": dict, "made_with": dict}
    check_fields(entry, fields, where, EVALUATE)
    check_fields(entry["reliability"], {"equal_width": list}, f"{where}, reliability", EVALUATE)
    for name, ends in entry["intervals"].items():
        _check_interval(ends, where, repr(name))


def _check_interval(ends: Any, where: str, name: str) -> None:
    if ends is None:
        return
    numbers = isinstance(ends, list) and [isinstance(end, int | float) for end in ends]
    if numbers != [True, True]:
        raise DataError(
            f"{where}: the interval of {name} is {ends!r}, expected two numbers or null; run "
            f"{EVALUATE} again"
        )


def _check_names(evaluations: list[Evaluation]) -> None:
    names = [evaluation.name for evaluation in evaluations]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(
            f"--scores: two files are named {sorted(twice)[0]}.json, and evaluations are told "
            "apart by their file names; rename one"
        )


def _cells_of_sweep(sweep: Path) -> list[Cell]:
    cells = []
    for path in sorted((sweep / "cells").glob("*/cell.json")):
        document = read_document(path, {"name": str, "state": str}, SWEEP)
        cells.append(_cell(document["name"], path.parent / "student", document))
    return cells


def _cells_of_scores(evaluations: list[Evaluation]) -> list[Cell]:
    """Return the training runs whose folders the scores files name, as far as they are here."""
    places = {
        name: Path(entry["checkpoint"]).expanduser()
        for evaluation in evaluations
        for arm in evaluation.arms
        if arm.alpha is not None
        for name, entry in evaluation.models.items()
        if name in arm.models.values()
    }
    return [_cell(name, path, {}) for name, path in places.items()]


def _cell(name: str, path: Path, document: Document) -> Cell:
    return Cell(name, path, document, _record(path))


def _records(models: Document) -> dict[str, Document | None]:
    """Return the records of training beside the weights of these models, as far as they are."""
    return {name: _record(Path(one["checkpoint"]).expanduser()) for name, one in models.items()}


def _record(path: Path) -> Document | None:
    """Return the record of train-student in a folder; None where there is none of it."""
    place = path / RECORD_NAME
    if not place.exists():
        return None
    record = read_document(place, {"command": str, "identity": dict, "finished": bool}, TRAIN)
    if record["command"] != TRAIN:
        return None
    check_fields(record["identity"], {"alpha": float}, f"{place}, identity", TRAIN)
    return record
