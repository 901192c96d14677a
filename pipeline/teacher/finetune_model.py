"""Fine-tune the teacher's model on tokenised examples: load, train, save, record."""

from pathlib import Path
from typing import Any

from transformers import Trainer

from pipeline.data.tokenization import TokenizedDataset
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import pick_device
from pipeline.run_record import finish_output
from pipeline.teacher.finetune_config import FinetuneTeacherConfig
from pipeline.training.arguments import build_arguments
from pipeline.training.callbacks import RunCallback
from pipeline.training.checkpoints import remove_checkpoints
from pipeline.training.collation import (
    can_keep_logits,
    collate_for_model_loss,
    collate_sequences,
)
from pipeline.training.lora import check_trainable, load_trainable
from pipeline.training.model_config import check_length, load_model_config, stored_dtype
from pipeline.training.precision import pick_precision
from pipeline.training.quiet import quiet_transformers
from pipeline.training.run import claim_output, save_model, train

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
        ModelError: the model is too short for the data, or the run diverged.
        OutputExistsError: the output holds another run.
    """
    quiet_transformers()
    check_trainable(checkpoint)
    model_config = load_model_config(checkpoint, trust_remote_code=config.trust_remote_code)
    check_length(model_config, max(len(example.input_ids) for example in dataset.examples))

    output = Path(config.output)
    claim_output(output, COMMAND, identity, inputs)
    trainer = _prepare(config, dataset, checkpoint)
    summary = train(trainer, output)
    if trainer.is_world_process_zero():
        model = trainer.model.merge_and_unload() if config.merge else trainer.model
        save_model(model, tokenizer, output, stored_dtype(model_config))
        finish_output(output, counts=dataset.counts, **summary)
        remove_checkpoints(output)
        _print_summary(config, summary)
    trainer.accelerator.wait_for_everyone()


def _prepare(
    config: FinetuneTeacherConfig, dataset: TokenizedDataset, checkpoint: Checkpoint
) -> Trainer:
    precision = pick_precision(config.dtype, config.tuning, pick_device())
    model = load_trainable(checkpoint, config, precision)
    return Trainer(
        model=model,
        args=build_arguments(config, Path(config.output), precision),
        train_dataset=dataset.examples,
        data_collator=collate_for_model_loss if can_keep_logits(model) else collate_sequences,
        callbacks=[RunCallback(COMMAND)],
    )


def _print_summary(config: FinetuneTeacherConfig, summary: dict[str, Any]) -> None:
    kind = "full model" if config.merge or config.tuning == "full" else "adapter"
    print(
        f"fine-tuned {kind} written to {config.output}\n"
        f"{summary['steps']} steps, {summary['tokens_per_second']:.0f} tokens/s; nats per "
        f"response token: CE {summary['first']['loss']:.4f} -> {summary['last']['loss']:.4f}"
    )
