"""Training settings: ranges, defaults, and the arguments they turn into."""

import importlib.util

import pytest
import torch

from pipeline.errors import ConfigError, ModelError
from pipeline.models.checkpoint import Checkpoint
from pipeline.training.arguments import build_arguments
from pipeline.training.model_config import check_length, load_model_config, max_positions
from pipeline.training.precision import Precision, pick_precision
from pipeline.training.settings import TrainingSettings, check_training_settings

FLOAT32 = Precision("float32", autocast=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": "half"}, "--tuning 'half' is unknown: one of lora, qlora, full"),
        ({"dtype": "float16"}, "--dtype 'float16' is unknown: one of auto, float32, bfloat16"),
        ({"lr_schedule": "step"}, "--lr-schedule 'step' is unknown"),
        ({"lora_rank": 0}, "--lora-rank 0 must be at least 1"),
        ({"lora_alpha": 0}, "--lora-alpha 0 must be at least 1"),
        ({"max_steps": 0}, "--max-steps 0 must be at least 1"),
        ({"batch_size": -1}, "--batch-size -1 must be at least 1"),
        ({"save_every_steps": 0}, "--save-every-steps 0 must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "--gradient-accumulation-steps 0 must be at least 1"),
        ({"epochs": 0.0}, "--epochs 0.0 must be above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan must be above 0"),
        ({"max_grad_norm": float("inf")}, "--max-grad-norm inf must be above 0"),
        ({"lora_dropout": 1.0}, r"--lora-dropout 1.0 must be in \[0, 1\)"),
        ({"warmup_ratio": -0.1}, r"--warmup-ratio -0.1 must be in \[0, 1\)"),
        ({"weight_decay": 2.0}, r"--weight-decay 2.0 must be in \[0, 1\)"),
        ({"seed": -1}, "--seed -1 must be in"),
    ],
)
def test_values_out_of_range_name_their_flag(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_training_settings(TrainingSettings(**changes))


def test_learning_rate_follows_the_tuning():
    check_training_settings(TrainingSettings())
    assert TrainingSettings().peak_learning_rate == 2e-4
    assert TrainingSettings(tuning="full").peak_learning_rate == 1e-5
    assert TrainingSettings(tuning="full", learning_rate=3e-3).peak_learning_rate == 3e-3


def test_arguments_say_what_the_settings_say(tmp_path):
    settings = TrainingSettings(
        max_steps=7, batch_size=3, gradient_accumulation_steps=2, save_every_steps=5, seed=11
    )
    arguments = build_arguments(settings, tmp_path, FLOAT32)
    assert (arguments.max_steps, arguments.seed) == (7, 11)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (3, 2)
    assert (arguments.save_strategy, arguments.save_steps) == ("steps", 5)
    assert [arguments.get_warmup_steps(steps) for steps in (100, 2, 1)] == [3, 1, 0]
    assert not arguments.remove_unused_columns
    assert arguments.average_tokens_across_devices
    assert not arguments.bf16
    has_tensorboard = importlib.util.find_spec("tensorboard") is not None
    assert arguments.report_to == (["tensorboard"] if has_tensorboard else [])


def test_no_checkpoints_when_none_are_asked_for(tmp_path):
    arguments = build_arguments(TrainingSettings(save_every_steps=None), tmp_path, FLOAT32)
    assert arguments.save_strategy == "no"


@pytest.mark.parametrize(
    ("dtype", "tuning", "device", "expected"),
    [
        ("auto", "lora", "cpu", Precision("float32", autocast=False)),
        ("auto", "full", "cpu", Precision("float32", autocast=False)),
        ("bfloat16", "lora", "cpu", Precision("bfloat16", autocast=False)),
        ("bfloat16", "full", "cuda", Precision("float32", autocast=True)),
        ("float32", "lora", "cuda", Precision("float32", autocast=False)),
    ],
)
def test_precision(dtype, tuning, device, expected):
    assert pick_precision(dtype, tuning, device) == expected


@pytest.mark.parametrize("supported", [True, False])
def test_automatic_precision_on_a_gpu(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    weights = "bfloat16" if supported else "float32"
    assert pick_precision("auto", "lora", "cuda") == Precision(weights, autocast=False)
    assert pick_precision("auto", "full", "cuda") == Precision("float32", autocast=supported)


def test_sequences_longer_than_the_model_are_refused(tiny_model):
    config = load_model_config(Checkpoint("tiny", tiny_model, None))
    assert max_positions(config) == 256
    check_length(config, 256)
    with pytest.raises(ModelError, match="has 257 tokens, the model reads at most 256"):
        check_length(config, 257)


def test_unknown_configuration_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_model_config(Checkpoint("x", tmp_path, None))
