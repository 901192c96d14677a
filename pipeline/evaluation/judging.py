"""Has every judge read the stored answers of every model, one judge in memory at a time.

It runs behind all generation and reads the predictions files, so a judge can be added to a finished
scores file without generating anything again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.records import Record
from pipeline.errors import DataError, OutputExistsError
from pipeline.evaluation.consistency import judge_documents
from pipeline.evaluation.cost import timed
from pipeline.evaluation.extractiveness import words
from pipeline.evaluation.inputs import ModelInputs
from pipeline.evaluation.judges.loading import FoundJudge, load_judge
from pipeline.evaluation.judges.protocol import Judge
from pipeline.evaluation.scores import aggregate, read_rows, record_id, write_rows
from pipeline.evaluation.scores_file import predictions_path
from pipeline.models.loading import pick_device
from pipeline.progress import Progress
from pipeline.run_record import differences, write_json

# Documents whose pairs are held and batched together.
BLOCK_DOCUMENTS = 64


def check_judges(
    judges: Sequence[FoundJudge], scores: dict[str, Any], inputs: Sequence[ModelInputs]
) -> None:
    """Refuse what judging would stumble over, before the first model is loaded.

    Raises:
        DataError: no document has a source to judge against.
        OutputExistsError: the scores hold another judge's figures under the same name.
    """
    if judges and not any(words(one.context or "") for one in inputs[0].dataset.records):
        raise DataError(
            f"--judge {judges[0].choice.name}: none of the {len(inputs[0].dataset.records)} "
            "documents has a source (context); factual consistency is measured against one"
        )
    for judge in judges:
        for model, entry in scores["models"].items():
            there = entry.get("judges", {}).get(judge.choice.name)
            lines = [] if there is None else differences(_identity_of(there), judge.identity)
            if lines:
                raise OutputExistsError(
                    f"model {model!r} was judged by another {judge.choice.name!r}:\n  "
                    + "\n  ".join(lines)
                    + f"\nwrite --judge NAME:{judge.choice.kind}={judge.choice.place}, or choose "
                    "another --output"
                )


def judge_models(
    judges: Sequence[FoundJudge],
    inputs: Sequence[ModelInputs],
    scores: dict[str, Any],
    output: Path,
    *,
    num_bins: int,
    batch_size: int,
) -> None:
    """Add each judge's values to the predictions and its figures to the scores, and store both.

    Args:
        judges: which; what is already judged by them is left as it is.
        inputs: the models, whose answers are stored already.
        scores: the content of the scores file; changed in place.
        output: the scores file.
        num_bins: of the calibration errors, which are aggregated anew with the rest.
        batch_size: most inputs of a judge in one forward pass.

    Raises:
        DataError: a hypothesis does not fit a judge, or a score is no number in [0, 1].
        ModelError: a judge does not load.
    """
    for found in judges:
        name = found.choice.name
        todo = [
            model for model in inputs if name not in scores["models"][model.name].get("judges", {})
        ]
        if not todo:
            continue
        judge = load_judge(found, batch_size=batch_size, device=pick_device())
        for model in todo:
            entry = scores["models"][model.name]
            path = predictions_path(output, model.name)
            rows = read_rows(path)
            with timed(entry["cost"], f"judge_{name}", len(rows)):
                about = _judge_rows(found, judge, model, rows)
            write_rows(path, rows)
            entry |= aggregate(rows, num_bins)
            entry["judges"] = {**entry.get("judges", {}), name: about}
            write_json(output, scores)
        del judge  # before the next one is loaded


def _judge_rows(
    found: FoundJudge, judge: Judge, model: ModelInputs, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Fill in the judge's values of each row, and return what to know about them."""
    name = found.choice.name
    records: dict[str, Record] = {record_id(record): record for record in model.dataset.records}
    cut = getattr(judge, "num_truncated", 0)
    with Progress(f"{model.name}: judge {name}", len(rows), "documents") as progress:
        for first in range(0, len(rows), BLOCK_DOCUMENTS):
            block = rows[first : first + BLOCK_DOCUMENTS]
            judged = judge_documents(
                name,
                judge,
                [records[row["record_id"]].context for row in block],
                [row["prediction"] for row in block],
            )
            for row, values in zip(block, judged, strict=True):
                row["judges"] = {**row.get("judges", {}), name: values}
            progress.advance(len(block))
    return {
        **found.identity,
        "threshold": judge.threshold,
        "num_judged": sum(row["judges"][name] is not None for row in rows),
        "num_truncated_premises": getattr(judge, "num_truncated", 0) - cut,
    }


def _identity_of(about: dict[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in ("kind", "place", "fingerprint")}
