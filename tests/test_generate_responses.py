"""generate-responses: prompts as the teacher pass reads them, drops counted, kills survived."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.config import DataSettings
from pipeline.data.prompts import tokenize_prompts
from pipeline.data.tokenization import tokenize_dataset
from pipeline.errors import ConfigError, DataError, EngineError, OutputExistsError
from pipeline.models.checkpoint import find_checkpoint
from pipeline.models.loading import load_tokenizer
from pipeline.teacher.generate import make_requests, run
from pipeline.teacher.generate_config import GenerateConfig
from pipeline.teacher.responses_file import open_unfinished

ROWS: list[dict[str, Any]] = [
    {"instruction": f"Return the sum of {i} and the number", "context": "it is raining" * (i % 2)}
    for i in range(9)
]
ROWS = [{**row, "response": "gold" if i else ""} for i, row in enumerate(ROWS)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "rows.jsonl", ROWS)


def config(tiny_model: Path, data: Path, output: Path, **changes: Any) -> GenerateConfig:
    options: dict[str, Any] = {"max_new_tokens": 12, "batch_size": 4, "engine": "transformers"}
    options |= {"max_prompt_tokens": 200, "max_sequence_tokens": 256, "keep_cut": True}
    return GenerateConfig(
        model=str(tiny_model), data=str(data), output=str(output), **{**options, **changes}
    )


def test_a_response_to_every_prompt_in_order(tiny_model, data, tmp_path, capsys):
    rows = [*ROWS, ROWS[3], {**ROWS[3], "instruction": "long " * 200}]
    path = write(tmp_path / "rows.jsonl", rows)
    result = run(config(tiny_model, path, tmp_path / "out"))
    made = read(result["dataset"])
    assert [row["instruction"] for row in made] == [row["instruction"] for row in ROWS]
    assert [row["generation"]["row"] for row in made] == list(range(1, 10))
    assert {row["generation"]["finish_reason"] for row in made} <= {"stop", "length"}
    assert made[0]["generation"]["model"] == tiny_model.name
    assert len(made[0]["generation"]["model_fingerprint"]) == 64
    counts = result["counts"]
    assert counts["dropped_repeated_prompt"] == counts["dropped_prompt_too_long"] == 1
    assert (counts["rows"], counts["kept"], counts["generated"]) == (11, 9, 9)
    assert counts["written"] == len(made) == 9
    assert result["tokens_per_second"] > 0
    assert "9 prompts of 11 rows" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"run.json", "responses.jsonl"}


def test_answers_cut_by_the_limit_are_dropped_unless_asked_for(tiny_model, data, tmp_path):
    kept = run(config(tiny_model, data, tmp_path / "kept"))["counts"]
    assert kept["cut_at_limit"] > 0
    assert kept["written"] == 9
    path = tmp_path / "kept" / "responses.jsonl"
    # A stop string that some of the answers hold lets those end, and the others are cut.
    texts = [row["response"] for row in read(path)]
    stops = {text[i : i + 2] for text in texts for i in range(4, len(text) - 2)}
    stop = min(s for s in stops if 0 < sum(s in text for text in texts) < 9)
    ended = run(config(tiny_model, data, tmp_path / "ended", keep_cut=False, stop=(stop,)))
    assert (
        ended["counts"]["written"] == 9 - ended["counts"]["cut_at_limit"] - ended["counts"]["empty"]
    )
    assert 0 < ended["counts"]["written"] < 9
    assert all(stop not in row["response"] for row in read(ended["dataset"]))
    with pytest.raises(DataError, match=r"no response is left; of 9 .*, 9 cut .* give --keep-cut"):
        run(config(tiny_model, data, tmp_path / "none", keep_cut=False, max_new_tokens=2))


@pytest.mark.parametrize("template", ["chat", "alpaca", "plain", "summarize-one-sentence"])
@pytest.mark.parametrize("layout", ["instruction", "article", "messages", "prompt"])
def test_prompts_are_those_the_teacher_pass_gives_the_written_rows(
    tiny_model, tmp_path, template, layout
):
    texts = [("sum of the two", "a brown fox"), (" leading", "dog \n"), ("é ünï", "jumps")]
    rows = {
        "instruction": [{"instruction": a, "context": b, "response": "r"} for a, b in texts],
        "article": [{"article": a + b, "highlights": "r", "id": "7"} for a, b in texts],
        "messages": [
            {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": "r"}]}
            for a, _ in texts
        ],
        "prompt": [{"prompt": a, "completion": None} for a, _ in texts],
    }[layout]
    if template.startswith("summarize") and layout in ("messages", "prompt"):
        pytest.skip("the template needs a document")
    path = write(tmp_path / "rows.jsonl", rows)
    settings = config(tiny_model, path, tmp_path / "out", template=template, max_new_tokens=4)
    result = run(settings)
    tokenizer = load_tokenizer(find_checkpoint(str(tiny_model)))
    asked = make_requests(settings, tokenize_prompts(settings, tokenizer))
    dataset = tokenize_dataset(DataSettings(data=result["dataset"], template=template), tokenizer)
    written = [example.input_ids[: example.response_start].tolist() for example in dataset.examples]
    places = [row["generation"]["row"] - 1 for row in read(result["dataset"])]
    assert len(places) >= 2
    assert written == [list(asked[place].prompt_ids) for place in places]


def test_several_samples_differ_and_a_rerun_gives_the_same(tiny_model, data, tmp_path):
    options = {"temperature": 1.0, "samples_per_prompt": 3, "top_p": 0.95}
    first = run(config(tiny_model, data, tmp_path / "a", **options))
    again = run(config(tiny_model, data, tmp_path / "b", batch_size=7, **options))
    assert read(first["dataset"]) == read(again["dataset"])
    rows = read(first["dataset"])
    assert [row["generation"]["sample"] for row in rows] == [0, 1, 2] * 9
    assert len({row["response"] for row in rows}) > 20
    other = run(config(tiny_model, data, tmp_path / "c", seed=1, **options))
    assert [row["response"] for row in read(other["dataset"])] != [row["response"] for row in rows]
    # The draws of a prompt do not depend on the rows around it.
    alone = write(tmp_path / "alone.jsonl", ROWS[4:5])
    found = run(config(tiny_model, alone, tmp_path / "d", **options))
    expected = [row["response"] for row in rows if row["generation"]["row"] == 5]
    assert [row["response"] for row in read(found["dataset"])] == expected


KILLED = """
import os, signal, sys
from pipeline.teacher import generate
from pipeline.teacher.generate_config import GenerateConfig
count = 0
whole = generate.append
def append(file, answer):
    global count
    count += 1
    if count == 6:
        file.write('{"request": 3, "te')
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(file, answer)
generate.append = append
model, data, output = sys.argv[1:]
generate.run(GenerateConfig(model=model, data=data, output=output, max_new_tokens=12, batch_size=4,
    engine="transformers", max_prompt_tokens=200, max_sequence_tokens=256, keep_cut=True))
