"""One scores file an evaluation, put together from those of the cells; nothing is generated again.

    SWEEP/scores/NAME.json                 every model, with comparisons, as evaluate-student has it
    SWEEP/scores/predictions/NAME/         the rows of every model
    SWEEP/scores/NAME.txt, NAME.log        its table; what it printed besides

The entries and rows of the cells are put under these names and evaluate-student is told to go on
from there: it finds every model finished, compares them, and stores what it found.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import OutputExistsError
from pipeline.run_record import differences, write_json
from pipeline.sweep.cell import Job, last_words, read_scores
from pipeline.sweep.children import Children
from pipeline.sweep.grid import KL_SETTINGS
from storage_schema.publish import temporary_path

# The folders evaluate-student keeps beside a scores file, whichever of them there are.
ROWS = ("predictions", "answers")


def combine_scores(
    output: Path, name: str, settings: dict[str, Any], jobs: Sequence[Job], children: Children
) -> str | None:
    """Write the scores file of one evaluation over all these cells; return why it failed, if so.

    Args:
        output: the sweep's directory.
        name: of the evaluation.
        settings: given for it, the baseline of comparisons perhaps among them.
        jobs: those that are done.
        children: runs evaluate-student.

    Raises:
        OutputExistsError: a cell's scores file is damaged or was made with other settings.
    """
    path = output.absolute() / "scores" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    merged = _merge(name, jobs)
    if not settings.get("baseline"):
        baseline = _baseline(jobs)
        own = {"baseline_of": _baselines_of_their_own(jobs, baseline)}
        settings = {**own, **settings, "baseline": baseline}
    fingerprint = _fingerprint(merged, settings)
    stamp = path.with_suffix(".stamp")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == fingerprint and path.exists():
        return None
    stamp.unlink(missing_ok=True)
    for job in jobs:
        _take_rows(job, name, path)
    write_json(path, merged)
    config = path.with_suffix(".yaml")
    settings |= {"model": [f"{job.name}={job.model}" for job in jobs], "output": str(path)}
    config.write_text(yaml.safe_dump({"evaluate-student": settings}), encoding="utf-8")
    code = children.run(
        "evaluate-student",
        ["--config", str(config)],
        path.with_suffix(".log"),
        directory=jobs[0].directory,
        environment={},
        output=path.with_suffix(".txt"),
    )
    if code != 0:
        return last_words(path.with_suffix(".log"), code)
    stamp.write_text(fingerprint, encoding="utf-8")
    return None


def _merge(name: str, jobs: Sequence[Job]) -> dict[str, Any]:
    """Return a scores file with the entries of all jobs."""
    first = jobs[0].scores_path(name)
    merged: dict[str, Any] = {"settings": read_scores(first)["settings"], "models": {}}
    for job in jobs:
        scores = read_scores(job.scores_path(name))
        lines = differences(merged["settings"], scores["settings"])
        if lines:
            raise OutputExistsError(
                f"{job.scores_path(name)} and {first} were made with other settings:\n  "
                + "\n  ".join(lines)
                + "\ndelete the older one and run the same command again"
            )
        merged["models"][job.name] = scores["models"][job.name]
    return merged


def _baseline(jobs: Sequence[Job]) -> str:
    """Return the arm the others are compared with: plain fine-tuning where there is one."""
    plain = [job.arm for job in jobs if job.settings.get("alpha") == 0]
    trained = [job.arm for job in jobs if job.train is not None]
    return [*plain, *trained, jobs[0].arm][0]


def _baselines_of_their_own(jobs: Sequence[Job], baseline: str) -> list[str]:
    """Return ARM=BASELINE of distilled arms whose plain fine-tuning is another than `baseline`.

    Only what the teacher adds should differ: a student at another learning rate is compared with
    plain fine-tuning at that rate, where that was trained.
    """
    plain = {_plain_settings(job): job.arm for job in jobs if job.settings.get("alpha") == 0}
    own = {job.arm: plain.get(_plain_settings(job)) for job in jobs if job.settings.get("alpha")}
    return [f"{arm}={name}" for arm, name in own.items() if name not in (None, baseline)]


def _plain_settings(job: Job) -> str:
    """Return what the job has beside alpha, seed and the settings of the KL term."""
    ignored = ("alpha", "seed", *KL_SETTINGS)
    return json.dumps({k: v for k, v in job.settings.items() if k not in ignored}, sort_keys=True)


def _fingerprint(merged: dict[str, Any], settings: dict[str, Any]) -> str:
    text = json.dumps([merged, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _take_rows(job: Job, name: str, path: Path) -> None:
    """Put the cell's rows beside the combined file: linked where possible, they are large."""
    for kind in ROWS:
        source = job.folder / kind / job.scores_path(name).stem
        target = path.parent / kind / path.stem
        for file in sorted(source.glob(f"{job.name}.*jsonl")):
            target.mkdir(parents=True, exist_ok=True)
            temporary = temporary_path(target / file.name)
            try:
                os.link(file, temporary)
            except OSError:  # another file system, or one without links
                shutil.copyfile(file, temporary)
            os.replace(temporary, target / file.name)
            # Replacing a name by another one of the same file does nothing, says POSIX.
            temporary.unlink(missing_ok=True)
