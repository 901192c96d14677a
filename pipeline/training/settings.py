"""The settings of a training run, shared by finetune-teacher and train-student.

Standard library only: it is read by --help.
"""

import importlib.util
from dataclasses import dataclass

from pipeline.errors import ConfigError, MissingPackageError
from pipeline.run_record import num_processes
from pipeline.settings import DRY_RUN, setting

TUNINGS = ("lora", "qlora", "full")
ADAPTER_TUNINGS = ("lora", "qlora")
# No float16: it needs loss scaling, and every GPU that is worth training on has bfloat16.
TRAINING_DTYPES = ("auto", "float32", "bfloat16")
LR_SCHEDULES = ("cosine", "linear", "constant_with_warmup")
# Adapters start at zero and need larger steps than weights that are already good.
DEFAULT_LEARNING_RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 1e-5}
# Where loss curves go; each but "none" is a Python package. "auto": tensorboard where installed.
REPORTS = ("auto", "none", "tensorboard", "wandb", "trackio")
BATCHINGS = ("auto", "padded", "padding-free")
# A run is the same run wherever its curves go.
UNCOMPARED = ("output", "report_to", "dry_run")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Optimisation settings; the defaults suit a few epochs of instruction tuning."""

    tuning: str = setting(
        "Train a LoRA adapter, one on a base in 4 bits (qlora), or all weights.", "lora", TUNINGS
    )
    # 16 is the largest rank that inference engines serve without further settings.
    lora_rank: int = setting("Rank of the LoRA matrices.", 16)
    lora_alpha: int = setting("LoRA scaling: the update is multiplied by this over the rank.", 32)
    # 0, so that the loss depends on nothing but weights and data, however batches are cut.
    lora_dropout: float = setting("Dropout before the LoRA matrices.", 0.0)
    epochs: float = setting("Passes over the data; --max-steps overrides it.", 3.0)
    max_steps: int | None = setting("Stop after this many optimiser steps.", None)
    learning_rate: float | None = setting(
        "Highest learning rate; default 2e-4 for lora and qlora, 1e-5 for full, 6e-4 from scratch.",
        None,
    )
    batch_size: int = setting("Responses per device and forward pass.", 8)
    gradient_accumulation_steps: int = setting("Forward passes per optimiser step.", 1)
    warmup_ratio: float = setting("Share of the steps over which the learning rate rises.", 0.03)
    lr_schedule: str = setting("How the learning rate falls after that.", "cosine", LR_SCHEDULES)
    # An adapter is small and starts at zero: decay towards zero is decay towards the base model.
    weight_decay: float = setting("AdamW weight decay.", 0.0)
    max_grad_norm: float = setting("Clip gradients to this norm.", 1.0)
    seed: int = setting("Seed of the adapter's initial weights and of the data order.", 0)
    save_every_steps: int | None = setting(
        "Write a checkpoint to resume from every so many steps; null in a config file: none.", 200
    )
    gradient_checkpointing: bool = setting(
        "Recompute activations in the backward pass: less memory, about a third slower.", False
    )
    dtype: str = setting(
        "Number format of training; auto takes float32 on a CPU and bfloat16 on a GPU.",
        "auto",
        TRAINING_DTYPES,
    )
    batching: str = setting(
        "Pad the sequences of a batch, or put them into one row unpadded; auto takes padding-free "
        "where FlashAttention is installed.",
        "auto",
        BATCHINGS,
    )
    eval_share: float = setting(
        "Hold back this share of the examples, whole prompts at a time; they are evaluated at "
        "every checkpoint and at the end, and the best checkpoint is kept.",
        0.0,
    )
    early_stopping_patience: int | None = setting(
        "Stop after so many evaluations without a lower loss; with --eval-share.", None
    )
    merge: bool = setting(
        "Write a full model with the adapter merged in, instead of the adapter.", False
    )
    report_to: str = setting(
        "Where loss curves go; auto is tensorboard where it is installed.", "auto", REPORTS
    )
    trust_remote_code: bool = setting("Run model code that comes with the checkpoint.", False)
    revision: str | None = setting("Branch, tag or commit of a model from the hub.", None)
    dry_run: bool = setting(DRY_RUN, False)

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate asked for, or the default of the tuning."""
        if self.learning_rate is not None:
            return self.learning_rate
        return DEFAULT_LEARNING_RATES[self.tuning]

    @property
    def responses_per_step(self) -> int:
        """Responses of an optimiser step, all processes together."""
        return self.batch_size * self.gradient_accumulation_steps * num_processes()


def check_training_settings(settings: TrainingSettings) -> None:
    """Check every training setting on its own.

    Raises:
        ConfigError: one is out of range; the message names its flag and value.
        MissingPackageError: a package that one needs is not installed.
    """
    for name, choices in (
        ("tuning", TUNINGS),
        ("dtype", TRAINING_DTYPES),
        ("lr_schedule", LR_SCHEDULES),
        ("report_to", REPORTS),
        ("batching", BATCHINGS),
    ):
        value = getattr(settings, name)
        if value not in choices:
            raise ConfigError(f"{_flag(name)} {value!r} is unknown: one of {', '.join(choices)}")
    at_least_one = ("lora_rank", "lora_alpha", "max_steps", "batch_size", "save_every_steps")
    for name in (*at_least_one, "gradient_accumulation_steps"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError(f"{_flag(name)} {value} must be at least 1")
    for name in ("epochs", "learning_rate", "max_grad_norm"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{_flag(name)} {value} must be above 0 and finite")
    for name in ("lora_dropout", "warmup_ratio", "weight_decay"):
        value = getattr(settings, name)
        if not 0 <= value < 1:
            raise ConfigError(f"{_flag(name)} {value} must be in [0, 1)")
    if not 0 <= settings.seed < 2**32:
        raise ConfigError(f"--seed {settings.seed} must be in [0, 2^32)")
    _check_evaluation(settings)
    if settings.merge and settings.tuning == "full":
        raise ConfigError("--merge with --tuning full: there is no adapter to merge; drop one")
    _check_packages(settings)


def _check_evaluation(settings: TrainingSettings) -> None:
    share, patience = settings.eval_share, settings.early_stopping_patience
    if not 0 <= share < 1:
        raise ConfigError(f"--eval-share {share} must be in [0, 1)")
    if patience is not None and patience < 1:
        raise ConfigError(f"--early-stopping-patience {patience} must be at least 1")
    if patience is not None and not share:
        raise ConfigError(
            f"--early-stopping-patience {patience} needs an evaluation: set --eval-share"
        )
    if share and settings.save_every_steps is None:
        raise ConfigError(
            f"--eval-share {share} evaluates checkpoints and save_every_steps is null, so there "
            "are none: set --save-every-steps"
        )


def _check_packages(settings: TrainingSettings) -> None:
    if settings.tuning == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackageError(
            "--tuning qlora needs bitsandbytes, which is not installed: "
            'pip install "smoothkd[qlora]"'
        )
    report = settings.report_to
    if report not in ("auto", "none") and importlib.util.find_spec(report) is None:
        raise MissingPackageError(
            f"--report-to {report} needs the package {report}, which is not installed: "
            f"pip install {report}"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
