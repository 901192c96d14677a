"""finetune-teacher from a file of instructions to an adapter or a merged model."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import ConfigError, DataError, ModelError, OutputExistsError
from pipeline.models.checkpoint import find_checkpoint
from pipeline.models.loading import load_model
from pipeline.teacher.finetune import run
from pipeline.teacher.finetune_config import FinetuneTeacherConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {"instruction": f"Say {i}.", "context": "", "response": f"The number is {i}."}
        for i in range(12)
    ]
    rows.append({"instruction": "Say nothing.", "context": "", "response": ""})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_config(tiny_model, data, output, **changes) -> FinetuneTeacherConfig:
    options = {"max_steps": 12, "batch_size": 4, "learning_rate": 1e-2, **changes}
    return FinetuneTeacherConfig(
        model=str(tiny_model),
        data=str(data),
        output=str(output),
        max_prompt_tokens=128,
        max_sequence_tokens=256,
        **options,
    )


def test_adapter_learns_and_drops_are_counted(tiny_model, data, tmp_path, capsys):
    output = tmp_path / "teacher"
    result = run(make_config(tiny_model, data, output))
    assert result["last"]["loss"] < 0.9 * result["first"]["loss"]
    assert result["counts"]["dropped_empty_response"] == 1
    assert result["counts"]["kept"] == 12
    printed = capsys.readouterr().out
    assert "12 of 13 rows kept" in printed
    assert f"adapter written to {output}" in printed
    assert find_checkpoint(str(output)).model_path == tiny_model.resolve()
    assert (output / "tokenizer.json").exists()


def test_merged_model_equals_the_adapter_on_its_base(tiny_model, data, tmp_path):
    run(make_config(tiny_model, data, tmp_path / "adapter"))
    run(make_config(tiny_model, data, tmp_path / "merged", merge=True))
    merged = find_checkpoint(str(tmp_path / "merged"))
    assert merged.adapter_path is None
    ids = torch.tensor([[5, 6, 7, 8]])
    adapted = load_model(find_checkpoint(str(tmp_path / "adapter")), dtype="float32")(ids).logits
    torch.testing.assert_close(load_model(merged, dtype="float32")(ids).logits, adapted)
    base = load_file(tiny_model / "model.safetensors")
    assert set(base) == set(load_file(tmp_path / "merged" / "model.safetensors"))


def test_another_number_of_processes_is_another_run(tiny_model, data, tmp_path, monkeypatch):
    config = make_config(tiny_model, data, tmp_path / "teacher", max_steps=1)
    run(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OutputExistsError, match="responses_per_step: there 4, asked 8"):
        run(config)


def test_second_run_is_done_at_once(tiny_model, data, tmp_path, capsys):
    config = make_config(tiny_model, data, tmp_path / "teacher", max_steps=1)
    assert run(config) == run(config)
    assert "finished already" in capsys.readouterr().out


def test_examples_longer_than_the_model_are_refused(tiny_model, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"instruction": "Count.", "response": "seventeen " * 200}))
    config = FinetuneTeacherConfig(
        model=str(tiny_model), data=str(path), output=str(tmp_path / "t")
    )
    with pytest.raises(ModelError, match="the model reads at most 256"):
        run(config)
    assert not (tmp_path / "t").exists()


def test_missing_data_is_refused(tiny_model, tmp_path):
    with pytest.raises(DataError, match="nowhere.jsonl"):
        run(make_config(tiny_model, tmp_path / "nowhere.jsonl", tmp_path / "t"))


def test_merging_without_an_adapter_is_refused(tiny_model, data, tmp_path):
    with pytest.raises(ConfigError, match="--merge with --tuning full"):
        make_config(tiny_model, data, tmp_path, merge=True, tuning="full")
    with pytest.raises(ConfigError, match="--batch-size 0"):
        make_config(tiny_model, data, tmp_path, batch_size=0)
    with pytest.raises(ConfigError, match="--template 'poem'"):
        make_config(tiny_model, data, tmp_path, template="poem")
