"""train-student: one student from one cache at one alpha, resumable, recorded in run.json.

A finished output is recognised here, before torch is imported: a sweep that is run again
passes over its finished students at once.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.models.checkpoint import (
    find_checkpoint,
    fingerprint_checkpoint,
    fingerprint_shape,
)
from pipeline.run_record import find_finished, read_record, require_weights
from pipeline.student.config import TrainStudentConfig
from pipeline.student.dry_run import dry_run
from pipeline.training.settings import UNCOMPARED
from storage_schema.reader import open_cache

# Inputs are compared by content: a cache that was moved is the same cache.
PLACES = ("student", "cache", "local_copy")


def run(config: TrainStudentConfig) -> dict[str, Any]:
    """Train the student and return its run record; a finished output is returned at once.

    Raises:
        CacheError: the cache is missing, unfinished or damaged.
        ModelError: the student is missing or does not fit the cache, or the run diverged.
        OutputExistsError: the output holds another run, or a finished one without its weights.
        ConfigError: a setting of the KL does not go with the cache's sampled support.
    """
    output = Path(config.output)
    cache = open_cache(config.cache, config.local_copy)
    config.check_support(cache.plan.support_kind)
    if config.dry_run:
        return dry_run(config, cache)
    checkpoint = find_checkpoint(config.student, config.revision)
    inputs = {"student": config.student, "cache": config.cache}
    identity = {k: v for k, v in asdict(config).items() if k not in (*UNCOMPARED, *PLACES)}
    identity["cache_fingerprint"] = cache.fingerprint
    identity["student_fingerprint"] = (
        fingerprint_shape(checkpoint) if config.from_scratch else fingerprint_checkpoint(checkpoint)
    )
    identity["responses_per_step"] = config.responses_per_step
    if find_finished(output, "train-student", identity):
        require_weights(output)
        print(f"{output} is finished already: nothing to do")
    else:
        from pipeline.student.train_model import train_model

        train_model(config, cache, checkpoint, identity, inputs)
    return {"output": str(output), **read_record(output)}
