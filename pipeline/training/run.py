"""Claim an output, train with a prepared Trainer from where a killed run stopped, write it."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PrinterCallback, Trainer

from pipeline.errors import ModelError, OutputExistsError
from pipeline.locking import LOCK_WAIT_SECONDS, locked
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import pick_device
from pipeline.models.memory import memory_advice
from pipeline.run_record import finish_output, is_first_process, open_output
from pipeline.training.callbacks import epochs_of_ended_run
from pipeline.training.checkpoints import find_last_checkpoint, remove_checkpoints
from pipeline.training.full_disk import full_disk_advice
from pipeline.training.lora import merge_adapter
from pipeline.training.settings import TrainingSettings
from storage_schema.publish import remove_stale_temporaries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The Trainer's own clock entries, which say nothing about a single interval.
UNRECORDED_KEYS = ("train_runtime", "train_tokens_per_second", "train_steps_per_second")
COMPARED_SHARE = 0.1
MEMORY_ADVICE = (
    "use --gradient-checkpointing, a lower --batch-size with --gradient-accumulation-steps, for "
    "students --batch-tokens, or a shorter --max-sequence-tokens, with another --output"
)
LOCK_NAME = "run.lock"


@contextmanager
def claim_output(
    output: Path, command: str, identity: dict[str, Any], inputs: dict[str, str]
) -> Iterator[None]:
    """Claim the directory for this run, and keep other processes from it during the block.

    Raises:
        OutputExistsError: the directory holds another run, or files without a record; another
            process works on it, or finished it just now.
    """
    with ExitStack() as held:
        # The first process alone makes the record and holds the lock.
        with PartialState(cpu=pick_device() == "cpu").main_process_first():
            open_output(output, command, identity, inputs)
            if is_first_process():
                run = f"the run {output}"
                held.enter_context(locked(output / LOCK_NAME, run, LOCK_WAIT_SECONDS))
                remove_stale_temporaries(output)  # of a run that was killed
                if open_output(output, command, identity, inputs) == "finished":
                    raise OutputExistsError(f"{run} was finished by another process just now")
        yield


def train(trainer: Trainer, output: Path) -> dict[str, Any]:
    """Train to the end, from the last checkpoint under `output` if there is one.

    Returns:
        JSON-ready summary: steps and tokens (prompt and response, padding not counted) of the
        whole run; resumed_from_step, seconds and tokens_per_second of this process; history,
        one entry per logged interval; first and last, the means of its first and last tenth.
        After evaluations also best_step, whose weights the model then has, best_eval_loss, and
        evaluations.

    Raises:
        ModelError: the checkpoint with the lowest evaluation loss is gone, memory ran out, or a
            trained weight is no finite number.
        OutputWriteError: a checkpoint does not fit on the disk.
    """
    checkpoint = find_last_checkpoint(output)
    resumed_from_step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    if checkpoint and (epochs := epochs_of_ended_run(trainer, checkpoint)) is not None:
        # It was killed between its last step and its record. Given as many steps as it has made,
        # the Trainer would make one more; given the epochs it has finished, it makes none.
        trainer.args.max_steps, trainer.args.num_train_epochs = -1, epochs
    start = time.monotonic()
    trainer.remove_callback(PrinterCallback)  # prints raw dictionaries
    with memory_advice("training", MEMORY_ADVICE), full_disk_advice(output):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.monotonic() - start
    _check_weights(trainer)
    evaluation = _describe_evaluation(trainer)
    tokens = int(trainer.state.num_input_tokens_seen)
    tokens_here = tokens - int(trainer._initial_num_input_tokens_seen)
    history = [_finite(entry) for entry in trainer.state.log_history if "loss" in entry]
    window = max(1, round(len(history) * COMPARED_SHARE))
    return {
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "resumed_from_step": resumed_from_step,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens_here / seconds, 1),
        "first": _mean(history[:window]),
        "last": _mean(history[-window:]),
        "history": history,
        **evaluation,
    }


def _check_weights(trainer: Trainer) -> None:
    """Refuse what the last step made: the loss, which is checked, is that of before it."""
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad and not bool(torch.isfinite(weight).all()):
            raise ModelError(
                f"{name} has weights that are no finite numbers after the last step: the run has "
                "diverged; use a lower --learning-rate with another --output"
            )


def _describe_evaluation(trainer: Trainer) -> dict[str, Any]:
    """Return best_step, best_eval_loss and all evaluations, or nothing if there were none."""
    evaluations = [
        {k: v for k, v in entry.items() if k == "step" or k.startswith("eval_")}
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    ]
    if not evaluations:
        return {}
    best = trainer.state.best_model_checkpoint
    # The Trainer only warns of it, and would hand over the last weights as the best.
    if best is None or not Path(best).is_dir():
        raise ModelError(
            f"the checkpoint with the lowest evaluation loss, of step "
            f"{trainer.state.best_global_step}, is gone; start over with another --output"
        )
    return {
        "best_step": trainer.state.best_global_step,
        "best_eval_loss": trainer.state.best_metric,
        "evaluations": evaluations,
    }


def write_result(
    trainer: Trainer,
    output: Path,
    settings: TrainingSettings,
    checkpoint: Checkpoint,
    tokenizer: "PreTrainedTokenizerBase",
    dtype: str,
    **record: Any,
) -> None:
    """Write what was trained, merged if asked for, and mark the run finished with its record.

    Every process calls it; the first one writes. Checkpoints are removed once nothing needs them.

    Args:
        trainer: after `train`.
        output: of the run.
        settings: of the run.
        checkpoint: what was trained.
        tokenizer: saved beside the weights.
        dtype: see `save_model`.
        record: JSON-ready results for `run.json`.

    Raises:
        OutputWriteError: the weights do not fit on the disk.
    """
    # Collective where the weights are in parts, so before the other processes leave.
    state_dict = (
        trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    )
    # A process that is behind may still look for the best checkpoint.
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        model = trainer.model
        if settings.merge:
            model, state_dict = merge_adapter(model, settings, checkpoint, state_dict), None
        with full_disk_advice(output):
            save_model(model, tokenizer, output, dtype, state_dict)
            finish_output(output, **record)
        remove_checkpoints(output)
    trainer.accelerator.wait_for_everyone()


def save_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    output: Path,
    dtype: str,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a full model, cast to `dtype` in place, or an adapter as it is, and the tokenizer.

    Only safetensors and JSON are written. `dtype` is the type the original checkpoint is stored
    in, so that training in float32 does not double the size of what is served. `state_dict`
    holds the weights of a model that is in parts on several processes.
    """
    model.config.use_cache = True  # the Trainer turned it off; generation needs it
    if not isinstance(model, PeftModel):
        stored = getattr(torch, dtype)
        if state_dict is None:
            model = model.to(stored)
        else:
            model.config.dtype = stored
            state_dict = {name: weight.to(stored) for name, weight in state_dict.items()}
    model.save_pretrained(str(output), state_dict=state_dict)
    (output / "README.md").unlink(missing_ok=True)  # an unfilled form, written by peft
    tokenizer.save_pretrained(str(output))


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
        if key not in UNRECORDED_KEYS
    }


def _mean(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of the losses and shares over intervals, weighted by their response tokens if known."""
    weights = [entry.get("response_tokens", 1) for entry in entries]
    skipped = ("step", "epoch", "learning_rate", "num_input_tokens_seen", "response_tokens")
    names = [
        name
        for name in entries[-1]
        if name not in skipped and all(entry.get(name) is not None for entry in entries)
    ]
    return {
        name: sum(w * entry[name] for w, entry in zip(weights, entries, strict=True)) / sum(weights)
        for name in names
    }
