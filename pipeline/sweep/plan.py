"""sweep.json: what a sweep is. Written before the first cell; another sweep is refused.

A sweep may grow: cells, evaluations and baselines that are not there yet are added. What is there
stays as it is.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cli.command import StageCommand
from pipeline.cli.config_file import read_section, read_sections, read_settings
from pipeline.cli.reference import load_command
from pipeline.errors import ConfigError, OutputExistsError
from pipeline.models.checkpoint import find_checkpoint, fingerprint_checkpoint, fingerprint_shape
from pipeline.run_record import differences, installed_versions, write_json
from pipeline.sweep.cell import COMPARED_WITH, UNCOMPARED
from pipeline.sweep.config import SweepAlphaConfig
from pipeline.sweep.documents import read_document
from pipeline.sweep.grid import GIVEN, Cell, make_cells, read_axes
from storage_schema import open_cache
from storage_schema.reader import LogitCache

PLAN_NAME = "sweep.json"
FORMAT = {"name": "smoothkd-sweep", "version": 1}
# What a sweep makes beside its plan. Each cell is checked on its own, so a lost plan can be remade.
OWN_NAMES = ("baselines", "cells", "cost.json", "scores", "sweep.lock")
# One evaluation without a name of its own.
ONLY_EVALUATION = "evaluation"


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """Everything that decides a sweep's results.

    Attributes:
        axes: {setting: values}, seed among them.
        cells: in the order they are run.
        train_student: complete settings of train-student that all cells share.
        evaluations: {name: settings of evaluate-student given for it}.
        baselines: {name: model that is only evaluated}.
        student: name and fingerprint.
        cache: name, fingerprint, number of examples and of response tokens.
    """

    axes: dict[str, list[Any]]
    cells: list[Cell]
    train_student: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    baselines: dict[str, str]
    student: dict[str, Any]
    cache: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the content of sweep.json."""
        body = dataclasses.asdict(self)
        body["cells"] = [{"name": cell.name, **dataclasses.asdict(cell)} for cell in self.cells]
        return {"format": FORMAT, **body, "versions": installed_versions()}

    @property
    def model_names(self) -> list[str]:
        """The names of all models of a scores file: baselines, then cells."""
        return [*self.baselines, *(cell.name for cell in self.cells)]


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """What the flags and the recipe ask for, every value checked; nothing was opened yet."""

    student: str
    axes: dict[str, list[Any]]
    cells: list[Cell]
    train_student: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    baselines: dict[str, str]


def read_sweep_settings(config: SweepAlphaConfig) -> SweepSettings:
    """Return the cells and evaluations, each built as its command will build it.

    Raises:
        ConfigError: naming the section, cell or evaluation and the value.
    """
    document = {} if config.config is None else read_sections(Path(config.config))
    where = config.config or "sweep-alpha"
    train_student = load_command("train-student")
    known = {field.name for field in dataclasses.fields(train_student.config_type)}
    file = config.config
    base = {} if file is None else read_section(Path(file), "train-student", known)
    student = config.student or base.pop("student", None)
    base.pop("student", None)
    if student is None:
        raise ConfigError("no student: give --student, or train-student.student in --config")
    _refuse_given(base, GIVEN, f"{where}: train-student")
    axes = read_axes(config, train_student)
    cells = make_cells(axes, config.seed)
    place = {"student": str(student), "cache": config.cache, "output": config.output}
    built: Any = None
    for cell in cells:
        built = train_student.build({**base, **cell.settings, **place}, f"{where}: {cell.name}")
    shared = dataclasses.asdict(built)
    baselines = _read_baselines(config, cells)
    return SweepSettings(
        student=str(student),
        axes={**axes, "seed": list(config.seed)},
        cells=cells,
        train_student={k: v for k, v in shared.items() if k not in GIVEN and k not in axes},
        evaluations=_read_evaluations(document, where, baselines, cells),
        baselines=baselines,
    )


def _read_baselines(config: SweepAlphaConfig, cells: list[Cell]) -> dict[str, str]:
    arms = {cell.arm for cell in cells}
    baselines: dict[str, str] = {}
    for value in config.baseline_model:
        name, separator, path = value.partition("=")
        if not (separator and name and path):
            raise ConfigError(f"--baseline-model {value!r}: expected NAME=PATH")
        if "@" in name or name in baselines or name in arms:
            raise ConfigError(
                f"--baseline-model {value!r}: the name {name!r} is another baseline's or an arm's, "
                "or holds an @, which is for cells; choose another"
            )
        baselines[name] = path
    return baselines


def _refuse_given(section: Mapping[str, Any], given: Iterable[str], where: str) -> None:
    for name in given:
        if name in section:
            raise ConfigError(
                f"{where}.{name} is given by sweep-alpha, which would ignore {section[name]!r}; "
                "leave it out"
            )


