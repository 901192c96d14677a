"""Reads a recipe and prints what run_all.sh needs of it, as shell assignments:

python -m pipeline.cli.recipe demo          # a packaged recipe
python -m pipeline.cli.recipe my.yaml
python -m pipeline.cli.recipe --dry-run my.yaml    # what each stage needs, estimated, instead
"""

import os
import shlex
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.cli.config_file import read_section
from pipeline.cli.reference import load_command
from pipeline.errors import ConfigError
from storage_schema.errors import SmoothkdError

RUN_SETTINGS = {"output", "demo_model", "baselines", "expected"}
# What run_all.sh gives the commands it calls: a recipe's own value would be ignored.
FILLED_IN = {
    "finetune-teacher": ("output",),
    "generate-responses": ("output", "model"),
    "precompute-logits": ("output",),
    "sweep-alpha": ("output", "cache", "student", "baseline_model"),
}
BASELINES = ("student", "teacher")


def find_recipe(name: str) -> Path:
    """Return the recipe at a path ending in .yaml, or the packaged one of that name.

    Raises:
        ConfigError: there is none.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ConfigError(f"no recipe at {name}")
        return Path(name).absolute()
    packaged = Path(str(files("pipeline.recipes")))
    path = packaged / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(found.stem for found in packaged.glob("*.yaml")))
        raise ConfigError(f"no recipe {name!r}: there are {names}, or give a path ending in .yaml")
    return path


def read_recipe(path: Path) -> dict[str, str]:
    """Return what run_all.sh needs to know, as strings; lists are separated by spaces.

    Raises:
        ConfigError: a setting of any stage is missing or wrong; the last stage's too, so that
            nothing is found out after an hour.
    """
    run = read_section(path, "run", RUN_SETTINGS)
    output = run.get("output")
    if not isinstance(output, str) or not output:
        raise ConfigError(f"{path}: run.output is {run.get('output')!r}, expected a directory name")
    output = run["output"] = os.path.expanduser(output)
    sections = {name: read_section(path, name, None) for name in FILLED_IN}
    student = read_section(path, "train-student", None).get("student")
    if student is None:
        raise ConfigError(f"{path}: train-student names no student")
    finetune = bool(sections["finetune-teacher"])
    generate = bool(sections["generate-responses"])
    _refuse_filled_in(path, sections, finetune, generate)
    teacher = f"{output}/teacher" if finetune else sections["precompute-logits"].get("teacher")
    if teacher is None:
        raise ConfigError(
            f"{path}: no teacher: give a section finetune-teacher, or precompute-logits.teacher"
        )
    baselines = _read_baselines(path, run)
    models = {"student": str(student), "teacher": str(teacher)}
    build_stages(path, output, models, baselines, finetune, generate)
    return {
        "config": str(path),
        "output": output,
        "demo_model": os.path.expanduser(str(run.get("demo_model") or "")),
        "baselines": " ".join(baselines),
        **{name: os.path.expanduser(place) for name, place in models.items()},
        "finetune": "yes" if finetune else "",
        "generate": "yes" if generate else "",
    }


def _refuse_filled_in(
    path: Path, sections: dict[str, dict[str, Any]], finetune: bool, generate: bool
) -> None:
    """Refuse settings that run_all.sh gives itself: they would be ignored."""
    connected = (("teacher", finetune), ("data", generate))
    for section, names in FILLED_IN.items():
        if section == "precompute-logits":
            names = (*names, *(name for name, is_given in connected if is_given))
        for name in names:
            if name in sections[section]:
                raise ConfigError(
                    f"{path}: {section}.{name} is given by run_all.sh, which would ignore "
                    f"{sections[section][name]!r}; leave it out"
                )


def build_stages(
    path: Path,
    output: str,
    models: dict[str, str],
    baselines: list[str],
    finetune: bool,
    generate: bool,
) -> dict[str, Any]:
    """Return every stage's config as run_all.sh will ask for it, and the settings of the sweep.

    Raises:
        ConfigError: naming recipe, section and value.
    """
    # Not above: it is the one module here that knows what a sweep is.
    from pipeline.sweep.plan import read_sweep_settings

    common = ["--config", str(path), "--output", output]
    sweep = [*common, "--cache", output, "--student", models["student"]]
    for name in baselines:
        sweep += ["--baseline-model", f"{name}={models[name]}"]
    scored = [*common, "--teacher", models["teacher"]]
    stages = {}
    try:
        if finetune:
            stages["finetune-teacher"] = load_command("finetune-teacher").check(common)
        if generate:
            command = load_command("generate-responses")
            stages["generate-responses"] = command.check([*common, "--model", models["teacher"]])
            scored += ["--data", generated_data(output)]
        stages["precompute-logits"] = load_command("precompute-logits").check(scored)
        stages["sweep-alpha"] = read_sweep_settings(load_command("sweep-alpha").check(sweep))
    except ConfigError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise ConfigError(f"{where}{error}") from error
    return stages


def generated_data(output: str) -> str:
    """Return where the teacher's own responses lie: the data of a recipe that generates them."""
    return f"{output}/responses/responses.jsonl"


def _read_baselines(path: Path, run: dict[str, Any]) -> list[str]:
    values = run.get("baselines", ["student"])
    if not isinstance(values, list) or any(value not in BASELINES for value in values):
        raise ConfigError(
            f"{path}: run.baselines is {values!r}, expected a list of {', '.join(BASELINES)}"
        )
    return values


if __name__ == "__main__":
    dry_run = sys.argv[1:2] == ["--dry-run"]
    if len(sys.argv) != 2 + dry_run:
        sys.exit("usage: python -m pipeline.cli.recipe [--dry-run] NAME or FILE.yaml")
    try:
        recipe = read_recipe(find_recipe(sys.argv[-1]))
        if dry_run:
            from pipeline.cli.dry_run import dry_run_recipe

            dry_run_recipe(recipe)
            sys.exit()
    except SmoothkdError as error:
        sys.exit(f"Error: {error}")
    for name, value in recipe.items():
        print(f"{name}={shlex.quote(value)}")
