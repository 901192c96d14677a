"""The token view: what the cache and the students say at each position, stored and reused."""

import json
from pathlib import Path

import numpy as np
import pytest
from cache_factory import make_cache, random_responses
from sweep_factory import make_rows, make_scores, write_scores

from pipeline.errors import DataError, ModelError
from pipeline.models.checkpoint import find_checkpoint, fingerprint_checkpoint
from pipeline.report.config import BuildReportConfig
from pipeline.report.inputs import Inputs, read_inputs
from pipeline.report.token_students import Student, score_student
from pipeline.report.token_view import (
    MAX_SHOWN_TOKENS,
    choose_examples,
    find_students,
    teacher_positions,
    token_view,
)
from storage_schema import LogitCache, open_cache

ARMS = ("student", "alpha-0", "alpha-0.1", "alpha-1")


@pytest.fixture
def cache(tmp_path: Path, tiny_model: Path) -> LogitCache:
    return tiny_cache(tmp_path / "cache", tiny_model)


def tiny_cache(path: Path, model: Path, num: int = 10) -> LogitCache:
    from pipeline.models.loading import load_tokenizer
    from pipeline.models.vocabulary import fingerprint_vocabulary, vocabulary_size

    tokenizer = load_tokenizer(find_checkpoint(str(model)))
    size = vocabulary_size(tokenizer)
    responses = random_responses(num, vocabulary_size=size)
    vocabulary = fingerprint_vocabulary(tokenizer)
    make_cache(path, responses, vocabulary_size=size, vocabulary_fingerprint=vocabulary)
    return open_cache(path)


def tiny_inputs(tmp_path: Path, model: Path, cache: LogitCache) -> tuple[BuildReportConfig, Inputs]:
    """Scores whose models are all the tiny one, and a report's settings."""
    scores = make_scores([*ARMS, "teacher"])
    fingerprint = fingerprint_checkpoint(find_checkpoint(str(model)))
    for entry in scores["models"].values():
        entry |= {"checkpoint": str(model), "fingerprint": fingerprint}
    path = write_scores(tmp_path / "demo.json", scores, make_rows(12))
    config = BuildReportConfig(
        scores=(str(path),),
        cache=str(cache.path),
        token_examples=3,
        output=str(tmp_path / "report.html"),
    )
    return config, read_inputs(config)


def test_examples_are_evenly_spaced_or_named(cache: LogitCache) -> None:
    assert choose_examples(cache, 3, ()) == [1, 5, 8]
    assert choose_examples(cache, 99, ()) == list(range(10))
    names = (cache[7].example_id.hex()[:10], cache[2].example_id.hex())
    assert choose_examples(cache, 3, names) == [7, 2]
    with pytest.raises(DataError, match="--example 000000: 0 of the 10 examples"):
        choose_examples(cache, 3, ("000000",))


@pytest.mark.parametrize("exact", [True, False])
def test_the_teachers_rows_are_the_caches(tmp_path: Path, exact: bool) -> None:
    path = make_cache(tmp_path / "c", random_responses(3, entropy=exact), entropy=exact)
    for response in open_cache(path):
        positions = teacher_positions(response, 1000)
        assert len(positions) == response.num_response_tokens
        assert len(teacher_positions(response, 1)) == 1
        start = 0
        for row, (top, gold, entropy) in enumerate(positions):
            stop = start + int(response.num_entries[row])
            ids = response.entry_token_ids[start:stop].tolist()
            probs = np.exp(response.entry_logprobs[start:stop].astype(np.float64))
            assert [token for token, _ in top] == ids[:5]
            assert [p for _, p in top] == pytest.approx(probs[:5].tolist())
            assert gold == pytest.approx(float(np.exp(response.label_logprobs[row])))
            if exact:
                assert entropy == response.entropies[row]
            else:
                parts = np.append(probs, np.exp(np.float64(response.log_tail_mass[row])))
                assert entropy == pytest.approx(float(-(parts * np.log(parts)).sum()), rel=1e-5)
            start = stop