"""


@pytest.mark.slow
def test_killed_while_writing_it_continues_to_the_same_rows(tiny_model, data, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, tmp_path / "killed.py", tiny_model, data, tmp_path / "out"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "responses.jsonl").exists()
    assert len((tmp_path / "out" / "unfinished.jsonl").read_text().splitlines()) == 6
    result = run(config(tiny_model, data, tmp_path / "out"))
    assert result["resumed_responses"] == 5
    whole = run(config(tiny_model, data, tmp_path / "whole"))
    assert read(result["dataset"]) == read(whole["dataset"])
    assert not (tmp_path / "out" / "unfinished.jsonl").exists()


def test_a_finished_run_is_done_at_once_and_another_refused(tiny_model, data, tmp_path, capsys):
    settings = config(tiny_model, data, tmp_path / "out")
    first = run(settings)
    assert run(settings) == first
    assert run(config(tiny_model, data, tmp_path / "out", batch_size=1)) == first
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(OutputExistsError, match="temperature: there 0.0, asked 0.5"):
        run(config(tiny_model, data, tmp_path / "out", temperature=0.5))


def test_unfinished_files_are_locked_and_checked(tmp_path):
    with open_unfinished(tmp_path) as (_, answers):
        assert answers == {}
        with (
            pytest.raises(OutputExistsError, match="another process is writing"),
            open_unfinished(tmp_path),
        ):
            pass
    (tmp_path / "unfinished.jsonl").write_text('{"request": 1}\n')
    with (
        pytest.raises(DataError, match=r"unfinished.jsonl, line 1 is no generated answer"),
        open_unfinished(tmp_path),
    ):
        pass


def test_prompts_without_text_are_dropped_and_too_long_ones_refused(tiny_model, tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": "a fox"}, {"text": "a dog"}])
    with pytest.raises(DataError, match="none of 2 rows is left; .* 2 without a prompt"):
        run(config(tiny_model, path, tmp_path / "out", template="plain"))
    path = write(tmp_path / "more.jsonl", ROWS)
    limits = {"max_new_tokens": 300, "max_sequence_tokens": 400}
    with pytest.raises(ConfigError, match="may take 3.. tokens, .* reads at most 256; lower"):
        run(config(tiny_model, path, tmp_path / "out", **limits))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens 0 must be at least 1"),
        ({"samples_per_prompt": 0}, "--samples-per-prompt 0 must be at least 1"),
        ({"samples_per_prompt": 2}, "--samples-per-prompt 2 at --temperature 0 would give equal"),
        ({"top_p": 0.5}, "--top-p 0.5 has no effect at --temperature 0"),
        ({"top_p": 0.0}, "--top-p 0.0 must be above 0, at most 1"),
        ({"gpu_memory_utilization": 1.5}, "--gpu-memory-utilization 1.5 must be above 0"),
        ({"temperature": -1.0}, "--temperature -1.0 must be at least 0"),
        ({"temperature": float("nan")}, "--temperature nan must be at least 0"),
        ({"seed": -1}, "--seed -1 must be in"),
        ({"stop": ("",)}, "--stop .. would end every answer"),
        ({"engine": "tgi"}, "--engine 'tgi': must be one of auto, vllm, transformers"),
        ({"dtype": "int8"}, "--dtype 'int8': must be one of"),
    ],
)
def test_bad_settings_are_refused(tiny_model, data, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tiny_model, data, tmp_path, **changes)


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_writes_what_transformers_writes(demo_model, tmp_path):
    pytest.importorskip("vllm")
    prompts = ["Name the capital of France.", "Write one word.", "Is the sky blue?", "Count to 5."]
    path = write(tmp_path / "rows.jsonl", [{"prompt": p, "completion": ""} for p in prompts])
    options: dict[str, Any] = {"dtype": "float32", "max_new_tokens": 24}
    plain = run(config(demo_model, path, tmp_path / "plain", **options))
    found = run(config(demo_model, path, tmp_path / "vllm", engine="vllm", **options))
    for name in ("response", "instruction"):
        assert [r[name] for r in read(found["dataset"])] == [
            r[name] for r in read(plain["dataset"])
        ]
    reasons = [
        [row["generation"]["finish_reason"] for row in read(result["dataset"])]
        for result in (found, plain)
    ]
    assert reasons[0] == reasons[1]
    assert set(reasons[0]) == {"stop", "length"}
    draws = {**options, "engine": "vllm", "temperature": 0.8, "samples_per_prompt": 2}
    draws["stop"] = (" ",)
    first = read(run(config(demo_model, path, tmp_path / "one", **draws))["dataset"])
    assert first == read(run(config(demo_model, path, tmp_path / "two", **draws))["dataset"])
    assert all(" " not in row["response"].strip() for row in first)


@pytest.mark.slow
@pytest.mark.vllm
def test_a_model_vllm_cannot_run_is_named_and_answers_are_kept(tiny_model, data, tmp_path):
    """The tiny model's heads of 8 are no size that vLLM's CPU attention has."""
    pytest.importorskip("vllm")
    with pytest.raises(EngineError, match="vLLM stopped while generating: .*--engine transformers"):
        run(config(tiny_model, data, tmp_path / "out", engine="vllm"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"run.json", "unfinished.jsonl"}


def test_the_other_commands_take_the_dataset_without_a_flag(tiny_model, data, tmp_path):
    from pipeline.teacher import finetune, precompute
    from pipeline.teacher.finetune_config import FinetuneTeacherConfig
    from pipeline.teacher.precompute_config import PrecomputeConfig

    made = run(config(tiny_model, data, tmp_path / "out"))["dataset"]
    source: dict[str, Any] = {"data": made, "max_prompt_tokens": 200, "max_sequence_tokens": 255}
    cache = PrecomputeConfig(
        teacher=str(tiny_model), output=str(tmp_path / "c"), engine="transformers", k=4, **source
    )
    assert precompute.run(cache)["num_examples"] == 9
    teacher = FinetuneTeacherConfig(
        model=str(tiny_model), output=str(tmp_path / "t"), max_steps=1, **source
    )
    assert finetune.run(teacher)["counts"]["kept"] == 9
