"""Scores of gold tokens: equal to the model's own loss, independent of padding and chunks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluation_calibration import LABELS, PROBS, scores_of
from transformers import AutoModelForCausalLM

import pipeline.evaluation.teacher_forced as teacher_forced
from pipeline.data.tokenization import Example
from pipeline.errors import ModelError
from pipeline.evaluation.calibration import TokenScores
from pipeline.evaluation.teacher_forced import score_gold_tokens

LENGTHS = [(12, 5), (30, 1), (9, 8), (40, 37), (5, 4)]  # (tokens, response start)


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture
def examples() -> list[Example]:
    generator = np.random.default_rng(5)
    return [
        Example(generator.integers(4, 260, length).astype(np.int32), start)
        for length, start in LENGTHS
    ]


def score(model: Any, examples: list[Example], batch_size: int = 3) -> list[TokenScores]:
    return score_gold_tokens(model, examples, batch_size=batch_size, label="tiny")


def assert_equal(found: list[TokenScores], expected: list[TokenScores]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in TokenScores.__slots__:
            np.testing.assert_allclose(
                getattr(one, name), getattr(other, name), rtol=1e-5, atol=2e-6, err_msg=name
            )


@torch.no_grad()
def test_nll_is_the_models_own_loss(model: Any, examples: list[Example]) -> None:
    for example, scores in zip(examples, score(model, examples), strict=True):
        input_ids = torch.tensor(example.input_ids[None].astype(np.int64))
        labels = input_ids.clone()
        labels[:, : example.response_start] = -100
        loss = float(model(input_ids=input_ids, labels=labels).loss)
        assert len(scores.label_logprobs) == len(example.input_ids) - example.response_start
        assert -scores.label_logprobs.mean() == pytest.approx(loss, rel=1e-5)


@torch.no_grad()
def test_every_number_equals_plain_float64(model: Any, examples: list[Example]) -> None:
    expected = []
    for example in examples:
        ids = example.input_ids.astype(np.int64)
        logits = model(input_ids=torch.tensor(ids[None])).logits[0].double()
        probs = logits.softmax(-1)[example.response_start - 1 : -1].numpy()
        expected.append(scores_of(probs, ids[example.response_start :]))
    assert_equal(score(model, examples), expected)


def test_padding_order_and_chunks_do_not_matter(
    model: Any, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [score(model, [example])[0] for example in examples]
    assert_equal(score(model, examples, batch_size=5), alone)
    assert_equal(score(model, examples[::-1], batch_size=2)[::-1], alone)
    monkeypatch.setattr(teacher_forced, "CHUNK_LOGITS", 2 * model.config.vocab_size)
    assert_equal(score(model, examples, batch_size=5), alone)


def test_a_model_that_always_gives_all_logits(model: Any, examples: list[Example]) -> None:
    class Plain(torch.nn.Module):
        device = torch.device("cpu")

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            position_ids: torch.Tensor,
            use_cache: bool,
        ) -> Any:
            return model(input_ids, attention_mask, position_ids, use_cache=use_cache)

    assert_equal(score(Plain(), examples), score(model, examples))


def test_an_adapter_is_scored(model: Any, examples: list[Example]) -> None:
    from peft import LoraConfig, get_peft_model

    plain = score(model, examples)
    settings = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, settings).eval()
    found = score(adapted, examples)
    assert not np.allclose(found[0].label_logprobs, plain[0].label_logprobs)
    assert_equal(found, score(adapted.merge_and_unload(), examples))


def test_the_vector_through_logits() -> None:
    """Logits shifted by a constant a row: the softmax, not the raw numbers, is measured."""
    logits = torch.tensor(np.log(PROBS) + np.arange(5)[:, None] * 10).float()
    columns = teacher_forced._score_chunk(logits, torch.tensor(LABELS)).numpy().T
    label_logprobs, confidences, correct, entropies, squares = columns
    found = TokenScores(label_logprobs, confidences, correct.astype(bool), entropies, squares)
    assert_equal([found], [scores_of(PROBS, LABELS)])


def test_no_finite_number_is_refused(model: Any, examples: list[Example]) -> None:
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="nan: expected finite numbers"):
        score(model, examples)
