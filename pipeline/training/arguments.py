"""Build the transformers TrainingArguments of a run from its settings."""

import importlib.util
from pathlib import Path

import torch
from transformers import TrainingArguments

from pipeline.models.loading import pick_device
from pipeline.training.precision import Precision
from pipeline.training.settings import TrainingSettings

# Fifty points draw a curve; a short run logs every step.
LOGGING_SHARE = 0.02


class RunArguments(TrainingArguments):  # type: ignore[misc]
    """Training arguments whose warm-up leaves a step.

    transformers rounds a share of the steps up and starts from a rate of 0: a run of one step
    would learn nothing.
    """

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Return the steps of the warm-up, fewer than all."""
        return min(int(super().get_warmup_steps(num_training_steps)), num_training_steps - 1)


def build_arguments(
    settings: TrainingSettings,
    output: Path,
    precision: Precision,
    *,
    evaluate: bool = False,
    fsdp: bool = False,
) -> RunArguments:
    """Return the arguments that make the Trainer do what the settings say, and nothing more.

    With `evaluate`, every checkpoint and the end are evaluated, and the best checkpoint is kept.
    With `fsdp`, weights, gradients and optimiser are sharded over the processes.

    One process uses one device: several GPUs are used by launching several processes.
    """
    arguments = RunArguments(
        output_dir=str(output.resolve()),  # the best checkpoint is found again from anywhere
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.peak_learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        gradient_checkpointing=settings.gradient_checkpointing,
        warmup_steps=settings.warmup_ratio,  # below 1 it is a share of all steps
        lr_scheduler_type=settings.lr_schedule,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        use_cpu=pick_device() == "cpu",
        bf16=precision.autocast,
        save_strategy="steps" if settings.save_every_steps else "no",
        save_steps=settings.save_every_steps or 1,
        # The last and the best one. With 1 it keeps both, too, but deletes the last one at the end
        # of training, before the result is written: a kill in between would train from the best.
        save_total_limit=2 if evaluate else 1,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=settings.save_every_steps if evaluate else None,
        load_best_model_at_end=evaluate,
        metric_for_best_model="eval_loss" if evaluate else None,
        greater_is_better=False if evaluate else None,
        logging_steps=LOGGING_SHARE,
        logging_nan_inf_filter=False,  # a loss that is no number stops the run, see callbacks
        log_level="error",
        disable_tqdm=True,
        report_to=_report_to(settings.report_to),
        run_name=output.name,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,  # or the teacher's columns vanish without a word
        dataloader_pin_memory=torch.cuda.is_available(),
        average_tokens_across_devices=True,
        fsdp=fsdp,
        ddp_find_unused_parameters=False,  # every trained weight has a gradient in every step
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # never torch.nn.DataParallel
    return arguments


def _report_to(asked: str) -> str:
    if asked != "auto":
        return asked
    return "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
