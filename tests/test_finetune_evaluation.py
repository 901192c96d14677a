"""finetune-teacher's held-out loss, best checkpoint, early stopping, batching and QLoRA."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.tokenization import tokenize_dataset
from pipeline.errors import ConfigError, MissingPackageError, ModelError
from pipeline.models.checkpoint import find_checkpoint
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.teacher.finetune import run
from pipeline.teacher.finetune_config import FinetuneTeacherConfig
from pipeline.teacher.finetune_trainer import TeacherTrainer
from pipeline.training.collation import collate_for_model_loss
from pipeline.training.held_out import split_held_out

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {"instruction": f"Say {i}." * (1 + i % 3), "response": f"The number is {i}." * (1 + i % 2)}
        for i in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_config(tiny_model, data, output, **changes) -> FinetuneTeacherConfig:
    options = {"max_steps": 6, "batch_size": 4, "learning_rate": 1e-2, **changes}
    return FinetuneTeacherConfig(
        model=str(tiny_model),
        data=str(data),
        output=str(output),
        max_prompt_tokens=128,
        max_sequence_tokens=256,
        **options,
    )


def held_out_loss(tiny_model, config, checkpoint) -> float:
    """The mean loss per response token, an example at a time."""
    tokenizer = load_tokenizer(find_checkpoint(str(tiny_model)))
    examples = tokenize_dataset(config, tokenizer).examples
    _, held_out = split_held_out(examples, config.eval_share, config.seed)
    model = load_model(find_checkpoint(str(checkpoint)), dtype="float32")
    nats = tokens = 0.0
    for example in held_out:
        batch = collate_for_model_loss([example])
        with torch.no_grad():
            nats += float(model(**batch).loss) * example.num_response_tokens
        tokens += example.num_response_tokens
    return nats / tokens


def test_every_checkpoint_is_evaluated_and_the_best_kept(tiny_model, data, tmp_path, capsys):
    # The schedule's end is far off and the steps grow until the loss rises again.
    config = make_config(
        tiny_model,
        data,
        tmp_path / "t",
        max_steps=21,
        learning_rate=0.3,
        eval_share=0.2,
        save_every_steps=4,
        lr_schedule="constant_with_warmup",
        warmup_ratio=0.9,
    )
    result = run(config)
    assert [entry["step"] for entry in result["evaluations"]] == [4, 8, 12, 16, 20, 21]
    losses = {entry["step"]: entry["eval_loss"] for entry in result["evaluations"]}
    assert result["best_eval_loss"] == min(losses.values()) == losses[result["best_step"]]
    assert result["best_step"] < 21  # or the test would not tell the best from the last
    assert (result["counts"]["trained_on"], result["counts"]["held_out"]) == (24, 6)
    found = held_out_loss(tiny_model, config, tmp_path / "t")
    assert found == pytest.approx(result["best_eval_loss"], rel=1e-4)
    printed = capsys.readouterr().out
    assert f"held-out CE {result['best_eval_loss']:.4f} at step {result['best_step']}" in printed
    assert not list((tmp_path / "t").glob("checkpoint-*"))


@pytest.mark.slow
def test_early_stopping_counts_on_after_a_break(tiny_model, data, tmp_path, monkeypatch):
    options = {
        "max_steps": 40,
        "learning_rate": 0.3,
        "eval_share": 0.2,
        "save_every_steps": 2,
        "early_stopping_patience": 3,
        "lr_schedule": "constant_with_warmup",
        "warmup_ratio": 0.9,
    }
    whole = run(make_config(tiny_model, data, tmp_path / "whole", **options))
    assert whole["steps"] == whole["best_step"] + 6 < 40

    save = TeacherTrainer._save_checkpoint

    def save_and_die(self, *arguments, **named):
        save(self, *arguments, **named)
        if self.state.global_step == whole["best_step"] + 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(TeacherTrainer, "_save_checkpoint", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(tiny_model, data, tmp_path / "broken", **options))
    monkeypatch.setattr(TeacherTrainer, "_save_checkpoint", save)
    for copy in ("moved", "torn"):
        shutil.copytree(tmp_path / "broken", tmp_path / copy)
    expected = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    for output in (tmp_path / "broken", tmp_path / "moved"):
        resumed = run(make_config(tiny_model, data, output, **options))
        assert resumed["resumed_from_step"] == whole["best_step"] + 2
        for name in ("steps", "best_step", "evaluations"):
            assert resumed[name] == whole[name]
        for key, value in load_file(output / "adapter_model.safetensors").items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    shutil.rmtree(tmp_path / "torn" / f"checkpoint-{whole['best_step']}")
    with pytest.raises(ModelError, match=f"of step {whole['best_step']}, is gone"):
        run(make_config(tiny_model, data, tmp_path / "torn", **options))


@pytest.mark.slow
@pytest.mark.parametrize(("max_steps", "patience"), [(1000, 1), (3, 9), (9, 9)])
def test_killed_after_its_last_step_it_trains_no_further(
    tiny_model, data, tmp_path, monkeypatch, max_steps, patience
):
    """The first stops before a step of its 1,000 would be logged, which is every 20th."""
    options = {
        "max_steps": max_steps,
        "learning_rate": 0.3,
        "eval_share": 0.2,
        "save_every_steps": 2,
        "early_stopping_patience": patience,
        "lr_schedule": "constant_with_warmup",
        "warmup_ratio": 0.01,
    }
    whole = run(make_config(tiny_model, data, tmp_path / "whole", **options))
    assert whole["steps"] == min(max_steps, whole["best_step"] + 2 * patience)
    assert whole["steps"] < 20
    assert [entry["step"] for entry in whole["history"]][-1] == whole["steps"]

    monkeypatch.setattr("pipeline.teacher.finetune_model.write_result", None)
    with pytest.raises(TypeError):
        run(make_config(tiny_model, data, tmp_path / "killed", **options))
    monkeypatch.undo()
    resumed = run(make_config(tiny_model, data, tmp_path / "killed", **options))
    assert resumed["resumed_from_step"] == whole["steps"]
    for name in ("steps", "best_step", "evaluations"):
        assert resumed[name] == whole[name]
    assert [entry["loss"] for entry in resumed["history"]] == [e["loss"] for e in whole["history"]]
    expected = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    for key, value in load_file(tmp_path / "killed" / "adapter_model.safetensors").items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_padding_free_trains_the_same_weights(tiny_model, data, tmp_path, capsys, tuning):
    options = {"tuning": tuning, "learning_rate": 1e-3, "eval_share": 0.2, "save_every_steps": 3}
    results = {
        batching: run(
            make_config(tiny_model, data, tmp_path / batching, batching=batching, **options)
        )
        for batching in ("padded", "padding-free")
    }
    assert results["padding-free"]["made_with"]["batching"] == "padding-free"
    assert results["padded"]["made_with"]["attention"] == "sdpa"
    assert "padding-free batches, sdpa attention" in capsys.readouterr().out
    padded, free = results["padded"], results["padding-free"]
    assert free["tokens"] == padded["tokens"]
    for one, other in zip(padded["history"], free["history"], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert free["best_eval_loss"] == pytest.approx(padded["best_eval_loss"], rel=1e-4)


def test_automatic_batching_is_padded_without_flash_attention(tiny_model, data, tmp_path, capsys):
    result = run(make_config(tiny_model, data, tmp_path / "t", max_steps=1))
    assert result["made_with"] == {"batching": "padded", "attention": "sdpa", "processes": 1}


def test_a_model_that_cannot_is_padded_unless_asked(
    tiny_model, data, tmp_path, capsys, monkeypatch
):
    def refuse(model):
        raise ModelError("it lets examples read each other")

    monkeypatch.setattr("pipeline.training.padding_free.check_padding_free", refuse)
    monkeypatch.setattr("pipeline.training.padding_free.pick_attention", lambda *_: "sdpa")
    result = run(make_config(tiny_model, data, tmp_path / "t", max_steps=1))
    assert result["made_with"]["batching"] == "padded"
    assert "read each other: taking padded batches" in capsys.readouterr().out
    with pytest.raises(ModelError, match="read each other"):
        run(make_config(tiny_model, data, tmp_path / "f", max_steps=1, batching="padding-free"))


def test_gradient_checkpointing_changes_nothing(tiny_model, data, tmp_path):
    options = {"max_steps": 3, "learning_rate": 1e-3}
    plain = run(make_config(tiny_model, data, tmp_path / "a", **options))
    spared = run(
        make_config(tiny_model, data, tmp_path / "b", gradient_checkpointing=True, **options)
    )
    for one, other in zip(plain["history"], spared["history"], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed")
@pytest.mark.slow
def test_qlora_trains_an_adapter_on_four_bits_and_merges_into_all(tiny_model, data, tmp_path):
    options = {"tuning": "qlora", "max_steps": 12}
    result = run(make_config(tiny_model, data, tmp_path / "adapter", **options))
    assert result["last"]["loss"] < 0.9 * result["first"]["loss"]
    assert "bitsandbytes" in result["versions"]
    plain = run(make_config(tiny_model, data, tmp_path / "plain", max_steps=1))
    # In 4 bits the same first batch has another loss, but nearly the same.
    first, exact = result["history"][0]["loss"], plain["history"][0]["loss"]
    assert first != exact
    assert first == pytest.approx(exact, rel=0.1)
    found = find_checkpoint(str(tmp_path / "adapter"))
    assert found.model_path == tiny_model.resolve()

    run(make_config(tiny_model, data, tmp_path / "merged", merge=True, **options))
    merged = find_checkpoint(str(tmp_path / "merged"))
    assert merged.adapter_path is None
    assert not list((tmp_path / "merged").glob("*adapter*"))
    ids = torch.tensor([[5, 6, 7, 8]])
    adapted = load_model(found, dtype="float32")(ids).logits
    torch.testing.assert_close(load_model(merged, dtype="float32")(ids).logits, adapted)
    base = load_file(tiny_model / "model.safetensors")
    assert set(base) == set(load_file(tmp_path / "merged" / "model.safetensors"))


def test_missing_packages_are_named(tiny_model, data, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    absent = ("bitsandbytes", "wandb", "trackio")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name in absent else find_spec(name)
    )
    with pytest.raises(MissingPackageError, match=r"--tuning qlora needs .*smoothkd\[qlora\]"):
        make_config(tiny_model, data, tmp_path, tuning="qlora")
    for report in ("wandb", "trackio"):
        with pytest.raises(MissingPackageError, match=f"--report-to {report} needs the package"):
            make_config(tiny_model, data, tmp_path, report_to=report)


def test_reports_go_where_they_are_asked_to(tiny_model, data, tmp_path):
    pytest.importorskip("tensorboard")
    run(make_config(tiny_model, data, tmp_path / "none", max_steps=1, report_to="none"))
    assert not list((tmp_path / "none").rglob("events*"))
    run(make_config(tiny_model, data, tmp_path / "board", max_steps=1, report_to="tensorboard"))
    assert list((tmp_path / "board").rglob("events*"))
    # Where curves go is no part of what a run is.
    again = make_config(tiny_model, data, tmp_path / "none", max_steps=1, report_to="tensorboard")
    assert run(again)["finished"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_share": 1.0}, r"--eval-share 1.0 must be in \[0, 1\)"),
        ({"eval_share": -0.1}, r"--eval-share -0.1 must be in"),
        ({"eval_share": 0.1, "save_every_steps": None}, "--eval-share 0.1 evaluates checkpoints"),
        ({"early_stopping_patience": 2}, "--early-stopping-patience 2 needs an evaluation"),
        ({"early_stopping_patience": 0}, "--early-stopping-patience 0 must be at least 1"),
        ({"batching": "packed"}, "--batching 'packed' is unknown: one of auto, padded, padding"),
        ({"report_to": "mlflow"}, "--report-to 'mlflow' is unknown: one of auto, none"),
    ],
)
def test_bad_settings_are_refused(tiny_model, data, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(tiny_model, data, tmp_path, **changes)
