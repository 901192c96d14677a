"""Judges in evaluate-student: what is stored, compared, kept by a rerun, and refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_factory import make_hhem, make_nli
from test_evaluation_run import config, forbid_loading, many_rows
from test_judges import OWN

import pipeline.evaluation.evaluate as evaluate
import pipeline.evaluation.judging as judging
from pipeline.errors import ConfigError, DataError, ModelError, OutputExistsError
from pipeline.evaluation.consistency import consistency_figures, judge_documents
from pipeline.evaluation.judges.loading import find_judge, load_judge
from pipeline.evaluation.judges.protocol import JudgeChoice, Pair
from pipeline.evaluation.scores import aggregate, read_rows

NAMES = {
    "consistency",
    "consistent_rate",
    "sentence_mean",
    "sentence_min",
    "consistency_without_empty",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return many_rows(tmp_path / "data.jsonl")


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "my_judge.py").write_text(OWN)
    return f"own:python={tmp_path / 'my_judge.py'}:WordOverlap"


class Table:
    """Scores by hypothesis; remembers what it was asked."""

    threshold = 0.5

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores, self.asked = scores, []

    def score(self, pairs: list[Pair]) -> list[float]:
        self.asked += pairs
        return [self.scores[hypothesis] for _, hypothesis in pairs]


def test_answers_are_judged_whole_and_by_sentence() -> None:
    judge = Table({"A is. B is.": 0.9, "A is.": 0.5, "B is.": 0.2, "One.": 0.7})
    sources = ["a source", "a source", None, "a source", "..."]
    answers = ["A is. B is.", " One.\n", "A is.", " ", "A is."]
    found = judge_documents("j", judge, sources, answers)
    assert found == [
        {"score": 0.9, "sentence_scores": [0.5, 0.2], "consistent": True},
        {"score": 0.7, "sentence_scores": [0.7], "consistent": True},
        None,
        {"score": 0.0, "sentence_scores": [], "consistent": False},
        None,
    ]
    assert len(judge.asked) == len(set(judge.asked)) == 4  # each pair once, none empty
    edge = judge_documents("j", Table({"A.": 0.5}), ["x"], ["A."])
    assert edge[0] is not None
    assert edge[0]["consistent"] is False  # above the threshold, not at it
    rows = [
        {"empty": not answer.strip(), "judges": {"j": one}}
        for answer, one in zip(answers, found, strict=True)
    ]
    figures = {name: figure.estimate for name, figure in consistency_figures(rows).items()}
    assert figures == {
        "j_consistency": pytest.approx((0.9 + 0.7 + 0.0) / 3),
        "j_consistent_rate": pytest.approx(2 / 3),
        "j_sentence_mean": pytest.approx((0.35 + 0.7 + 0.0) / 3),
        "j_sentence_min": pytest.approx((0.2 + 0.7 + 0.0) / 3),
        "j_consistency_without_empty": pytest.approx(0.8),
    }
    assert consistency_figures([{"empty": False}]) == {}


@pytest.mark.slow
def test_a_run_with_judges(
    data: Path, tiny_model: Path, tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    nli = make_nli(tmp_path / "nli", ("contradiction", "entailment", "neutral"))
    flags = (own, f"summac={nli}")
    models = (tiny_model, f"same={tiny_model}")
    result = evaluate.run(config(data, *models, judge=flags))
    printed = capsys.readouterr()
    assert "own % [95 %]" in printed.out
    assert "no --judge given" not in printed.out
    assert "model: judge summac: 12/12 documents" in printed.err
    path = data.parent / "out" / "predictions" / "scores" / "model.jsonl"
    rows, entry = read_rows(path), result["models"]["model"]
    for judge in ("own", "summac"):
        assert {f"{judge}_{name}" for name in NAMES} <= set(entry) & set(entry["intervals"])
        about = entry["judges"][judge]
        assert about["num_judged"] == 12
        assert about["num_truncated_premises"] == 0
        assert entry["cost"][f"judge_{judge}"]["rows"] == 12
        assert entry["cost"][f"judge_{judge}"]["rows_per_second"] > 0
        scores = [row["judges"][judge]["score"] for row in rows]
        assert entry[f"{judge}_consistency"] == pytest.approx(np.mean(scores))
        assert entry[f"{judge}_consistent_rate"] == pytest.approx(
            np.mean([score > about["threshold"] for score in scores])
        )
    assert {key: entry[key] for key in aggregate(rows, 15)} == aggregate(rows, 15)
    again = load_judge(
        find_judge(JudgeChoice("summac", "summac", str(nli))), batch_size=3, device="cpu"
    )
    source = json.loads(data.read_text().splitlines()[0])["context"]
    assert rows[0]["judges"]["summac"]["score"] == pytest.approx(
        again.score([(source, rows[0]["prediction"].strip())])[0], abs=1e-5
    )
    found = {(one["figure"], one["family"]) for one in result["comparisons"]["results"]}
    assert ("own_consistency", "primary") in found
    assert ("summac_sentence_min", "exploratory") in found
    sentences = [one["sentence"] for one in result["comparisons"]["results"]]
    assert any("same against model: factual consistency (own) +0.0" in text for text in sentences)


@pytest.mark.slow
def test_a_judge_is_added_without_generating_again(
    data: Path,
    tiny_model: Path,
    own: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = evaluate.run(config(data, tiny_model, f"other={tiny_model}"))
    assert "no --judge given: factual consistency was not judged" in capsys.readouterr().out
    forbid_loading(monkeypatch)
    one = evaluate.run(config(data, f"other={tiny_model}", judge=(own,)))
    assert one["evaluated"] == []
    assert "own_consistency" in one["models"]["other"]
    # The other model was not asked for: it keeps its figures and is compared in those.
    assert one["models"]["model"] == json.loads(json.dumps(first["models"]["model"]))
    figures = {found["figure"] for found in one["comparisons"]["results"]}
    assert "rougeL_f1" in figures
    assert "own_consistency" not in figures
    both = evaluate.run(config(data, tiny_model, f"other={tiny_model}", judge=(own,)))
    assert "own_consistency" in both["models"]["model"]
    monkeypatch.setattr(judging, "load_judge", lambda *a, **k: pytest.fail("judged again"))
    again = evaluate.run(config(data, tiny_model, f"other={tiny_model}", judge=(own,)))
    both = json.loads(json.dumps(both))
    assert again["models"] == both["models"]
    kept = evaluate.run(config(data, tiny_model))
    assert kept["models"] == both["models"]


def test_another_judge_under_the_same_name_is_refused(
    data: Path, tiny_model: Path, tmp_path: Path, own: str
) -> None:
    evaluate.run(config(data, tiny_model, judge=(own,)))
    (tmp_path / "my_judge.py").write_text(OWN.replace("0.8", "0.9"))
    with pytest.raises(OutputExistsError, match="'model' was judged by another 'own':\n  finger"):
        evaluate.run(config(data, tiny_model, judge=(own,)))


def test_judges_are_checked_before_any_model_is_loaded(
    data: Path, tiny_model: Path, tmp_path: Path, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_loading(monkeypatch)
    with pytest.raises(ModelError, match="no model at '/nowhere'"):
        evaluate.run(config(data, tiny_model, judge=("hhem=/nowhere",)))
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"instruction": "Say a.", "response": "a"}) + "\n")
    with pytest.raises(DataError, match="--judge own: none of the 1 documents has a source"):
        evaluate.run(config(plain, tiny_model, judge=(own,)))
    with pytest.raises(ConfigError, match="--judge 'x=y'"):
        config(data, tiny_model, judge=("x=y",))


def test_one_judge_is_in_memory_at_a_time(
    data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    alive: list[Any] = []
    real = judging.load_judge

    def load(*arguments: Any, **options: Any) -> Any:
        assert [one() for one in alive if one() is not None] == []

        class Wrapped:
            def __init__(self, inner: Any) -> None:
                self.inner, self.threshold = inner, inner.threshold

            def score(self, pairs: Any) -> Any:
                return self.inner.score(pairs)

        judge = Wrapped(real(*arguments, **options))
        alive.append(weakref.ref(judge))
        return judge

    monkeypatch.setattr(judging, "load_judge", load)
    path = make_hhem(tmp_path / "hhem")
    evaluate.run(config(data, tiny_model, judge=(f"a:hhem={path}", f"b:hhem={path}")))
    assert len(alive) == 2
