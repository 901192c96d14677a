"""How sure models are of their own answers: by hand, and against a direct computation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_evaluation_run import config, many_rows, other_model
from test_judges import OWN
from transformers import AutoModelForCausalLM, AutoTokenizer

import pipeline.evaluation.evaluate as evaluate
from pipeline.evaluation.confident_answers import (
    MODEL_FREE,
    confident_figures,
    describe_confident_answers,
    median_confidence,
)
from pipeline.evaluation.scores import read_rows

__all__ = ["other_model"]  # a fixture


def row(number: int, confidence: float | None, novel: int | None, ok: bool | None) -> Any:
    names = {"novel_entities": ["x"] * (novel or 0), "novel_numbers": []}
    return {
        "document_id": str(number),
        "confidence": confidence,
        "overlap": None if novel is None else names,
        "judges": {"j": None if ok is None else {"consistent": ok}},
    }


ROWS = [
    row(0, 0.9, 1, False),
    row(1, 0.8, 0, True),
    row(2, 0.3, 2, False),
    row(3, 0.6, 0, True),
    row(4, None, 0, False),  # empty: unsupported for the judge, never sure
    row(5, 0.7, None, None),  # no source
]


def test_by_hand() -> None:
    median = median_confidence({"a": ROWS[:3], "b": ROWS[3:]})
    assert median == pytest.approx(0.7)
    found = {
        target: {name: figure.estimate for name, figure in figures.items()}
        for target, figures in confident_figures(ROWS, median).items()
    }
    # Bins of width 1/15: each answer has one of its own, so the errors do not cancel.
    ece = (0.9 + 0.2 + 0.3 + 0.4) / 4
    assert found == {
        MODEL_FREE: {
            "confident_unsupported_rate": pytest.approx(1 / 5),
            "ece": pytest.approx(ece),
            "auroc": pytest.approx(roc_auc_score([0, 1, 0, 1], [0.9, 0.8, 0.3, 0.6])),
        },
        "j": {
            "confident_unsupported_rate": pytest.approx(1 / 5),
            "ece": pytest.approx(ece),
            "auroc": pytest.approx(0.5),
        },
    }


def test_answers_of_one_kind_and_none_at_all() -> None:
    assert "auroc" not in confident_figures([ROWS[1], ROWS[3]], 0.5)[MODEL_FREE]
    assert confident_figures([ROWS[5]], 0.5) == {}
    nothing = describe_confident_answers({"a": [ROWS[4]]})
    assert nothing["median_confidence"] is None
    figures = nothing["models"]["a"]["j"]
    assert (figures["confident_unsupported_rate"], "ece" in figures) == (0, False)


def test_confidences_are_the_models_own(
    tmp_path: Path, tiny_model: Path, other_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_judge.py").write_text(OWN)
    data = many_rows(tmp_path / "data.jsonl")
    settings = {"judge": (f"own:python={tmp_path / 'my_judge.py'}:WordOverlap",)}
    result = evaluate.run(config(data, tiny_model, other_model, **settings))
    folder = data.parent / "out"
    rows = read_rows(folder / "predictions" / "scores" / "model.jsonl")
    kept = (folder / "answers" / "scores" / "model.jsonl").read_text().splitlines()[1:]
    ids = {line["example_id"]: line["token_ids"] for line in map(json.loads, kept)}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    source = json.loads(data.read_text().splitlines()[2])
    text = f"<|im_start|>user\n{source['instruction']}\n\n{source['context']}<|im_end|>\n"
    prompt = tokenizer(f"{text}<|im_start|>assistant\n", add_special_tokens=False).input_ids
    answer = ids[rows[2]["example_id"]]
    with torch.inference_mode():
        logprobs = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    picked = [logprobs[len(prompt) - 1 + n, token].item() for n, token in enumerate(answer)]
    assert rows[2]["confidence"] == pytest.approx(np.exp(np.mean(picked)), rel=1e-5)
    found = result["confident_answers"]
    assert set(found["models"]["other"]) == {MODEL_FREE, "own"}
    both = [row["confidence"] for row in rows]
    both += [
        row["confidence"] for row in read_rows(folder / "predictions" / "scores" / "other.jsonl")
    ]
    assert found["median_confidence"] == pytest.approx(np.median(both))
    compared = {one["figure"]: one for one in result["comparisons"]["results"]}
    for name in ("confident_unsupported_rate", "own_confident_unsupported_rate"):
        target = "own" if name.startswith("own") else MODEL_FREE
        values = [found["models"][m][target]["confident_unsupported_rate"] for m in found["models"]]
        assert compared[name]["difference"] == pytest.approx(values[1] - values[0])
        assert compared[name]["family"] == "exploratory"
    assert result["models"]["model"]["cost"]["own_answers"]["rows"] == 12
    assert "model: answers surer than most and unsupported, by names and" in (
        capsys.readouterr().out
    )
