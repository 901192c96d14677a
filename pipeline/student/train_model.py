"""Train a student's model on a cache: check the fit, load, train, save, record."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import pick_device
from pipeline.student.config import TrainStudentConfig
from pipeline.student.fit import adopt_chat_template, check_run
from pipeline.student.from_scratch import load_random
from pipeline.student.steps import BoolArray
from pipeline.student.trainer import StudentTrainer
from pipeline.training.arguments import build_arguments
from pipeline.training.callbacks import run_callbacks
from pipeline.training.held_out import choose_held_out
from pipeline.training.lora import load_trainable
from pipeline.training.model_config import stored_dtype
from pipeline.training.padding_free import attention_for, choose_batching
from pipeline.training.precision import pick_precision
from pipeline.training.quiet import quiet_transformers
from pipeline.training.run import claim_output, train, write_result
from storage_schema.reader import LogitCache
from storage_schema.response import Response
from storage_schema.statistics import LOW_STORED_MASS

COMMAND = "train-student"
SHOWN = (("CE", "ce"), ("KL", "kl"))


def train_model(
    config: TrainStudentConfig,
    cache: LogitCache,
    checkpoint: Checkpoint,
    identity: dict[str, Any],
    inputs: dict[str, str],
) -> None:
    """Train the student, or go on where a killed run stopped, and write the output.

    Raises:
        ModelError: the student does not fit the cache, cannot do what was asked, or the run
            diverged.
        DataError: nothing would be left to train on beside the held-out share.
        ConfigError: a pass of batch_tokens cannot hold the longest sequence.
        OutputExistsError: the output holds another run.
    """
    quiet_transformers()
    tokenizer, model_config = check_run(config, cache, checkpoint)
    adopt_chat_template(tokenizer, cache.plan)
    _verify(cache)
    trained_on, held_out = hold_out(cache, config.eval_share, config.seed)

    output = Path(config.output)
    with claim_output(output, COMMAND, identity, inputs):
        trainer = _prepare(config, cache, checkpoint, trained_on, held_out)
        made_with = {
            "batching": trainer.batching,
            "attention": trainer.model.config._attn_implementation,
            "processes": trainer.args.world_size,
            "responses_per_step": trainer.responses_per_step,
        }
        if trainer.is_world_process_zero():
            print(
                f"{made_with['batching']} batches, {made_with['attention']} attention, "
                f"{made_with['responses_per_step']} responses a step"
            )
        summary = train(trainer, output)
        summary["input_share"] = round(trainer.input_seconds / summary["seconds"], 4)
        counts = {"trained_on": len(cache) - len(held_out), "held_out": len(held_out)}
        record = {"counts": counts, "made_with": made_with, **summary}
        write_result(
            trainer, output, config, checkpoint, tokenizer, stored_dtype(model_config), **record
        )
        if trainer.is_world_process_zero():
            _print_summary(config, summary)
            if config.tail == "renormalize" and cache.plan.support["kind"] == "top_k":
                _say_what_was_scaled(summary["history"])


def hold_out(cache: LogitCache, share: float, seed: int) -> tuple[BoolArray | None, list[Response]]:
    """Return which responses to train on, None for all, and those held out, copied to memory.

    Whole prompts are held out, of running text whole texts (pipeline.training.held_out). The
    whole cache is decoded once.

    Raises:
        DataError: nothing would be left to train on.
    """
    if not share:
        return None, []
    chosen = choose_held_out(cache, share, seed)
    trained_on = np.ones(len(cache), np.bool_)
    trained_on[list(chosen)] = False
    return trained_on, [cache[index].copy() for index in sorted(chosen)]


def _verify(cache: LogitCache) -> None:
    """Read the whole cache: damage is found now, not after hours of training."""
    copy = cache.local_copy
    if copy is not None:
        print(f"shards of {cache.path} are read from {copy.directory}", flush=True)
    cache.verify()
    if copy is not None:
        print(
            f"{copy.num_fetched} of {len(cache.manifest.shards)} shards copied now "
            f"({copy.num_replaced} in place of a copy of a wrong size)"
        )


def _prepare(
    config: TrainStudentConfig,
    cache: LogitCache,
    checkpoint: Checkpoint,
    trained_on: BoolArray | None,
    held_out: list[Response],
) -> StudentTrainer:
    device = pick_device()
    precision = pick_precision(config.dtype, config.tuning, device)
    attention = attention_for(config.batching, device, precision)
    load = load_random if config.from_scratch else load_trainable
    arguments = build_arguments(
        config, Path(config.output), precision, evaluate=bool(held_out), fsdp=config.fsdp
    )
    trainer = StudentTrainer(
        alpha_settings=config.alpha_settings,
        kl_settings=config.kl_settings,
        label_smoothing=config.label_smoothing,
        batch_tokens=config.batch_tokens,
        trained_on=trained_on,
        model=load(checkpoint, config, precision, attention),
        args=arguments,
        train_dataset=cache,
        eval_dataset=held_out or None,
        callbacks=run_callbacks(COMMAND, config.early_stopping_patience),
    )
    trainer.batching = choose_batching(config.batching, attention, trainer)
    return trainer


def _print_summary(config: TrainStudentConfig, summary: dict[str, Any]) -> None:
    first, last = summary["first"], summary["last"]
    losses = [f"{name} {first[key]:.4f} -> {last[key]:.4f}" for name, key in SHOWN if key in last]
    print(
        f"student at alpha {config.alpha:g} written to {config.output}\n"
        f"{summary['steps']} steps, {summary['tokens_per_second']:.0f} tokens/s, "
        f"{summary['input_share']:.1%} of the time waiting for input; "
        f"nats per response token: {', '.join(losses)}"
    )
    if "best_step" in summary:
        at = summary["best_step"]
        best = next(e for e in summary["evaluations"] if e["step"] == at)
        print(
            f"held out, at step {at}, which is kept: CE {best['eval_ce']:.4f}, "
            f"KL {best['eval_kl']:.4f}, ECE {best['eval_ece']:.4f}"
        )


def _say_what_was_scaled(history: list[dict[str, Any]]) -> None:
    """Say where renormalize taught more certainty than the teacher has."""
    masses = [step["teacher_mass"] for step in history if "teacher_mass" in step]
    if masses and np.mean(masses) < LOW_STORED_MASS:
        print(
            f"warning: the entries used hold {np.mean(masses):.3f} of the teacher's probability on "
            "average, and --tail renormalize scaled them up to 1: the student was taught more "
            "certainty than the teacher has. --tail ghost does not do that (docs/losses.md)"
        )
