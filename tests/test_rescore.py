"""verify-cache --rescore: differences from the cache beside the engine's own noise."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_factory import make_plan, random_responses
from click.testing import CliRunner
from test_precompute import write_data

from pipeline.cli.verify_cache import main
from pipeline.data.tokenization import Example
from pipeline.errors import EngineError, ModelError
from pipeline.models.checkpoint import find_checkpoint
from pipeline.teacher import precompute, verify
from pipeline.teacher.engine import Scores
from pipeline.teacher.precompute_config import PrecomputeConfig
from pipeline.teacher.rescore import _score_twice, compare, rescore
from pipeline.teacher.verify_config import VerifyCacheConfig
from storage_schema import Response, open_cache
from storage_schema.errors import CacheDamagedError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """22 examples scored by the tiny model in shards of 5."""
    folder = tmp_path_factory.mktemp("rescore")
    settings = PrecomputeConfig(
        teacher=str(tiny_model),
        data=str(write_data(folder / "train.jsonl")),
        output=str(folder / "cache"),
        engine="transformers",
        k=8,
        examples_per_shard=5,
        max_prompt_tokens=100,
        max_sequence_tokens=160,
    )
    precompute.run(settings)
    return folder / "cache"


def config(cache: Path, teacher: Path, num: int = 6) -> VerifyCacheConfig:
    return VerifyCacheConfig(
        cache=str(cache), teacher=str(teacher), rescore=num, engine="transformers", batch_tokens=96
    )


def other_teacher(tiny_model: Path, folder: Path) -> Path:
    """The tiny model with the rows of its embedding matrix in another order."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][::-1].copy()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_same_teacher_says_the_same(
    cache: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = verify.run(config(cache, tiny_model))
    found = result["rescored"]
    assert found["num_examples"] == 6
    positions = [0, 3, 7, 11, 14, 18]  # floor(i * 22 / 6)
    rows = sum(open_cache(cache)[i].num_response_tokens for i in positions)
    for against in ("cache", "repeat"):
        assert found[against]["num_rows"] == rows
        assert found[against]["label"]["max"] < 0.02  # a float16 step at -16 is 0.0156
        assert found[against]["entries_not_shared"] < 0.01
    assert found["engine"]["name"] == found["cache_engine"]["name"] == "transformers"
    assert not any("label log-probabilities lie" in text for text in result["warnings"])
    text = capsys.readouterr().out
    assert f"6 examples scored again by transformers (the cache: by transformers), {rows}" in text
    assert "engine's repeat noise" in text


