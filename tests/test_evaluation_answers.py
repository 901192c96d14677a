"""evaluate-student's answers: kept as they come, never made twice, drawn and stopped as asked."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_evaluation_run import AGGREGATES, aggregates_of, config, many_rows
from test_judges import OWN
from test_storage_disk_full import files_of_at_most

import pipeline.evaluation.answers as answers
import pipeline.evaluation.evaluate as evaluate
import pipeline.evaluation.model_scores as model_scores
import pipeline.evaluation.scores_file as scores_file
from pipeline.errors import DataError, EngineError, MissingPackageError, OutputExistsError
from pipeline.evaluation.scores import aggregate, read_rows, write_rows
from pipeline.generation.growing_file import append, open_growing
from storage_schema.errors import CacheWriteError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return many_rows(tmp_path / "data.jsonl")


def kept(data: Path, name: str = "model") -> Path:
    return data.parent / "out" / "answers" / "scores" / f"{name}.jsonl"


def rows_of(data: Path, name: str = "model") -> list[dict[str, Any]]:
    return read_rows(data.parent / "out" / "predictions" / "scores" / f"{name}.jsonl")


def forbid_generating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_start", lambda *rest: pytest.fail("generated again"))


@pytest.mark.slow
def test_answers_are_kept_and_never_generated_again(
    data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate.run(config(data, tiny_model))["models"]["model"]
    head, *lines = [json.loads(line) for line in kept(data).read_text().splitlines()]
    assert head["identity"]["fingerprint"] == first["fingerprint"]
    assert head["identity"]["decoding"] == {
        "engine": "transformers",
        "strategy": "greedy",
        "temperature": None,
        "top_p": None,
        "seed": None,
        "stop": [],
        "max_new_tokens": 6,
    }
    assert first["made_with"]["answers"] == head["made_with"]
    by_example = {line["example_id"]: line for line in lines}
    for row in rows_of(data):
        answer = by_example.pop(row["example_id"])
        assert answer["text"] == row["prediction"]
        assert len(answer["token_ids"]) == row["num_prediction_tokens"]
        assert answer["hit_token_limit"] == row["hit_token_limit"]
    assert by_example == {}
    forbid_generating(monkeypatch)
    before = rows_of(data)
    # Scores and rows are lost, the answers are not: all is measured again from them.
    (data.parent / "out" / "scores.json").unlink()
    shutil.rmtree(data.parent / "out" / "predictions")
    again = evaluate.run(config(data, tiny_model))["models"]["model"]
    assert rows_of(data) == before
    assert aggregates_of(again) == aggregates_of(first)
    assert "generation" not in again["cost"]
    # A judge and other bins later, still from the kept answers.
    (tmp_path / "my_judge.py").write_text(OWN)
    judge = f"own:python={tmp_path / 'my_judge.py'}:WordOverlap"
    assert (
        "own_consistency"
        in evaluate.run(config(data, tiny_model, judge=(judge,)))["models"]["model"]
    )
    (data.parent / "out" / "scores.json").unlink()
    other_bins = evaluate.run(config(data, tiny_model, ece_bins=5))["models"]["model"]
    assert {key: other_bins[key] for key in AGGREGATES} == aggregate(rows_of(data), 5)


KILLED = """
import os, signal, sys
from pipeline.evaluation import answers, evaluate
from pipeline.evaluation.config import EvaluateStudentConfig
count, whole = 0, answers.append
def append(file, row):
    global count
    count += 1
    if count == 6:
        file.write('{"example_id": "ab')
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(file, row)
answers.append = append
model, data, output = sys.argv[1:]
evaluate.run(EvaluateStudentConfig(model=(model,), data=data, output=output, max_new_tokens=6,
    batch_size=2, engine="transformers", max_prompt_tokens=150, max_sequence_tokens=200))
