"""--validate-judge: figures against scikit-learn and by hand, the file read, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from test_judges import OWN

import pipeline.evaluation.evaluate as evaluate
from pipeline.data.config import DataSettings
from pipeline.errors import ConfigError, DataError, OutputExistsError
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.discrimination import (
    balanced_accuracy,
    best_threshold,
    threshold_curve,
    tuned_elsewhere,
)
from pipeline.evaluation.labelled_pairs import LabelledPair, read_labelled_pairs, read_pairs
from pipeline.evaluation.validation import measure_scores, trivial_scores

# Below 10 documents no interval is resampled, so an example takes milliseconds.
SCORED = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0]), st.booleans()),
    min_size=2,
    max_size=9,
).filter(lambda rows: len({label for _, label in rows}) == 2)


def arrays(rows: list[tuple[float, bool]]) -> tuple[Any, Any, list[str]]:
    scores, labels = zip(*rows, strict=True)
    return np.array(scores), np.array(labels), [str(n) for n in range(len(rows))]


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(SCORED, st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]))
def test_figures_are_those_of_scikit_learn(
    rows: list[tuple[float, bool]], threshold: float
) -> None:
    scores, labels, documents = arrays(rows)
    figure = balanced_accuracy(scores > threshold, labels, documents)
    assert figure.estimate == pytest.approx(balanced_accuracy_score(labels, scores > threshold))
    for point in threshold_curve(scores, labels):
        called = scores > point["threshold"]
        assert point["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, called))
        assert point["tpr"] == pytest.approx(called[labels].mean())
        assert point["tnr"] == pytest.approx(1 - called[~labels].mean())
    best, accuracy = best_threshold(scores, labels)
    assert accuracy == pytest.approx(balanced_accuracy_score(labels, scores > best))
    assert accuracy >= max(p["balanced_accuracy"] for p in threshold_curve(scores, labels)) - 1e-12
    found = measure_scores(scores, labels, documents, threshold)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    order = np.random.default_rng(0).permutation(len(rows))
    again = measure_scores(scores[order], labels[order], [documents[i] for i in order], threshold)
    assert again["auroc"] == pytest.approx(found["auroc"])
    assert again["curve"] == found["curve"]


def test_figures_by_hand() -> None:
    scores, labels, documents = arrays(
        [(0.9, True), (0.6, True), (0.4, True), (0.45, False), (0.2, False), (0.1, False)]
    )
    found = measure_scores(scores, labels, documents, 0.5)
    assert found["auroc"] == pytest.approx(8 / 9)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    # At .3 all faithful ones and one other pass: (1 + 2/3) / 2; at .525 it is as good.
    assert found["best_threshold"] == pytest.approx(0.3)
    assert found["best_balanced_accuracy"] == pytest.approx(5 / 6)
    assert found["best_threshold_minus_published"] == pytest.approx(-0.2)
    assert found["curve"][50] == {
        "threshold": 0.5,
        "tpr": pytest.approx(2 / 3),
        "tnr": 1.0,
        "balanced_accuracy": pytest.approx(5 / 6),
    }
    assert found["intervals"]["auroc"] is None  # 6 documents
    assert found["rates"]["tpr"] == pytest.approx(2 / 3)
    assert found["rates"]["tnr"] == 1
    assert found["rates"]["by_document"] == [[1, 1, 0, 0]] * 2 + [[0, 1, 0, 0]] + [[0, 0, 1, 1]] * 3


def test_thresholds_are_tuned_on_other_documents() -> None:
    # Even documents want a threshold of .2, odd ones of .8: tuned elsewhere, both go wrong.
    rows = [(0.3, True), (0.9, True), (0.1, False), (0.7, False)]
    scores, labels, _ = arrays(rows)
    called = tuned_elsewhere(scores, labels, ["a", "b", "a", "b"])
    assert called is not None
    assert called.tolist() == [False, True, False, True]
    assert tuned_elsewhere(scores, labels, ["a", "a", "b", "b"]) is None
    assert tuned_elsewhere(scores, labels, ["a"] * 4) is None


def test_intervals_resample_documents() -> None:
    generator = np.random.default_rng(1)
    labels = np.arange(200) % 2 == 0
    scores = np.clip(generator.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    alone = measure_scores(scores, labels, [str(n) for n in range(200)], 0.5)["intervals"]
    low, high = alone["auroc"]
    assert 0.5 < low < roc_auc_score(labels, scores) < high < 1
    # Ten copies of each pair under one document add nothing; as documents of their own they would.
    copies = [str(n) for n in range(200) for _ in range(10)]
    many = measure_scores(scores.repeat(10), labels.repeat(10), copies, 0.5)["intervals"]
    assert many["auroc"] == pytest.approx(alone["auroc"], abs=0.005)
    assert many["balanced_accuracy"] == pytest.approx(alone["balanced_accuracy"], abs=0.01)


def test_trivial_judges() -> None:
    found = trivial_scores(
        LabelledPair("the cat sat on the mat today", "the cat sat today quietly", True)
    )
    assert found == {
        "coverage": pytest.approx(0.8),
        "density": pytest.approx(2.0),
        "copied_bigram_rate": pytest.approx(0.5),
        "shortness": -5.0,
    }
    assert trivial_scores(LabelledPair("a b", "", False))["coverage"] == 0.0


GOOD = {"document": "The cat sat.", "summary": "A cat.", "label": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "pairs.jsonl, line 2 is not JSON"),
        ("[1]", "pairs.jsonl, line 2 holds a JSON list: expected an object"),
        (
            json.dumps({**GOOD, "summary": None}),
            "pairs.jsonl, line 2: summary is None, expected a text",
        ),
        (json.dumps({"summary": "x", "label": 1}), "pairs.jsonl, line 2: document is None"),
        (json.dumps({**GOOD, "document": " . "}), "document ' . ' has no words"),
        (json.dumps({**GOOD, "label": 0.5}), "label is 0.5, expected 1"),
        (json.dumps({**GOOD, "label": float("nan")}), "label is nan, expected 1"),
        (json.dumps({**GOOD, "label": "1"}), "label is '1', expected 1"),
        (json.dumps({**GOOD, "label": None}), "label is None, expected 1"),
        (json.dumps({"document": "a", "summary": "b"}), "has no label or faithful; it has docu"),
        (json.dumps({**GOOD, "faithful": 0}), "has label and faithful, two names of one thing"),
        ('{"label": 1, "label": 0}', "the field name 'label' 2 times"),
        ('{"x": ' * 100_000, "line 2 cannot be read: .*recursion"),
        ("\udcff", "is not UTF-8 text"),
        (json.dumps(GOOD), "2 of 2 pairs are labelled faithful"),
    ],
)
def test_bad_pairs_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(f"{json.dumps(GOOD)}\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        read_labelled_pairs(path)
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        read_labelled_pairs(tmp_path / "none.jsonl")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "document": f"The cat number {n} sat on the mat.",
            "summary": f"the cat number {n}" if n % 2 else "a dog ran away",
            "faithful": bool(n % 2),
        }
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_labels_in_another_format_are_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([{"document": "The cat sat.", "summary": "A dog.", "label": 0}]))
    with pytest.raises(DataError, match="its rows have label; pairs with labels are read from JSO"):
        read_pairs(DataSettings(data=str(path)))


def test_a_judge_is_validated(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_judge.py").write_text(OWN)
    output = tmp_path / "out" / "judges.json"
    config = EvaluateStudentConfig(
        validate_judge=str(pairs),
        output=str(output),
        judge=(f"own:python={tmp_path / 'my_judge.py'}:WordOverlap",),
    )
    result = evaluate.run(config)
    written = json.loads(output.read_text())
    assert written == json.loads(json.dumps({k: v for k, v in result.items() if k != "output"}))
    assert written["pairs"]["num_pairs"] == written["pairs"]["num_documents"] == 20
    assert written["pairs"]["faithful_share"] == 0.5
    own = written["judges"]["own"]
    assert own["published_threshold"] == 0.8
    for how in ("whole", "sentence_mean", "sentence_min"):
        assert own[how]["auroc"] == own[how]["balanced_accuracy"] == 1.0
        assert own[how]["balanced_accuracy_tuned"] == 1.0
        assert own[how]["intervals"]["auroc"] == [1.0, 1.0]
        assert 0 <= own[how]["best_threshold"] < 1
    assert written["trivial"]["coverage"]["auroc"] == 1.0
    printed = capsys.readouterr()
    assert "20 pairs about 20 documents, 50.0 % faithful" in printed.out
    assert "own (whole): AUROC 1.000 [1.000, 1.000], balanced accuracy 1.000" in printed.out
    assert "judge own: 20/20 pairs" in printed.err
    with pytest.raises(OutputExistsError, match=r"judges\.json exists"):
        evaluate.run(config)


def test_validation_takes_no_model(pairs: Path) -> None:
    flags = {"validate_judge": str(pairs), "output": "o.json"}
    for other in ({"data": "d"}, {"model": ("m",)}, {"task": ("t",)}, {"baseline": "b"}):
        with pytest.raises(ConfigError, match="--validate-judge measures judges on labelled"):
            EvaluateStudentConfig(**flags, **other)
    with pytest.raises(ConfigError, match="--data is ''"):
        EvaluateStudentConfig(output="o.json", model=("m",))
    with pytest.raises(ConfigError, match="--model: give at least one"):
        EvaluateStudentConfig(output="o.json", data="d")
