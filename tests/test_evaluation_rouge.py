"""ROUGE-L: published vectors, several references, empties, a missing package."""

import sys

import pytest

from pipeline.errors import DataError, MissingPackageError
from pipeline.evaluation.rouge import load_scorer, score_rouge_l, unscored_letter_share


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        # One sequence over the whole text, so that swapped sentences cost (rougeLsum gives 1.0).
        (
            "The cat sat on the mat.\nIt was raining outside.",
            "It was raining outside. The cat sat on the mat.",
            0.6,
        ),
        ("the quick brown fox", "the brown quick fox", 0.75),
        # Without stemming (with it .8).
        ("he runs quickly to stations", "he running quick to station", 0.4),
        ("Same text, here.", "same TEXT here", 1.0),
        ("some reference", "", 0.0),
        ("", "", 0.0),
        ("...", "...", 0.0),
        ("Zo\u00eb", "zo", 1.0),
    ],
)
def test_vectors(reference: str, prediction: str, expected: float) -> None:
    assert score_rouge_l(prediction, [reference]) == pytest.approx((expected, expected), abs=1e-12)


def test_several_references_give_best_and_mean() -> None:
    score = score_rouge_l("the brown quick fox", ["the quick brown fox", "nothing alike"])
    assert score.best == pytest.approx(0.75)
    assert score.mean == pytest.approx(0.375)


def test_no_reference_is_refused() -> None:
    with pytest.raises(DataError, match="'a prediction'"):
        score_rouge_l("a prediction", [])


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    load_scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingPackageError, match=r'pip install "smoothkd\[eval\]"'):
        load_scorer()


def test_letters_outside_a_to_z_are_measured() -> None:
    assert unscored_letter_share(["abc", "ABC 123"]) == 0.0
    assert unscored_letter_share(["ab\u00e9\u4e2d"]) == 0.5
    assert unscored_letter_share(["123 ..."]) == 0.0
