"""AUROC as a figure of sums over documents, so that documents can be resampled.

Scores are sorted into bins of like counts; a document adds its positives and negatives per bin.
With more distinct scores than BINS the figure differs from the exact one by under 1e-4 on
smooth scores (tests/test_evaluation_auroc.py), far below any interval.

Shape suffixes: S scored items, D documents, M bins.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.evaluation.bootstrap import Figure, Floats

BINS = 512


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike, documents: Sequence[str]) -> Figure:
    """Return the chance that a positive item scores above a negative one, ties counting half.

    Args:
        scores: [S], finite; higher is meant to be positive.
        labels: bool [S].
        documents: [S], the document each item is about: the unit of resampling.

    Raises:
        DataError: no items, unlike lengths, a score that is not finite, or labels of one class.
    """
    scores_S, labels_S = np.asarray(scores, np.float64), np.asarray(labels, np.bool_)
    if not len(scores_S) == len(labels_S) == len(documents):
        raise DataError(
            f"{len(scores_S)} scores, {len(labels_S)} labels and {len(documents)} documents: must "
            "be as many"
        )
    if not np.isfinite(scores_S).all():
        raise DataError(f"a score is {scores_S[~np.isfinite(scores_S)][0]}: must be finite")
    if len(np.unique(labels_S)) < 2:
        found = "no items" if not len(labels_S) else f"all {len(labels_S)} labels are {labels_S[0]}"
        raise DataError(f"{found}: an AUROC needs items of both classes")
    bins_S = rank_bins(scores_S)
    names, place_S = np.unique(np.asarray(documents), return_inverse=True)
    num_bins = int(bins_S.max()) + 1
    sums_DM = np.zeros((len(names), 2 * num_bins))
    np.add.at(sums_DM, (place_S, bins_S + num_bins * ~labels_S), 1.0)
    return Figure(sums_DM, _value)


def rank_bins(scores_S: Floats) -> npt.NDArray[np.int64]:
    """Return the bin of each score: one each up to BINS distinct scores, else of like counts."""
    distinct, place_S, counts = np.unique(scores_S, return_inverse=True, return_counts=True)
    if len(distinct) <= BINS:
        return place_S
    middle = np.cumsum(counts) - counts / 2
    return np.asarray((middle * BINS / len(scores_S)).astype(np.int64)[place_S])


def _value(sums: Floats) -> Floats:
    num_bins = sums.shape[-1] // 2
    positives, negatives = sums[..., :num_bins], sums[..., num_bins:]
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    pairs = positives.sum(axis=-1) * negatives.sum(axis=-1)
    return np.asarray((positives * below).sum(axis=-1) / np.where(pairs == 0, np.nan, pairs))
