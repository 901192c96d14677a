"""The command sweep-alpha: check everything, run the cells, put their scores and costs together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import SweepError
from pipeline.estimates.text import describe
from pipeline.locking import locked
from pipeline.run_record import write_json
from pipeline.stopping import stopped_by_signals
from pipeline.sweep.cell import Job, is_done, read_cell, remove_leftovers
from pipeline.sweep.children import Children
from pipeline.sweep.config import SweepAlphaConfig
from pipeline.sweep.cost import describe_cost, measure_cost
from pipeline.sweep.grid import count_steps, per_step
from pipeline.sweep.jobs import make_jobs
from pipeline.sweep.places import find_gpus, make_places
from pipeline.sweep.plan import SweepPlan, check_sweep, claim_sweep, make_plan, read_sweep_settings
from pipeline.sweep.schedule import run_here
from pipeline.sweep.scores import combine_scores
from pipeline.sweep.table import SweepTable
from pipeline.sweep.watch import Watch
from storage_schema.publish import remove_stale_temporaries


def run(config: SweepAlphaConfig) -> dict[str, Any]:
    """Run, or continue, the sweep; return its plan, how each cell ended, and what it cost.

    Raises:
        ConfigError: a setting of any cell or evaluation is wrong, or there is no Ray cluster.
        CacheError: the cache is missing, unfinished or damaged.
        ModelError: the student or a baseline is not found.
        DataError: the dataset of an evaluation cannot be read.
        OutputExistsError: another sweep is there, or one that runs, or a damaged record.
        SweepError: cells failed, at the end; the others are done and their scores are there.
        StoppedError: a signal ended it; what was finished is kept.
    """
    settings = read_sweep_settings(config)
    plan, cache = make_plan(settings, config)
    from pipeline.cli.sweep_checks import check_cells

    check_cells(settings, cache)
    jobs = make_jobs(plan, config)
    print(describe_plan(plan, config))
    output = Path(config.output)
    if config.dry_run:
        check_sweep(output, plan)
        from pipeline.cli.sweep_estimate import estimate_opened_sweep

        print("every number below is an estimate, docs/recipes.md:")
        for name, estimate in estimate_opened_sweep(settings, cache).items():
            print(describe(name, estimate))
        return {"output": config.output, "dry_run": True, **plan.to_json()}
    output.mkdir(parents=True, exist_ok=True)
    with locked(output / "sweep.lock", f"the sweep {output}"):
        remove_stale_temporaries(output)
        remove_leftovers(output / "scores")
        added = claim_sweep(output, plan)
        todo = [job for job in jobs if not is_done(job)]
        if len(todo) < len(jobs):
            print(f"{len(jobs) - len(todo)} of {len(jobs)} are done already, {added} are new")
        with stopped_by_signals(lambda: _describe_rest(jobs)):
            lost = _run_jobs(config, jobs, todo) if todo else {}
            done = [job for job in jobs if is_done(job)]
            failed = {**_describe_failed(jobs, done), **lost}
            problems = _combine(output, plan, done)
        cost = measure_cost(plan, cache, done)
        write_json(output / "cost.json", cost)
    print(describe_cost(cost))
    print(f"sweep: {output}")
    if failed or problems:
        raise SweepError(_describe_end(failed, problems, len(jobs)))
    return {
        "output": str(output),
        "dry_run": False,
        "cells": {job.name: read_cell(job) for job in jobs},
        "scores": {name: str(output / "scores" / f"{name}.json") for name in plan.evaluations},
        "cost": cost,
    }


def describe_plan(plan: SweepPlan, config: SweepAlphaConfig) -> str:
    """Return the cells, their steps, and where they run, for people."""
    num_examples = plan.cache["num_examples"]
    lines = [
        f"{len(plan.cells)} cells of {plan.student['name']} from {plan.cache['name']} "
        f"({num_examples} responses, fingerprint {plan.cache['fingerprint'][:16]}…)"
    ]
    total = 0
    for cell in plan.cells:
        settings = {**plan.train_student, **cell.settings}
        steps = count_steps(settings, num_examples)
        total += steps
        lines.append(f"  {cell.name}: {steps} steps of {per_step(settings)} responses")
    lines.append(f"  together {total} steps")
    models = [*plan.baselines, "every cell"]
    lines.append(f"evaluated on {', '.join(plan.evaluations)}: {', '.join(models)}")
    return "\n".join([*lines, _describe_places(config)])


def _describe_places(config: SweepAlphaConfig) -> str:
    if config.ray:
        return "cells run as tasks of a Ray cluster"
    gpus, number = find_gpus(), config.processes
    if not gpus:
        return f"{number} at a time, on processors"
    shared = f", {number} cells share {len(gpus)} GPUs" if number > len(gpus) else ""
    return f"{number} at a time, each on one GPU{shared}"


def _run_jobs(config: SweepAlphaConfig, jobs: Sequence[Job], todo: Sequence[Job]) -> dict[str, str]:
    watch = Watch(jobs, todo)
    with SweepTable(config.processes, watch.look()) as table:

        def look() -> None:
            table.show(watch.look())

        if config.ray:
            from pipeline.sweep.ray_cells import run_on_ray

            return run_on_ray(todo, look)
        return run_here(todo, make_places(config.processes), look)


def _combine(output: Path, plan: SweepPlan, done: Sequence[Job]) -> dict[str, str]:
    """Put together the scores of what is done, print their tables; return what failed."""
    problems: dict[str, str] = {}
    if not done:
        return problems
    with _stopping() as children:
        for name, settings in plan.evaluations.items():
            reason = combine_scores(output, name, settings, done, children)
            if reason is not None:
                problems[name] = reason
                continue
            text = (output / "scores" / f"{name}.txt").read_text(encoding="utf-8")
            print(f"\n{name}\n{text}")
    return problems


@contextmanager
def _stopping() -> Iterator[Children]:
    children = Children()
    try:
        yield children
    finally:
        children.stop()


def _describe_failed(jobs: Sequence[Job], done: Sequence[Job]) -> dict[str, str]:
    names = {job.name for job in done}
    failed = {}
    for job in jobs:
        if job.name not in names:
            record = read_cell(job)
            reason = record and record["error"]
            failed[job.name] = reason or f"its record or its files in {job.folder} are missing"
    return failed


def _describe_end(failed: dict[str, str], problems: dict[str, str], number: int) -> str:
    lines = []
    if failed:
        lines.append(f"{len(failed)} of {number} failed:")
        lines += [f"  {name}: {reason}" for name, reason in failed.items()]
    lines += [f"scores of {name} were not put together: {why}" for name, why in problems.items()]
    return "\n".join([*lines, "the others are done; the same command runs these again"])


def _describe_rest(jobs: Sequence[Job]) -> str:
    done = sum(is_done(job) for job in jobs)
    return (
        f"{done} of {len(jobs)} are done; the same command continues, the running ones at their "
        "last checkpoint"
    )
