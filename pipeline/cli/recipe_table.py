"""Prints the table of docs/recipes.md, every packaged recipe with its estimates:

python -m pipeline.cli.recipe_table
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.cli.dry_run import estimate_recipe
from pipeline.cli.recipe import find_recipe, read_recipe
from pipeline.estimates.compute import TWO_CORES_TRAINING
from pipeline.estimates.text import bytes_text, hours_text

GPU = "H100 80 GB"
HEADER = (
    "| recipe | students | cache | memory a GPU, at most | teacher, H100 | all students, H100 "
    "| all, 2 cores |\n|---|---|---|---|---|---|---|"
)
SWEEP = "sweep-alpha, all of it"
TEACHER_STAGES = ("finetune-teacher", "generate-responses", "precompute-logits")


def render_table() -> str:
    """Return the table as Markdown; nothing is downloaded or loaded."""
    packaged = Path(str(files("pipeline.recipes")))
    names = sorted(path.stem for path in packaged.glob("*.yaml"))
    rows = [_row(name, estimate_recipe(read_recipe(find_recipe(name)))) for name in names]
    return "\n".join([HEADER, *rows])


def _row(name: str, estimates: dict[str, dict[str, Any]]) -> str:
    teacher = [estimates[stage] for stage in TEACHER_STAGES if stage in estimates]
    sweep = estimates[SWEEP]
    cores = [one["gpu_hours"].get(TWO_CORES_TRAINING.name) for one in (*teacher, sweep)]
    cells = [
        f"`{name}`",
        str(sweep["cells"]),
        bytes_text(estimates["precompute-logits"]["disk_bytes"]["cache"]),
        bytes_text(max(one["memory_bytes"]["total"] for one in estimates.values())),
        hours_text(sum(one["gpu_hours"][GPU] for one in teacher)),
        hours_text(sweep["gpu_hours"][GPU]),
        "-" if None in cores else hours_text(sum(cores)),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(render_table())