"""


@pytest.mark.slow
def test_a_killed_run_continues_behind_its_last_whole_answer(
    data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = evaluate.run(config(data, tiny_model))["models"]["model"]
    expected = rows_of(data)
    shutil.rmtree(data.parent / "out")
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, tmp_path / "killed.py", tiny_model, data]
    command.append(data.parent / "out" / "scores.json")
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (data.parent / "out" / "scores.json").exists()
    text = kept(data).read_text()
    assert len(text.splitlines()) == 6  # how they are made, four answers, half a one
    assert not text.endswith("\n")
    result = evaluate.run(config(data, tiny_model))["models"]["model"]
    assert kept(data).read_text().startswith(text[: text.rfind("\n") + 1])
    assert len(kept(data).read_text().splitlines()) == 13  # none was made twice
    assert rows_of(data) == expected
    assert aggregates_of(result) == aggregates_of(whole)
    assert result["cost"]["generation"]["rows"] == 8
    assert "cost of model: loading" in capsys.readouterr().out


def test_a_run_stopped_behind_the_answers_does_not_generate_again(
    data: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*rest: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_scores, "score_gold_tokens", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(config(data, tiny_model))
    forbid_generating(monkeypatch)
    assert evaluate.run(config(data, tiny_model))["evaluated"] == ["model"]


@pytest.mark.slow
def test_answers_made_otherwise_are_refused_and_kept(data: Path, tiny_model: Path) -> None:
    evaluate.run(config(data, tiny_model))
    (data.parent / "out" / "scores.json").unlink()
    before = kept(data).read_bytes()
    with pytest.raises(
        OutputExistsError,
        match=r"model\.jsonl holds answers made otherwise:\n  decoding.max_new_tokens: there 6",
    ):
        evaluate.run(config(data, tiny_model, max_new_tokens=5))
    with open_growing(kept(data)), pytest.raises(OutputExistsError, match="another process is"):
        evaluate.run(config(data, tiny_model))
    assert kept(data).read_bytes() == before
    for damage in (b"[1]\n", before + b'{"example_id": "ab"}\n', before + b"}\n"):
        kept(data).write_bytes(damage)
        with pytest.raises(DataError, match=r"model\.jsonl, behind \d+ answers: not what this"):
            evaluate.run(config(data, tiny_model))


def test_a_full_disk_is_named_and_the_next_run_continues(tmp_path: Path) -> None:
    path, rows = tmp_path / "rows.jsonl", [{"text": "x" * 90}, {"text": "y" * 90}]
    full = r"rows\.jsonl cannot be written \(File too large\): .* free space"
    with pytest.raises(CacheWriteError, match=full), files_of_at_most(150):
        write_rows(path, rows)
    assert list(tmp_path.iterdir()) == []
    with open_growing(path) as (file, _):
        append(file, rows[0])
    with (
        pytest.raises(CacheWriteError, match=full),
        open_growing(path) as (file, _),
        files_of_at_most(150),
    ):
        append(file, rows[1])
    assert path.stat().st_size == 150
    with open_growing(path) as (file, lines):
        assert [json.loads(line) for line in lines] == rows[:1]
        append(file, rows[1])
    assert read_rows(path) == rows


@pytest.mark.slow
def test_draws_are_recorded_and_repeatable(data: Path, tiny_model: Path) -> None:
    drawn = {"temperature": 0.9, "top_p": 0.95, "seed": 3}
    result = evaluate.run(config(data, tiny_model, **drawn))
    decoding = result["settings"]["decoding"]
    assert {key: decoding[key] for key in drawn} == drawn
    assert decoding["strategy"] == "sample"
    texts = [row["prediction"] for row in rows_of(data)]
    shutil.rmtree(data.parent / "out")
    evaluate.run(config(data, tiny_model, batch_size=5, **drawn))
    assert [row["prediction"] for row in rows_of(data)] == texts
    shutil.rmtree(data.parent / "out")
    evaluate.run(config(data, tiny_model, **{**drawn, "seed": 4}))
    assert [row["prediction"] for row in rows_of(data)] != texts


def test_a_stop_string_ends_answers_and_their_tokens(data: Path, tiny_model: Path) -> None:
    evaluate.run(config(data, tiny_model, max_new_tokens=12))
    free = [row["prediction"] for row in rows_of(data)]
    stop = free[0][4:6]
    shutil.rmtree(data.parent / "out")
    evaluate.run(config(data, tiny_model, max_new_tokens=12, stop=(stop,)))
    lines = [json.loads(line) for line in kept(data).read_text().splitlines()[1:]]
    assert [row["prediction"] for row in rows_of(data)] == [text.split(stop)[0] for text in free]
    assert any(not line["hit_token_limit"] for line in lines)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for line in lines:  # no token behind the text: a lens would read it
        decoded = tokenizer.decode(line["token_ids"])
        assert decoded.startswith(line["text"])
        assert not tokenizer.decode(line["token_ids"][:-1]).startswith(line["text"]) or not decoded


def test_the_engine_of_the_scores_file_is_kept(
    data: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data.parent / "out" / "scores.json"
    assert scores_file.pick_engine_of(path, "transformers") == ("transformers", "asked for")
    monkeypatch.setattr(scores_file, "pick_engine", lambda name: ("vllm", "vLLM is installed"))
    assert scores_file.pick_engine_of(path, "auto") == ("vllm", "vLLM is installed")
    evaluate.run(config(data, tiny_model))
    assert scores_file.pick_engine_of(path, "auto") == ("transformers", "as before")
    assert evaluate.run(config(data, tiny_model, engine="auto"))["skipped"] == ["model"]
    path.write_text("[]")
    assert scores_file.pick_engine_of(path, "auto") == ("vllm", "vLLM is installed")


def test_a_missing_engine_is_named_before_anything_is_written(
    data: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="engine vllm: vLLM is not installed"):
        evaluate.run(config(data, tiny_model, engine="vllm"))
    assert not (data.parent / "out").exists()


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_answers_as_transformers_does_one_engine_after_the_other(
    demo_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    rows = [
        {"instruction": f"Name the capital of {name}.", "response": "It is a city."}
        for name in ("France", "Italy", "Spain")
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"dtype": "float32", "max_new_tokens": 16, "stop": (".",)}
    models = (f"a={demo_model}", f"b={demo_model}")
    plain = evaluate.run(config(data, demo_model, **settings))["models"]["model"]
    expected = [row["prediction"] for row in rows_of(data)]
    shutil.rmtree(data.parent / "out")
    found = evaluate.run(config(data, *models, engine="vllm", **settings))
    assert found["settings"]["decoding"]["engine"] == "vllm"
    for name in ("a", "b"):
        assert [row["prediction"] for row in rows_of(data, name)] == expected
        entry = found["models"][name]
        assert entry["response_nll_nats"] == pytest.approx(plain["response_nll_nats"])
        assert entry["cost"]["starting_vllm"]["seconds"] > 0
    assert "." not in "".join(expected)


@pytest.mark.slow
@pytest.mark.vllm
def test_a_model_vllm_cannot_run_is_named(data: Path, tiny_model: Path) -> None:
    pytest.importorskip("vllm")
    with pytest.raises(EngineError, match="vLLM stopped while generating: .*--engine transformers"):
        evaluate.run(config(data, tiny_model, engine="vllm"))
