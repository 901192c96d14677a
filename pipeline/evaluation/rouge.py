"""ROUGE-L of a prediction against its reference texts, by the package rouge-score.

Convention, named in every output: F1 of one longest common subsequence over the whole text
(line breaks ignored), lower-cased, no stemming. Words are runs of [a-z0-9]: an accent splits a
word and other alphabets score 0, which `unscored_letter_share` measures.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.errors import DataError, MissingPackageError

CONVENTION = "rougeL_f1 (no stemming, one line)"
# Above this share of letters outside a-z, a ROUGE score says little about the text.
UNSCORED_LETTERS_WARNING = 0.2


class RougeL(NamedTuple):
    """F1 in [0, 1]: the best over a document's references, and the mean over them."""

    best: float
    mean: float


def score_rouge_l(prediction: str, references: Sequence[str]) -> RougeL:
    """Return the ROUGE-L F1 of `prediction` against each reference, as best and as mean.

    F1 = 2PR / (P + R) with P = lcs / words of the prediction and R = lcs / words of the
    reference; 0 when either side has no words (both sides too).

    Raises:
        DataError: there is no reference.
        MissingPackageError: rouge-score is not installed.
    """
    if not references:
        raise DataError(f"no reference text for the prediction {prediction[:40]!r}")
    scorer = load_scorer()
    scores = [float(scorer.score(text, prediction)["rougeL"].fmeasure) for text in references]
    return RougeL(max(scores), sum(scores) / len(scores))


@functools.cache
def load_scorer() -> Any:
    """Return the package's scorer; also the check, before long work, that it is installed.

    Raises:
        MissingPackageError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingPackageError(
            'ROUGE-L needs the package rouge-score: pip install "smoothkd[eval]"'
        ) from error
    return RougeScorer(["rougeL"], use_stemmer=False)


def unscored_letter_share(texts: Sequence[str]) -> float:
    """Return the share, in [0, 1], of the texts' letters that ROUGE's words cannot hold."""
    letters = outside = 0
    for text in texts:
        for character in text.lower():
            if character.isalpha():
                letters += 1
                outside += not "a" <= character <= "z"
    return outside / letters if letters else 0.0
