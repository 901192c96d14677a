"""How far a model's confidence is from its accuracy, from per-token numbers; numpy only.

Tokens are response tokens under teacher forcing on the gold text. For each of them the
confidence is the largest probability, and `correct` says whether the most probable token is
the gold one. Every function pools the tokens it is given: each token weighs the same.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError

FLOOR_DRAWS = 200
FLOOR_SEED = 0

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """What a model says of N gold tokens; every array is [N].

    Attributes:
        label_logprobs: natural log of the gold token's probability.
        confidences: largest probability of the row, in [0, 1].
        correct: whether the most probable token is the gold token.
        entropies_nats: -sum over the vocabulary of p ln p.
        sum_squared_probs: sum over the vocabulary of p^2.
    """

    label_logprobs: FloatArray
    confidences: FloatArray
    correct: BoolArray
    entropies_nats: FloatArray
    sum_squared_probs: FloatArray


def pool(parts: Iterable[TokenScores]) -> TokenScores:
    """Return the tokens of all parts, one part after the other."""
    columns = list(parts)
    if not columns:
        empty = np.empty(0)
        return TokenScores(empty, empty, empty.astype(bool), empty, empty)
    names = [field.name for field in fields(TokenScores)]
    return TokenScores(*(np.concatenate([getattr(c, name) for c in columns]) for name in names))


def measure_calibration(tokens: TokenScores, num_bins: int) -> dict[str, float | int]:
    """Return every calibration number of the pooled tokens, ready for JSON.

    `overconfidence_gap` = mean confidence - accuracy, so > 0 is over-confidence.
    `brier` = mean of 1 - 2 p_label + sum of p^2, in [0, 2].

    Raises:
        DataError: there are no tokens, or a confidence lies outside [0, 1].
    """
    confidences = _checked(tokens.confidences)
    correct = tokens.correct.astype(np.float64)
    label_logprobs = tokens.label_logprobs.astype(np.float64)
    nll = -float(label_logprobs.mean())
    brier = 1.0 - 2.0 * np.exp(label_logprobs) + tokens.sum_squared_probs.astype(np.float64)
    return {
        "num_tokens": len(confidences),
        "response_nll_nats": nll,
        "perplexity": math.exp(nll),
        "ece": ece_equal_width(confidences, correct, num_bins),
        "ece_floor": ece_floor(confidences, num_bins),
        "ece_equal_mass": ece_equal_mass(confidences, correct, num_bins),
        "overconfidence_gap": float(confidences.mean() - correct.mean()),
        "accuracy": float(correct.mean()),
        "mean_confidence": float(confidences.mean()),
        "mean_entropy_nats": float(tokens.entropies_nats.astype(np.float64).mean()),
        "brier": float(brier.mean()),
    }


def ece_equal_width(
    confidences: FloatArray, correct: FloatArray | BoolArray, num_bins: int
) -> float:
    """Return sum over bins of (n_m / N) |accuracy_m - mean confidence_m|, M equal-width bins.

    Bin of a token: min(floor(confidence * M), M - 1), in float64. A confidence on an edge so
    belongs to the bin above it, and 1.0 to the last one.

    Raises:
        DataError: there are no tokens, or a confidence lies outside [0, 1].
    """
    confidences = _checked(confidences)
    bins = _equal_width_bins(confidences, num_bins)
    # (n_m / N) |acc_m - conf_m| = |sum of (correct - confidence) in m| / N: no empty bin divides.
    errors = np.bincount(bins, correct.astype(np.float64) - confidences, num_bins)
    return float(np.abs(errors).sum() / len(confidences))


def ece_equal_mass(
    confidences: FloatArray, correct: FloatArray | BoolArray, num_bins: int
) -> float:
    """Return the same sum over M bins of as equal counts as possible.

    Tokens are sorted by confidence, equal ones keeping their order, and cut by rank; where N is
    no multiple of M the first bins hold one token more. Ties may so be split between bins.

    Raises:
        DataError: there are no tokens, or a confidence lies outside [0, 1].
    """
    confidences = _checked(confidences)
    order = np.argsort(confidences, kind="stable")
    errors = (correct.astype(np.float64) - confidences)[order]
    return float(sum(abs(part.sum()) for part in np.array_split(errors, num_bins)) / len(errors))


def ece_floor(
    confidences: FloatArray,
    num_bins: int,
    draws: int = FLOOR_DRAWS,
    seed: int = FLOOR_SEED,
) -> float:
    """Return the equal-width ECE that a perfectly calibrated model would show on these tokens.

    The ECE of a finite sample is biased upward. The floor is its mean over `draws` simulations
    of correct ~ Bernoulli(confidence): about .032 at 1,000 tokens, .010 at 10,000 (15 bins).

    Raises:
        DataError: there are no tokens, or a confidence lies outside [0, 1].
    """
    confidences = _checked(confidences)
    bins = _equal_width_bins(confidences, num_bins)
    generator = np.random.default_rng(seed)
    total = 0.0
    for _ in range(draws):
        correct = generator.random(len(confidences)) < confidences
        total += np.abs(np.bincount(bins, correct - confidences, num_bins)).sum()
    return float(total / draws / len(confidences))


def _equal_width_bins(confidences: FloatArray, num_bins: int) -> npt.NDArray[np.int64]:
    return np.minimum((confidences * num_bins).astype(np.int64), num_bins - 1)


def _checked(confidences: FloatArray) -> npt.NDArray[np.float64]:
    if len(confidences) == 0:
        raise DataError("no response tokens to measure calibration on: expected at least one")
    outside = ~((confidences >= 0) & (confidences <= 1))  # also catches NaN
    if outside.any():
        index = int(np.argmax(outside))
        raise DataError(
            f"confidence {confidences[index]} of token {index}: expected a probability in [0, 1]"
        )
    return confidences.astype(np.float64)
