"""Rates corrected for a judge's errors: by hand, on simulated judges, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_evaluation_run import config, forbid_loading, many_rows
from test_judges import OWN

import pipeline.evaluation.evaluate as evaluate
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.corrected_rates import correct_rate, format_corrected
from pipeline.evaluation.validation import measure_scores


def judged(flags: Any) -> list[dict[str, Any]]:
    return [
        {
            "document_id": str(n),
            "empty": False,
            # Without a source there is nothing to judge against.
            "judges": {
                "j": flag
                if flag is None
                else {"score": float(flag), "sentence_scores": [], "consistent": bool(flag)}
            },
        }
        for n, flag in enumerate(flags)
    ]


def validated(called: Any, labels: Any) -> dict[str, Any]:
    scores, labels = np.asarray(called, dtype=np.float64), np.asarray(labels, dtype=bool)
    documents = [str(n) for n in range(len(labels))]
    return {"whole": measure_scores(scores, labels, documents, 0.5), "validated_on": {}}


def test_by_hand() -> None:
    # TPR 8/10, TNR 9/10; 45 % are called consistent: (0.45 - 0.1) / 0.7 = 0.5.
    judge = validated([1] * 80 + [0] * 20 + [1] * 10 + [0] * 90, [1] * 100 + [0] * 100)
    found = correct_rate(judged([1] * 9 + [0] * 11), "j", judge)
    assert (found["tpr"], found["tnr"]) == (0.8, 0.9)
    assert found["rate"] == pytest.approx(0.5)
    low, high = found["interval"]
    assert low < 0.5 < high
    text = format_corrected("kd", "j", 0.45, found)
    assert text.startswith("kd: consistent by j 45.0 %, corrected for its errors 50.0 % [")


@pytest.mark.slow
def test_the_interval_holds_the_truth_and_the_observed_rate_does_not() -> None:
    generator = np.random.default_rng(0)
    truth, tpr, tnr, inside = 0.7, 0.8, 0.75, 0
    for _ in range(20):
        labels = generator.random(400) < 0.5
        called = np.where(labels, generator.random(400) < tpr, generator.random(400) > tnr)
        supported = generator.random(300) < truth
        answers = np.where(supported, generator.random(300) < tpr, generator.random(300) > tnr)
        found = correct_rate(judged(answers), "j", validated(called, labels))
        inside += found["interval"][0] <= truth <= found["interval"][1]
        assert abs(answers.mean() - truth) > 0.02
    assert inside >= 17


@pytest.mark.parametrize(
    ("called", "observed", "reason"),
    [
        (
            [1, 0] * 10 + [1, 0] * 10,
            [1] * 10 + [0] * 10,
            "some resample of the labels has TPR + TNR - 1 = -0.",
        ),
        ([1] * 20 + [0] * 18 + [1] * 2, [0] * 20, "it would be -0.111: the judge's error rates"),
        ([1] * 20 + [0] * 20, [1] * 5, "fewer than 10 documents"),
        ([1] * 20 + [0] * 20, [1] * 2 + [None] * 10, "some resample has no judged answer"),
    ],
)
def test_no_rate_where_the_numbers_contradict_it(called, observed, reason) -> None:
    judge = validated(called, [1] * 20 + [0] * 20)
    found = correct_rate(judged(observed), "j", judge)
    assert (found["rate"], found["interval"]) == (None, None)
    assert reason in found["reason"]
    assert "not corrected for its errors: " in format_corrected("m", "j", 0.1, found)


@pytest.fixture
def judge(tmp_path: Path) -> str:
    (tmp_path / "my_judge.py").write_text(OWN)
    return f"python={tmp_path / 'my_judge.py'}:WordOverlap"


def validate(tmp_path: Path, judge: str, *, labelled: bool = True) -> Path:
    rows = [
        {"document": f"The cat {n} sat.", "summary": f"the cat {n}" if n % 2 else "a dog ran"}
        for n in range(20)
    ]
    if labelled:
        rows = [{**row, "label": n % 2} for n, row in enumerate(rows)]
    path = tmp_path / f"pairs-{labelled}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / f"judges-{labelled}.json"
    evaluate.run(
        EvaluateStudentConfig(
            validate_judge=str(path), output=str(output), judge=(f"first:{judge}",)
        )
    )
    return output


def test_scores_are_corrected_with_a_validation_file(
    tmp_path: Path,
    tiny_model: Path,
    judge: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, path = many_rows(tmp_path / "data.jsonl"), validate(tmp_path, judge)
    flag = f"own:{judge}"  # another name, the same content
    evaluate.run(config(data, tiny_model, judge=(flag,)))
    assert "corrected for" not in capsys.readouterr().out
    forbid_loading(monkeypatch)
    result = evaluate.run(config(data, tiny_model, judge_validation=str(path)))
    found = result["models"]["model"]["judges"]["own"]["corrected"]
    assert (found["tpr"], found["tnr"], found["rate"]) == (1, 1, 0)
    assert found["validated_on"]["num_pairs"] == 20
    assert "model: consistent by own 0.0 %, corrected for its errors 0.0 %" in (
        capsys.readouterr().out
    )


def test_what_is_no_validation_of_these_judges_is_refused_first(
    tmp_path: Path, tiny_model: Path, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_loading(monkeypatch)
    data = many_rows(tmp_path / "data.jsonl")
    settings = {"judge": (f"own:{judge}",)}
    path = validate(tmp_path, judge)
    without = validate(tmp_path, judge, labelled=False)
    with pytest.raises(DataError, match="was made without labels: no error rates"):
        evaluate.run(config(data, tiny_model, judge_validation=str(without), **settings))
    with pytest.raises(DataError, match=r"none\.json is no file of --validate-judge"):
        evaluate.run(config(data, tiny_model, judge_validation=str(tmp_path / "none.json")))
    (tmp_path / "my_judge.py").write_text(OWN.replace("0.8", "0.9"))
    with pytest.raises(DataError, match=r"knows first, whose content is not that .* \(own\)"):
        evaluate.run(config(data, tiny_model, judge_validation=str(path), **settings))
    with pytest.raises(ConfigError, match="leave out --data, --model, --baseline, --baselin"):
        EvaluateStudentConfig(validate_judge="p", output="o.json", judge_validation="v.json")