def test_another_teacher_is_refused_before_anything_is_read(
    cache: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = other_teacher(tiny_model, tmp_path / "other")
    monkeypatch.setattr("pipeline.teacher.verify._read", None)
    planned = open_cache(cache).plan.teacher["fingerprint"]
    with pytest.raises(ModelError, match=f"with fingerprint {planned}: name the teacher that"):
        verify.run(config(cache, other))
    arguments = ["--cache", str(cache), "--rescore", "2", "--teacher", str(other)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert f"Error: teacher {other} has fingerprint" in result.output


def test_numbers_of_something_else_are_warned_of(
    cache: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """As if the engine computed something else than it did for the cache."""
    other = other_teacher(tiny_model, tmp_path / "other")
    reader = open_cache(cache)
    cached = [reader[i] for i in range(4)]
    found = rescore(config(cache, other), find_checkpoint(str(other)), reader.plan, cached)
    assert found["cache"]["label"]["mean"] > 0.5
    assert found["cache"]["best_changed"] > 0.5
    assert found["repeat"]["label"]["max"] < 0.02
    (warning,) = verify._differences(found)
    assert f"lie {found['cache']['label']['mean']:.4f} nats on average" in warning


def test_a_cache_of_the_hook_can_be_scored_where_the_hook_is_unknown(
    cache: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def start(name: str, *arguments: Any) -> None:
        asked.append((name, arguments[-1]))
        raise EngineError("as far as this test goes")

    monkeypatch.setattr("pipeline.teacher.rescore.pick_engine", lambda _: ("vllm", "asked for"))
    monkeypatch.setattr("pipeline.teacher.rescore.start_engine", start)
    reader = open_cache(cache)
    plan = dataclasses.replace(reader.plan, engine={"name": "vllm", "route": "worker_hook"})
    for reason, route in ((None, "worker_hook"), ("it is newer", "prompt_logprobs")):
        monkeypatch.setattr("pipeline.teacher.vllm_layout.why_unknown", lambda r=reason: r)
        with pytest.raises(EngineError):
            rescore(config(cache, tiny_model), find_checkpoint(str(tiny_model)), plan, [reader[0]])
        assert asked[-1] == ("vllm", route)


def test_a_plan_without_the_teachers_number_type_is_named(cache: Path, tiny_model: Path) -> None:
    reader = open_cache(cache)
    teacher = {key: value for key, value in reader.plan.teacher.items() if key != "dtype"}
    plan = dataclasses.replace(reader.plan, teacher=teacher)
    with pytest.raises(CacheDamagedError, match="plan, teacher: field 'dtype' is None, expected"):
        rescore(config(cache, tiny_model), find_checkpoint(str(tiny_model)), plan, [reader[0]])


def test_an_unfinished_cache_can_be_scored_again(
    cache: Path, tiny_model: Path, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    shutil.copytree(cache, part)
    (part / "manifest.json").unlink()
    (part / "shards" / "shard-00000.parquet").unlink()
    settings = dataclasses.replace(config(part, tiny_model, num=99), allow_incomplete=True)
    found = verify.run(settings)["rescored"]
    assert found["num_examples"] == 17  # all there are
    assert found["cache"]["label"]["max"] < 0.02
    assert json.loads(json.dumps(found, allow_nan=False)) == found


class ShakyEngine:
    """Adds a noise of 0.25 * (position in its batch) nats to known responses."""

    def __init__(self, responses: list[Response]) -> None:
        self.known = {response.example_id: response for response in responses}
        self.calls: list[list[bytes]] = []

    def score(self, examples: Sequence[Example]) -> Iterator[Scores]:
        self.calls.append([example.example_id for example in examples])
        for place, example in enumerate(examples):
            response = self.known[example.example_id]
            shape = (response.num_response_tokens, -1)
            noise = np.float32(0.25 * place)
            yield Scores(
                response.entry_token_ids.reshape(shape),
                response.entry_logprobs.reshape(shape) - noise,
                response.label_logprobs - noise,
            )

    def close(self) -> None: ...


def test_the_sample_is_scored_twice_in_another_order_and_other_batches() -> None:
    from pipeline.progress import Progress

    responses = random_responses(5)
    examples = [Example(r.input_ids, r.response_start) for r in responses]
    engine = ShakyEngine(responses)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "_print_line", lambda self: None)
        first, second = _score_twice(engine, make_plan(responses), examples)
    names = [example.example_id for example in examples]
    assert engine.calls == [names, [names[4], names[2], names[0]], [names[3], names[1]]]
    for scored in (first, second):
        assert [r.example_id for r in scored] == names
    for i, (once, again) in enumerate([(0, 2), (1, 1), (2, 1), (3, 0), (4, 0)]):
        gap = first[i].label_logprobs - second[i].label_logprobs
        assert gap == pytest.approx(0.25 * (again - once), abs=0.02)


def slow_compare(truth: list[Response], other: list[Response]) -> dict[str, Any]:
    labels, entries, num_entries, changed = [], [], 0, 0
    for one, two in zip(truth, other, strict=True):
        a = b = 0
        for t in range(one.num_response_tokens):
            labels.append(abs(float(one.label_logprobs[t]) - float(two.label_logprobs[t])))
            rows = []
            for response, start in ((one, a), (two, b)):
                end = start + response.num_entries[t]
                ids = response.entry_token_ids[start:end].tolist()
                rows.append(
                    dict(zip(ids, response.entry_logprobs[start:end].tolist(), strict=True))
                )
            a, b = a + one.num_entries[t], b + two.num_entries[t]
            entries += [abs(rows[0][i] - rows[1][i]) for i in rows[1] if i in rows[0]]
            num_entries += len(rows[1])
            changed += next(iter(rows[0])) != next(iter(rows[1]))
    return {
        "num_rows": len(labels),
        "label": describe(labels),
        "entry": describe(entries),
        "entries_not_shared": 1 - len(entries) / num_entries,
        "best_changed": changed / len(labels),
    }


def describe(gaps: list[float]) -> dict[str, float]:
    p99 = sorted(gaps)[math.ceil(len(gaps) * 0.99) - 1]
    return {"mean": math.fsum(gaps) / len(gaps), "p99": p99, "max": max(gaps)}


def test_differences_against_a_slow_loop() -> None:
    truth = random_responses(9, seed=1, min_prob=0.01, rows=6, prompt=3)
    cut = random_responses(9, seed=1, min_prob=0.02, rows=6, prompt=3)  # the same, less of it
    stranger = random_responses(9, seed=2, rows=6, prompt=3, vocabulary_size=30)
    for other in (cut, stranger):
        found, slow = compare(truth, other), slow_compare(truth, other)
        assert found.keys() == slow.keys()
        for name, value in slow.items():
            assert found[name] == pytest.approx(value, abs=1e-12), name
    assert compare(truth, truth)["label"]["max"] == compare(truth, truth)["best_changed"] == 0


def test_rows_without_a_common_entry() -> None:
    (one,) = random_responses(1, seed=1, rows=2, prompt=3)
    two = dataclasses.replace(one, entry_token_ids=one.entry_token_ids + 2000)
    found = compare([one], [two])
    assert found["entry"] == {"mean": None, "p99": None, "max": None}
    assert found["entries_not_shared"] == found["best_changed"] == 1.0


@pytest.mark.parametrize(
    ("wanted", "available", "positions"),
    [(0, 5, []), (3, 9, [0, 3, 6]), (2, 5, [0, 2]), (7, 3, [0, 1, 2]), (1, 1, [0])],
)
def test_spaced_positions(wanted: int, available: int, positions: list[int]) -> None:
    assert verify.spaced_positions(wanted, available) == positions
