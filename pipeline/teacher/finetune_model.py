"""Fine-tune the teacher's model on tokenised examples: load, train, save, record."""

from pathlib import Path
from typing import Any

from pipeline.data.tokenization import Example, TokenizedDataset
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import pick_device
from pipeline.teacher.finetune_config import FinetuneTeacherConfig
from pipeline.teacher.finetune_trainer import TeacherTrainer
from pipeline.training.arguments import build_arguments
from pipeline.training.callbacks import run_callbacks
from pipeline.training.collation import (
    can_keep_logits,
    collate_for_model_loss,
    collate_sequences,
)
from pipeline.training.held_out import split_held_out
from pipeline.training.lora import check_trainable, load_trainable
from pipeline.training.model_config import check_length, load_model_config, stored_dtype
from pipeline.training.padding_free import attention_for, choose_batching, pick_collator
from pipeline.training.precision import pick_precision
from pipeline.training.quiet import quiet_transformers
from pipeline.training.run import claim_output, train, write_result

COMMAND = "finetune-teacher"


def finetune_model(
    config: FinetuneTeacherConfig,
    dataset: TokenizedDataset,
    tokenizer: Any,
    checkpoint: Checkpoint,
    identity: dict[str, Any],
    inputs: dict[str, str],
) -> None:
    """Fine-tune the model, or go on where a killed run stopped, and write the output.

    Raises:
        DataError: nothing would be left to train on beside the held-out share.
        ModelError: the model is too short for the data, cannot do what was asked, or the run
            diverged.
        OutputExistsError: the output holds another run.
    """
    quiet_transformers()
    check_trainable(checkpoint)
    model_config = load_model_config(checkpoint, trust_remote_code=config.trust_remote_code)
    check_length(model_config, max(len(example.input_ids) for example in dataset.examples))
    examples = dataset.examples
    held_out: list[Example] = []
    if config.eval_share:
        examples, held_out = split_held_out(examples, config.eval_share, config.seed)

    output = Path(config.output)
    with claim_output(output, COMMAND, identity, inputs):
        trainer = _prepare(config, examples, held_out, checkpoint)
        made_with = {
            "batching": trainer.batching,
            "attention": trainer.model.config._attn_implementation,
            "processes": trainer.args.world_size,
        }
        if trainer.is_world_process_zero():
            print(f"{made_with['batching']} batches, {made_with['attention']} attention")
        summary = train(trainer, output)
        counts = {**dataset.counts, "trained_on": len(examples), "held_out": len(held_out)}
        record = {"counts": counts, "made_with": made_with, **summary}
        write_result(
            trainer, output, config, checkpoint, tokenizer, stored_dtype(model_config), **record
        )
        if trainer.is_world_process_zero():
            _print_summary(config, summary)


def _prepare(
    config: FinetuneTeacherConfig,
    examples: list[Example],
    held_out: list[Example],
    checkpoint: Checkpoint,
) -> TeacherTrainer:
    device = pick_device()
    precision = pick_precision(config.dtype, config.tuning, device)
    attention = attention_for(config.batching, device, precision)
    model = load_trainable(checkpoint, config, precision, attention)
    trainer = TeacherTrainer(
        batching="padded",
        group_by_length=config.group_by_length,
        model=model,
        args=build_arguments(config, Path(config.output), precision, evaluate=bool(held_out)),
        train_dataset=examples,
        eval_dataset=held_out or None,
        data_collator=collate_for_model_loss if can_keep_logits(model) else collate_sequences,
        callbacks=run_callbacks(COMMAND, config.early_stopping_patience),
    )
    trainer.batching = choose_batching(config.batching, attention, trainer)
    if trainer.batching == "padding-free":
        trainer.data_collator = pick_collator(trainer.model)
    return trainer


def _print_summary(config: FinetuneTeacherConfig, summary: dict[str, Any]) -> None:
    kind = "full model" if config.merge or config.tuning == "full" else "adapter"
    best = ""
    if "best_step" in summary:
        best = f"; held-out CE {summary['best_eval_loss']:.4f} at step {summary['best_step']}, kept"
    print(
        f"fine-tuned {kind} written to {config.output}\n"
        f"{summary['steps']} steps, {summary['tokens_per_second']:.0f} tokens/s; nats per "
        f"response token: CE {summary['first']['loss']:.4f} -> {summary['last']['loss']:.4f}{best}"
    )
