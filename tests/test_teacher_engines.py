"""Engines against a slow truth: the right rows, the right entries, named errors."""

import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.data.tokenization import Example
from pipeline.errors import MissingPackageError
from pipeline.models.checkpoint import find_checkpoint
from pipeline.models.engines import pick_engine
from pipeline.teacher.engine import EngineError
from pipeline.teacher.row_spec import RowSpec
from pipeline.teacher.transformers_engine import TransformersEngine
from pipeline.teacher.vllm_public import scores_from_flat


def make_example(*tokens: int, start: int) -> Example:
    return Example(np.asarray(tokens, np.int32), start)


def random_examples(num: int, vocabulary: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(num):
        total = int(rng.integers(2, 40))
        start = int(rng.integers(1, total))
        examples.append(make_example(*rng.integers(4, vocabulary, total), start=start))
    return examples


@functools.cache
def load_float64(path: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().double()


def true_logprobs(model_path: Path, example: Example) -> np.ndarray:
    """Float64 [N, V] rows of one unpadded forward pass."""
    model = load_float64(model_path)
    with torch.no_grad():
        ids = torch.from_numpy(example.input_ids.astype(np.int64))[None]
        logits = model(input_ids=ids, use_cache=False).logits[0].numpy()
    rows = logits[example.response_start - 1 : len(example.input_ids) - 1]
    shifted = rows - rows.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def engine_for(path: Path, **changes: object) -> TransformersEngine:
    return TransformersEngine(
        find_checkpoint(str(path)),
        spec=RowSpec(**{"k": 8, "vocabulary_size": 320, **changes}),  # type: ignore[arg-type]
        dtype="float32",
        batch_tokens=96,
        trust_remote_code=False,
    )


def test_transformers_engine_equals_unpadded_float64_rows(tiny_model: Path) -> None:
    examples = random_examples(12, 300)
    for example, scores in zip(examples, engine_for(tiny_model).score(examples), strict=True):
        truth = true_logprobs(tiny_model, example)
        assert scores.token_ids_NK.shape == (len(truth), 8)
        np.testing.assert_array_equal(scores.token_ids_NK[:, 0], truth.argmax(1))
        found = np.take_along_axis(truth, scores.token_ids_NK.astype(np.int64), 1)
        np.testing.assert_allclose(scores.logprobs_NK, found, atol=2e-5)
        np.testing.assert_allclose(found.min(1), np.sort(truth, 1)[:, -8], atol=2e-5)
        labels = example.input_ids[example.response_start :]
        np.testing.assert_allclose(
            scores.label_logprobs_N, truth[np.arange(len(labels)), labels], atol=2e-5
        )


def test_rows_shifted_by_one_would_not_pass(tiny_model: Path) -> None:
    example = random_examples(1, 300, seed=5)[0]
    (scores,) = engine_for(tiny_model).score([example])
    truth = true_logprobs(tiny_model, example)
    shifted = np.roll(truth, 1, axis=0)
    found = np.take_along_axis(shifted, scores.token_ids_NK.astype(np.int64), 1)
    assert abs(found - scores.logprobs_NK).max() > 0.1


def test_padding_rows_are_never_candidates_but_stay_in_the_normaliser(tiny_model: Path) -> None:
    example = random_examples(1, 200, seed=2)[0]
    truth = true_logprobs(tiny_model, example)
    (scores,) = engine_for(tiny_model, vocabulary_size=200).score([example])
    assert scores.token_ids_NK.max() < 200
    found = np.take_along_axis(truth, scores.token_ids_NK.astype(np.int64), 1)
    np.testing.assert_allclose(scores.logprobs_NK, found, atol=2e-5)


def flat_rows(rows: list[list[tuple[int, float]]]) -> SimpleNamespace:
    """An object shaped like vLLM's FlatLogprobs; the first row of a prompt is empty."""
    flat = SimpleNamespace(start_indices=[], end_indices=[], token_ids=[], logprobs=[])
    for row in rows:
        flat.start_indices.append(len(flat.token_ids))
        flat.token_ids += [token for token, _ in row]
        flat.logprobs += [logprob for _, logprob in row]
        flat.end_indices.append(len(flat.token_ids))
    return flat


PROMPT_ROW = [(11, -9.0), (1, -0.5), (2, -1.5)]


def test_flat_rows_keep_the_true_k_entries_and_the_label_apart() -> None:
    # Token 30 is outside the top-2 of its row, 2 is inside (and so appears twice).
    flat = flat_rows(
        [[], PROMPT_ROW, [(30, -7.0), (1, -0.4), (2, -1.2)], [(2, -0.9), (5, -0.8), (2, -0.9)]]
    )
    scores = scores_from_flat(flat, make_example(10, 11, 30, 2, start=2), k=2)
    assert scores.token_ids_NK.tolist() == [[1, 2], [5, 2]]
    np.testing.assert_allclose(scores.logprobs_NK, [[-0.4, -1.2], [-0.8, -0.9]])
    np.testing.assert_allclose(scores.label_logprobs_N, [-7.0, -0.9])


def test_flat_rows_that_are_missing_short_or_misplaced_are_errors() -> None:
    example = make_example(10, 11, 30, start=2)
    with pytest.raises(EngineError, match="0 prompt rows for 3 tokens"):
        scores_from_flat(None, example, k=2)
    with pytest.raises(EngineError, match="2 prompt rows for 3 tokens"):
        scores_from_flat(flat_rows([[], PROMPT_ROW]), example, k=2)
    with pytest.raises(EngineError, match="2 entries for token 2, not 3"):
        scores_from_flat(flat_rows([[], PROMPT_ROW, [(30, -1.0), (1, -0.4)]]), example, k=2)
    shifted = flat_rows([[], PROMPT_ROW, PROMPT_ROW])
    with pytest.raises(EngineError, match="token 2 scores id 11, the token is 30"):
        scores_from_flat(shifted, example, k=2)


def test_auto_takes_vllm_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert pick_engine("auto") == ("transformers", "vLLM is not installed")
    with pytest.raises(MissingPackageError, match=r"smoothkd\[teacher\]"):
        pick_engine("vllm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert pick_engine("auto") == ("vllm", "vLLM is installed")
    assert pick_engine("transformers") == ("transformers", "asked for")
