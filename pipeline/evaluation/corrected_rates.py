"""The share of consistent answers, corrected for a judge's error rates on human labels.

    corrected = (observed + TNR - 1) / (TPR + TNR - 1)        (Rogan and Gladen, 1978)

TPR and TNR come from `--validate-judge`. It holds where the judge errs on these answers as often as
on the labelled ones, which nothing here can check; where the numbers themselves contradict it, no
rate is given.

Shape suffixes: D documents, B draws.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.evaluation.bootstrap import (
    MIN_DOCUMENTS,
    SEED,
    Figure,
    Floats,
    by_document,
    percentile_interval,
    resample,
)
from pipeline.evaluation.consistency import consistency_figures

Row = dict[str, Any]


def read_validation(path: str, scores: dict[str, Any], asked: Sequence[Row]) -> dict[str, Any]:
    """Return {judge: what the validation file says of it} for the judges that the file knows.

    Args:
        path: of a file of `--validate-judge`.
        scores: the scores file's content, whose judges count too.
        asked: {"name", "kind", "fingerprint"} of the judges of this run.

    Raises:
        DataError: it is no such file, has no labels, or knows none of the judges, by content.
    """
    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        judges, labelled = dict(found["judges"]), found["pairs"]["labelled"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--judge-validation {path} is no file of --validate-judge ({error!r})"
        ) from error
    if not labelled:
        raise DataError(f"--judge-validation {path} was made without labels: no error rates")
    there = [
        {"name": name, **about}
        for entry in scores["models"].values()
        for name, about in entry.get("judges", {}).items()
    ]
    known = {}
    for one in [*there, *asked]:
        for judge in judges.values():
            if judge["fingerprint"] == one["fingerprint"] and judge["kind"] == one["kind"]:
                known[one["name"]] = {**judge, "validated_on": found["pairs"]}
    if not known:
        names = ", ".join(dict.fromkeys(str(one["name"]) for one in [*there, *asked])) or "none"
        raise DataError(
            f"--judge-validation {path} knows {', '.join(judges) or 'no judge'}, whose content is "
            f"not that of the judges of these scores ({names})"
        )
    return known


def correct_rate(rows: Sequence[Row], name: str, judge: Row) -> dict[str, Any]:
    """Return the corrected share of consistent answers: `rate` and `interval`, or the `reason`.

    The interval is of the percentiles, documents of answers and of labels both resampled.

    Args:
        rows: one model's, judged by `name`.
        name: the judge's in the rows.
        judge: of `read_validation`.
    """
    rates = judge["whole"]["rates"]
    figure = consistency_figures(rows)[f"{name}_consistent_rate"]
    observed = by_document(figure, [row["document_id"] for row in rows])
    of_labels = np.array(rates["by_document"], dtype=np.float64)
    power, chance = Figure(of_labels, _informedness), Figure(of_labels, _false_positives)
    about = {"tpr": rates["tpr"], "tnr": rates["tnr"], "validated_on": judge["validated_on"]}
    if min(len(observed.sums_DS), len(of_labels)) < MIN_DOCUMENTS:
        reason = f"fewer than {MIN_DOCUMENTS} documents"
        return {**about, "rate": None, "interval": None, "reason": reason}
    power_B, chance_B = resample([power, chance], seed=SEED + 1)  # draws of their own
    (observed_B,) = resample([observed])
    if not np.isfinite([power_B, chance_B, observed_B]).all():
        reason = "some resample has no judged answer, or no label of one class"
        return {**about, "rate": None, "interval": None, "reason": reason}
    if not power_B.min() > 0:
        reason = f"some resample of the labels has TPR + TNR - 1 = {power_B.min():.3f}, no better "
        reason += "than chance"
        return {**about, "rate": None, "interval": None, "reason": reason}
    rate = ((observed.estimate or 0.0) - (chance.estimate or 0.0)) / (power.estimate or 1.0)
    if not 0 <= rate <= 1:
        reason = f"it would be {rate:.3f}: the judge's error rates are others on these answers"
        return {**about, "rate": None, "interval": None, "reason": reason}
    ends = percentile_interval((observed_B - chance_B) / power_B)
    return {**about, "rate": rate, "interval": ends, "reason": None}


def _informedness(sums: Floats) -> Floats:
    return _true(sums, 0) + _true(sums, 2) - 1


def _false_positives(sums: Floats) -> Floats:
    return 1 - _true(sums, 2)


def _true(sums: Floats, place: int) -> Floats:
    """Return TPR (place 0) or TNR (2) of [..., (TP, faithful, TN, others)]."""
    wholes = np.where(sums[..., place + 1] == 0, np.nan, sums[..., place + 1])
    return np.asarray(sums[..., place] / wholes)


def format_corrected(model: str, judge: str, observed: float, found: Row) -> str:
    """Return one line for people."""
    begin = f"{model}: consistent by {judge} {100 * observed:.1f} %, "
    if found["rate"] is None:
        return f"{begin}not corrected for its errors: {found['reason']}"
    low, high = found["interval"]
    return (
        f"{begin}corrected for its errors {100 * found['rate']:.1f} % "
        f"[{100 * low:.1f}, {100 * high:.1f}]"
    )