def test_a_students_rows_are_for_the_tokens_they_predict(
    tiny_model: Path, cache: LogitCache
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    student = Student("a", "a", find_checkpoint(str(tiny_model)), "")
    responses = [cache[0], cache[4]]
    found = score_student(student, responses, 5)
    model = AutoModelForCausalLM.from_pretrained(tiny_model).double().eval()
    for response, positions in zip(responses, found, strict=True):
        ids = torch.tensor(response.input_ids[None].astype("int64"))
        probs = model(input_ids=ids).logits[0].detach().softmax(-1).numpy()
        assert len(positions) == min(5, response.num_response_tokens)
        for row, (top, gold, entropy) in enumerate(positions):
            place = response.response_start + row
            truth = probs[place - 1]
            assert gold == pytest.approx(truth[response.input_ids[place]], rel=1e-3)
            best = np.argsort(-truth)[:5]
            assert [token for token, _ in top] == best.tolist()
            assert [p for _, p in top] == pytest.approx(truth[best].tolist(), rel=1e-3)
            assert entropy == pytest.approx(float(-(truth * np.log(truth)).sum()), rel=1e-3)


def test_the_view_is_stored_and_used_again_without_models(
    tmp_path: Path, tiny_model: Path, cache: LogitCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, inputs = tiny_inputs(tmp_path, tiny_model, cache)
    view = token_view(config, inputs, cache)
    assert view["models"] == ["teacher", "student", "SFT", "α 0.1", "α 1"]
    assert [example["number"] for example in view["examples"]] == [1, 5, 8]
    first = view["examples"][0]
    assert first["id"] == cache[1].example_id.hex()
    assert len(first["gold"]) == len(first["positions"]) == cache[1].num_response_tokens
    # Every student is the same model here, so all say the same, and the teacher something else.
    teacher, *students = first["positions"][0]
    assert all(student == students[0] for student in students)
    assert teacher != students[0]
    assert sum(teacher[3::2]) <= 10_001
    stored = json.loads((tmp_path / "report-token_view.json").read_text())
    assert stored == json.loads(json.dumps(view))
    monkeypatch.setattr("pipeline.report.token_view.score_student", None)
    assert token_view(config, inputs, cache) == stored
    (tmp_path / "report-token_view.json").write_text("{torn")
    with pytest.raises(DataError, match=r"token_view\.json is damaged or no file of build-report"):
        token_view(config, inputs, cache)


def test_students_that_are_not_those_evaluated_are_refused(
    tmp_path: Path, tiny_model: Path, cache: LogitCache
) -> None:
    config, inputs = tiny_inputs(tmp_path, tiny_model, cache)
    inputs.evaluations[0].scores["models"]["alpha-1"]["fingerprint"] = "f" * 64
    with pytest.raises(ModelError, match=r"is not the model that was evaluated as alpha-1"):
        token_view(config, inputs, cache)
    inputs.evaluations[0].scores["models"]["alpha-1"]["checkpoint"] = str(tmp_path / "gone")
    with pytest.raises(ModelError, match="alpha-1 is not found for the token view: no model at"):
        token_view(config, inputs, cache)


def test_a_cache_of_another_tokenizer_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    cache = open_cache(make_cache(tmp_path / "other", random_responses(4)))
    config, inputs = tiny_inputs(tmp_path, tiny_model, cache)
    with pytest.raises(ModelError, match="the cache was made with test-vocabulary"):
        token_view(config, inputs, cache)


def test_many_arms_are_thinned_and_their_first_seed_shown(tmp_path: Path) -> None:
    names = [f"alpha-{alpha}@{seed}" for alpha in range(12) for seed in (3, 1)]
    path = write_scores(tmp_path / "x.json", make_scores(["student", "teacher", *names]), [])
    found = read_inputs(BuildReportConfig(scores=(str(path),)))
    students = find_students(found.evaluations[0], found.cells)
    assert [name for name, _, _ in students][:3] == ["student", "alpha-0@1", "alpha-1@1"]
    assert students[-1][0] == "alpha-11@1"
    assert len(students) == 8
    assert students[0][2] == "models/student"
    assert MAX_SHOWN_TOKENS // 200 == 60