def _read_evaluations(
    document: Mapping[str, Any], where: str, baselines: Mapping[str, str], cells: list[Cell]
) -> dict[str, dict[str, Any]]:
    """Return the settings of each evaluation, checked together with the names of all models."""
    shared = read_settings(document.get("evaluate-student"), f"{where}: section evaluate-student")
    named = document.get("evaluations") or {ONLY_EVALUATION: {}}
    if not isinstance(named, dict):
        raise ConfigError(f"{where}: evaluations is {named!r}, expected a name and its settings")
    command = load_command("evaluate-student")
    models = [f"{name}=x" for name in (*baselines, *(cell.name for cell in cells))]
    evaluations = {}
    for name, own in named.items():
        section = f"evaluations.{name}" if document.get("evaluations") else "evaluate-student"
        place = f"{where}: {section}"
        if not str(name).replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"{place}: a name becomes a file name: letters, digits, - and _ only")
        settings = {**shared, **read_settings(own, place)}
        _refuse_given(settings, ("model", "output"), place)
        # No file has this name, so that names of baselines are those of `models` alone.
        command.build({**settings, "model": models, "output": "<sweep>/x.json"}, place)
        evaluations[str(name)] = settings
    return evaluations


def make_plan(settings: SweepSettings, config: SweepAlphaConfig) -> tuple[SweepPlan, LogitCache]:
    """Open the cache, find every model, read every dataset; return the plan and the cache.

    Raises:
        SmoothkdError: cache, model or dataset is missing, unfinished or damaged.
    """
    from pipeline.data.sources import load_records

    shared = settings.train_student  # without those that are axes
    cache = open_cache(config.cache, shared.get("local_copy"))
    checkpoint = find_checkpoint(settings.student, shared.get("revision"))
    for path in settings.baselines.values():
        find_checkpoint(path)
    command: StageCommand = load_command("evaluate-student")
    for name, section in settings.evaluations.items():
        section = {k: v for k, v in section.items() if k not in COMPARED_WITH}
        load_records(command.build({**section, "model": ["x=x"], "output": "x.json"}, name))
    fingerprint = fingerprint_shape if shared.get("from_scratch") else fingerprint_checkpoint
    plan = SweepPlan(
        axes=settings.axes,
        cells=settings.cells,
        train_student=settings.train_student,
        evaluations=settings.evaluations,
        baselines=settings.baselines,
        student={"name": settings.student, "fingerprint": fingerprint(checkpoint)},
        cache={
            "name": str(config.cache),
            "fingerprint": cache.fingerprint,
            "num_examples": len(cache),
            "num_response_tokens": cache.manifest.num_response_tokens,
        },
    )
    return plan, cache


def claim_sweep(output: Path, plan: SweepPlan) -> int:
    """Write the plan, or check it against the one that is there; return how many cells are new.

    Raises:
        OutputExistsError: as `check_sweep` says.
    """
    there = check_sweep(output, plan)
    asked = json.loads(json.dumps(plan.to_json()))
    if there != asked:
        write_json(output / PLAN_NAME, asked)
    return len(asked["cells"]) - (0 if there is None else len(there["cells"]))


def check_sweep(output: Path, plan: SweepPlan) -> dict[str, Any] | None:
    """Return the plan that is there, None in a new folder; nothing is written.

    Raises:
        OutputExistsError: another sweep is there, every differing field is named; or a folder
            that holds no sweep.
    """
    path = output / PLAN_NAME
    asked = json.loads(json.dumps(plan.to_json()))
    if not path.exists():
        paths = output.iterdir() if output.is_dir() else ()
        names = [p.name for p in paths if not p.name.startswith(f"{PLAN_NAME}.tmp-")]
        strangers = {*names} - {*OWN_NAMES}
        if strangers:
            raise OutputExistsError(
                f"{output} is not empty ({', '.join(sorted(strangers)[:5])}) and holds no "
                f"{PLAN_NAME}: it is no sweep; choose another --output"
            )
        return None
    there = read_document(path, "a sweep's plan", PLAN_FIELDS)
    old, new = _compared(there), _compared(asked)
    for part in ("cells", "evaluations", "baselines"):
        new[part] = {name: new[part][name] for name in new[part] if name in old[part]}
    # One that is only evaluated is known by its scores, which hold its fingerprint.
    new["baselines"] = {name: old["baselines"][name] for name in new["baselines"]}
    lines = differences(old, new)
    if lines:
        raise OutputExistsError(
            f"{output} holds another sweep:\n  "
            + "\n  ".join(lines)
            + "\nask for what is there and more, choose another --output, or delete that folder"
        )
    return there


PLAN_FIELDS = {
    "format": dict,
    "axes": dict,
    "cells": list,
    "train_student": dict,
    "evaluations": dict,
    "baselines": dict,
    "student": dict,
    "cache": dict,
}


def _compared(document: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a plan that must stay: no places, no versions; cells by name."""
    return {
        "format": document["format"],
        "cells": {cell["name"]: cell["settings"] for cell in document["cells"]},
        "train_student": _without(document["train_student"], UNCOMPARED["train-student"]),
        "evaluations": {
            name: _without(settings, (*COMPARED_WITH, *UNCOMPARED["evaluate-student"]))
            for name, settings in document["evaluations"].items()
        },
        "baselines": document["baselines"],
        "student": {"fingerprint": document["student"]["fingerprint"]},
        "cache": {"fingerprint": document["cache"]["fingerprint"]},
    }


def _without(settings: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}
