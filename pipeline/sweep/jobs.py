"""From a plan to the jobs of a sweep: baselines first, then the cells.

Baselines train nothing, so what is wrong with an evaluation is seen before the first training.
"""

from pathlib import Path

from pipeline.sweep.cell import COMPARED_WITH, Job
from pipeline.sweep.config import SweepAlphaConfig
from pipeline.sweep.plan import SweepPlan


def make_jobs(plan: SweepPlan, config: SweepAlphaConfig) -> list[Job]:
    """Return one job for each baseline and each cell, in the order they are to run."""
    output, directory = Path(config.output).absolute(), Path.cwd()
    evaluations = {
        name: {key: value for key, value in settings.items() if key not in COMPARED_WITH}
        for name, settings in plan.evaluations.items()
    }
    jobs = [
        Job(
            name=name,
            arm=name,
            seed=None,
            settings={},
            cache_fingerprint=plan.cache["fingerprint"],
            folder=output / "baselines" / name,
            directory=directory,
            model=path,
            train=None,
            evaluations=evaluations,
        )
        for name, path in plan.baselines.items()
    ]
    for cell in plan.cells:
        folder = output / "cells" / cell.name
        jobs.append(
            Job(
                name=cell.name,
                arm=cell.arm,
                seed=cell.seed,
                settings=cell.settings,
                cache_fingerprint=plan.cache["fingerprint"],
                folder=folder,
                directory=directory,
                model=str(folder / "student"),
                train={
                    **plan.train_student,
                    **cell.settings,
                    "student": plan.student["name"],
                    "cache": plan.cache["name"],
                },
                evaluations=evaluations,
            )
        )
    return jobs
