"""evaluate-student --lookback-lens: the factual rate of answers, and lenses that do not fit."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluation_lookback_fit import config as fit_config
from transformers import AutoModelForCausalLM, AutoTokenizer

import pipeline.evaluation.answers as answers_module
import pipeline.evaluation.evaluate as evaluate
import pipeline.evaluation.lookback_answers as lookback_answers
import pipeline.evaluation.model_in_use as model_in_use
import pipeline.evaluation.model_scores as model_scores
from pipeline.errors import DataError, ModelError, OutputExistsError
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.figures import lookback_figures
from pipeline.evaluation.lookback import lookback_ratios
from pipeline.evaluation.lookback_fit import run as fit
from pipeline.evaluation.lookback_lens import LookbackLens, read_lens, write_lens
from pipeline.evaluation.scores import aggregate, read_rows

FIGURES = {
    "factual_rate",
    "factual_rate_at_half",
    "factual_rate_of_answers",
    "all_factual_rate",
    "mean_lookback_ratio",
}


@pytest.fixture(scope="module")
def lens_path(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lens")
    fit(fit_config(folder, tiny_model))
    return folder / "lens.json"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"instruction": "Sum.", "context": f"The fox {n} jumps over dogs.", "response": f"Fox {n}"}
        for n in range(11)
    ]
    rows.append({"instruction": "Name the fox.", "context": "", "response": "a fox"})
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def student(tiny_model: Path, tmp_path: Path) -> Path:
    """The same architecture with other weights."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(2)
    with torch.no_grad():
        weight = model.model.layers[0].self_attn.q_proj.weight
        weight.add_(weight.std() * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def config(data: Path, lens: object, *models: object, **changes: Any) -> EvaluateStudentConfig:
    settings = {
        "data": str(data),
        "model": tuple(str(model) for model in models),
        "output": str(data.parent / "out" / "scores.json"),
        "lookback_lens": None if lens is None else str(lens),
        "max_new_tokens": 9,
        "engine": "transformers",
        "max_prompt_tokens": 150,
        "max_sequence_tokens": 200,
    }
    return EvaluateStudentConfig(**{**settings, **changes})


def test_rates_by_hand() -> None:
    parts = [
        {
            "mean_ratio": 0.2,
            "probabilities": [0.1, 0.4, 0.6],
            "num_factual": 2,
            "num_factual_at_half": 1,
        },
        None,
        {"mean_ratio": None, "probabilities": [], "num_factual": 0, "num_factual_at_half": 0},
        {"mean_ratio": 0.6, "probabilities": [0.9], "num_factual": 1, "num_factual_at_half": 1},
    ]
    found = {name: figure.estimate for name, figure in lookback_figures(parts).items()}
    assert found == {
        "factual_rate": 3 / 4,
        "factual_rate_at_half": 2 / 4,
        "factual_rate_of_answers": pytest.approx((2 / 3 + 1) / 2),
        "all_factual_rate": 1 / 2,
        "mean_lookback_ratio": pytest.approx(0.4),
    }
    assert set(lookback_figures([None]).values()) != set()
    assert {figure.estimate for figure in lookback_figures([None]).values()} == {None}


def test_the_factual_rate_stands_in_scores_rows_and_comparisons(
    data: Path, lens_path: Path, tiny_model: Path, student: Path
) -> None:
    scores = evaluate.run(config(data, lens_path, tiny_model, student))
    lens = read_lens(lens_path)
    for name, own in (("model", True), ("student", False)):
        entry = scores["models"][name]
        rows = read_rows(data.parent / "out" / "predictions" / "scores" / f"{name}.jsonl")
        assert rows[-1]["lookback"] is None, "no document, nothing to look back at"
        windows = [row["lookback"]["probabilities"] for row in rows[:-1]]
        for row, probabilities in zip(rows, windows, strict=False):
            assert len(probabilities) == max(1, row["num_prediction_tokens"] - 3)
        assert entry["factual_rate"] == pytest.approx(
            np.mean([p >= lens.threshold for one in windows for p in one])
        )
        assert FIGURES < set(entry["intervals"])
        assert aggregate(rows, 15)["factual_rate"] == entry["factual_rate"]
        assert entry["lookback_lens"] == {
            "fingerprint": lens.fingerprint,
            "fitted_on": "model",
            "fitted_on_this_model": own,
            "window": 4,
            "threshold": lens.threshold,
        }
        assert entry["cost"]["lookback_lens"]["rows"] == 12
    compared = {one["figure"]: one for one in scores["comparisons"]["results"]}
    assert FIGURES < set(compared)
    assert compared["factual_rate"]["family"] == "primary"
    change = compared["mean_lookback_ratio"]["difference"]
    values = [scores["models"][name]["mean_lookback_ratio"] for name in ("student", "model")]
    assert change == pytest.approx(values[0] - values[1])
    assert change != 0


def test_the_rows_hold_what_the_model_attends_to(
    data: Path, lens_path: Path, tiny_model: Path
) -> None:
    """The stored numbers against a direct computation from text to probability."""
    evaluate.run(config(data, lens_path, tiny_model))
    row = read_rows(data.parent / "out" / "predictions" / "scores" / "model.jsonl")[3]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    before = "<|im_start|>user\nSum.\n\nThe fox 3 jumps over dogs."
    cue = "<|im_end|>\n<|im_start|>assistant\n"
    context, rest = (tokenizer(part, add_special_tokens=False).input_ids for part in (before, cue))
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with torch.inference_mode():
        prompt = torch.tensor([context + rest])
        output = model.generate(prompt, max_new_tokens=9, do_sample=False)[0]
    answer = output[prompt.shape[1] :].tolist()
    answer = answer[: answer.index(2)] if 2 in answer else answer
    assert len(answer) == row["num_prediction_tokens"] > 4
    (ratios,) = lookback_ratios(model, context + rest, [answer], len(context))
    lens = read_lens(lens_path)
    expected = []
    for start in range(len(answer) - 3):
        logit = ratios[start : start + 4].mean(axis=0) @ np.array(lens.coefficients)
        expected.append(1 / (1 + np.exp(-logit - lens.intercept)))
    np.testing.assert_allclose(row["lookback"]["probabilities"], expected, atol=2e-5)
    assert row["lookback"]["mean_ratio"] == pytest.approx(ratios.mean(), abs=1e-5)


def test_empty_answers_have_no_windows(lens_path: Path, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    found = lookback_answers._measure(read_lens(lens_path), model, [5, 6, 7], [], 2)
    assert found == {
        "mean_ratio": None,
        "probabilities": [],
        "num_factual": 0,
        "num_factual_at_half": 0,
    }


def test_without_a_lens_nothing_is_added(data: Path, tiny_model: Path) -> None:
    scores = evaluate.run(config(data, None, tiny_model))
    assert not FIGURES & set(scores["models"]["model"])
    rows = read_rows(data.parent / "out" / "predictions" / "scores" / "model.jsonl")
    assert "lookback" not in rows[0]


@pytest.mark.slow
def test_a_lens_is_added_to_finished_scores_without_generating(
    data: Path, lens_path: Path, tiny_model: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = evaluate.run(config(data, lens_path, tiny_model, student))["models"]
    rows = data.parent / "out" / "predictions" / "scores"
    expected = {name: read_rows(rows / f"{name}.jsonl") for name in at_once}
    shutil.rmtree(data.parent / "out")
    plain = evaluate.run(config(data, None, tiny_model, student))
    monkeypatch.setattr(answers_module, "_start", lambda *a: pytest.fail("generated again"))
    monkeypatch.setattr(model_scores, "score_gold_tokens", lambda *a, **b: pytest.fail("read"))
    added = evaluate.run(config(data, lens_path, tiny_model, student))
    assert added["evaluated"] == []
    for name, entry in added["models"].items():
        assert read_rows(rows / f"{name}.jsonl") == expected[name]
        assert {key: entry[key] for key in FIGURES} == {key: at_once[name][key] for key in FIGURES}
        assert entry["response_nll_nats"] == plain["models"][name]["response_nll_nats"]
    monkeypatch.setattr(lookback_answers, "measure_answers", lambda *a: pytest.fail("again"))
    for lens in (lens_path, None):  # what is there stays
        again = evaluate.run(config(data, lens, tiny_model, student))
        assert again["models"] == json.loads(json.dumps(added["models"]))


def test_another_lens_over_the_same_scores_is_refused(
    data: Path, lens_path: Path, tiny_model: Path, tmp_path: Path
) -> None:
    evaluate.run(config(data, lens_path, tiny_model))
    lens = read_lens(lens_path)
    write_lens(tmp_path / "other.json", dataclasses.replace(lens, threshold=lens.threshold / 2))
    with pytest.raises(OutputExistsError, match=f"with another lens .*{lens.fingerprint[:12]}"):
        evaluate.run(config(data, tmp_path / "other.json", tiny_model))


@pytest.mark.slow
def test_a_lens_needs_the_answers(data: Path, lens_path: Path, tiny_model: Path) -> None:
    evaluate.run(config(data, None, tiny_model))
    path = data.parent / "out" / "answers" / "scores" / "model.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    row = json.loads(lines[4])
    path.write_text("".join([*lines[:4], json.dumps({**row, "text": "other"}) + "\n", *lines[5:]]))
    with pytest.raises(DataError, match=r"model\.jsonl hold different answers"):
        evaluate.run(config(data, lens_path, tiny_model))
    path.write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match="holds 11 answers, expected 12"):
        evaluate.run(config(data, lens_path, tiny_model))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"architecture": {"hidden_size": 64}}, "model 'model' is of another architecture"),
        ({"vocabulary_fingerprint": "w"}, "model 'model' has another tokenizer"),
        ({"template_fingerprint": "w"}, "other prompts than model 'model' reads"),
    ],
)
def test_a_lens_of_another_model_is_refused_before_loading(
    data: Path,
    lens_path: Path,
    tiny_model: Path,
    tmp_path: Path,
    change: dict[str, Any],
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_in_use, "load_model", lambda *a, **b: pytest.fail("loaded"))
    write_lens(tmp_path / "other.json", dataclasses.replace(read_lens(lens_path), **change))
    with pytest.raises(ModelError, match=found):
        evaluate.run(config(data, tmp_path / "other.json", tiny_model))
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "none.json"))):
        evaluate.run(config(data, tmp_path / "none.json", tiny_model))
    assert not (data.parent / "out").exists()


def test_other_layers_are_refused(data: Path, lens_path: Path, tiny_model: Path) -> None:
    lens: LookbackLens = dataclasses.replace(read_lens(lens_path), layers=(0,))
    inputs = evaluate.find_inputs(config(data, None, tiny_model))[0]
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(ModelError, match=r"in the layers \(0, 1\): the lens was fitted on the lay"):
        lookback_answers.measure_answers(lens, model, inputs, [])
