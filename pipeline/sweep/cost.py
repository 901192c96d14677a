"""cost.json: what a sweep cost, against a teacher that runs beside every student instead.

The online teacher is not run: its seconds in a cell are those the cached pass took, by the
responses the cell trained on. That is a lower bound where the pass was made by an engine that is
faster than a forward pass inside a training loop, and it leaves out the memory for two models.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.run_record import read_record
from pipeline.sweep.cell import Job, read_scores
from pipeline.sweep.plan import SweepPlan
from storage_schema.passes import read_passes
from storage_schema.reader import LogitCache

METHOD = (
    "the online teacher's seconds are the recorded pass's engine seconds, scaled by the responses "
    "each cell trained on (none at alpha 0); training seconds are train-student's own, of a cell "
    "that was stopped scaled to all of its steps"
)


def measure_cost(plan: SweepPlan, cache: LogitCache, jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the content of cost.json for the jobs that are done.

    Raises:
        CacheError: a record of the teacher's pass is damaged.
        OutputExistsError: a cell's own record is.
    """
    teacher = measure_teacher(cache)
    cells = {job.name: _measure(job, plan, teacher) for job in jobs}
    trained = [cell for cell in cells.values() if cell["train_s"] is not None]
    train_s = sum(cell["train_s"] for cell in trained)
    evaluate_s = sum(cell["evaluate_s"] for cell in cells.values())
    totals: dict[str, Any] = {"train_s": round(train_s, 3), "evaluate_s": round(evaluate_s, 3)}
    if teacher is not None:
        online_s = sum(cell["online_teacher_s"] for cell in trained)
        with_cache, online = teacher["seconds"] + train_s, online_s + train_s
        totals |= {
            "teacher_s": teacher["seconds"],
            "online_teacher_s": round(online_s, 3),
            "from_cache_s": round(with_cache, 3),
            "online_s": round(online, 3),
            "ratio": round(with_cache / online, 4) if online else None,
        }
    return {"method": METHOD, "teacher_pass": teacher, "cells": cells, "totals": totals}


def measure_teacher(cache: LogitCache) -> dict[str, Any] | None:
    """Return what the passes over a cache took, None where none was recorded.

    A pass that was killed left no record: then the seconds are scaled to all response tokens.
    """
    passes = read_passes(cache.path)
    scored = sum(one["response_tokens"] for one in passes)
    if not scored:
        return None
    engine = sum(one["engine_seconds"] for one in passes)
    start = sum(one["engine_start_seconds"] for one in passes)
    share = min(1.0, scored / cache.manifest.num_response_tokens)
    return {
        "seconds": round(engine / share + start, 3),
        "engine_seconds": round(engine / share, 3),
        "engine_start_seconds": round(start, 3),
        "recorded_share": round(share, 4),
        "passes": len(passes),
    }


def _measure(job: Job, plan: SweepPlan, teacher: dict[str, Any] | None) -> dict[str, Any]:
    scores = [read_scores(job.scores_path(name))["models"][job.name] for name in job.evaluations]
    found: dict[str, Any] = {"train_s": None, "online_teacher_s": None, "responses": None}
    found["evaluate_s"] = round(sum(entry["seconds"] for entry in scores), 3)
    if job.train is None:
        return found
    record = read_record(job.folder / "student")
    steps, resumed = record["steps"], record["resumed_from_step"]
    done_here = max(1, steps - resumed)
    trained_on = record["counts"]["trained_on"]
    responses = min(
        steps * record["made_with"]["responses_per_step"],
        # The last step of an epoch may hold fewer.
        record["identity"]["epochs"] * trained_on
        if record["identity"]["max_steps"] is None
        else float("inf"),
    )
    found |= {
        "train_s": round(record["seconds"] * steps / done_here, 3),
        "resumed_from_step": resumed,
        "responses": round(responses),
    }
    if teacher is not None:
        share = responses / plan.cache["num_examples"] if job.settings["alpha"] else 0.0
        found["online_teacher_s"] = round(teacher["engine_seconds"] * share, 3)
    return found


def describe_cost(cost: dict[str, Any]) -> str:
    """Return the cost in a sentence or two."""
    totals, teacher = cost["totals"], cost["teacher_pass"]
    spent = f"training {totals['train_s']:.0f} s, evaluation {totals['evaluate_s']:.0f} s"
    if teacher is None:
        return (
            f"cost: {spent}; what the teacher's pass took was not recorded with this cache, so the "
            "saving is unknown"
        )
    if not totals["online_teacher_s"]:
        return f"cost: teacher {totals['teacher_s']:.0f} s once, {spent}"
    return (
        f"cost: teacher {totals['teacher_s']:.0f} s once, {spent}\n"
        f"      from the cache {totals['from_cache_s']:.0f} s, with the teacher run in every cell "
        f"{totals['online_s']:.0f} s (the recorded pass scaled): {totals['ratio']:.2f} of it"
    )
