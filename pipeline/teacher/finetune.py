"""finetune-teacher: supervised fine-tuning on a dataset, before the teacher scores it.

The loss is the model's own cross-entropy on response tokens. Resumable, recorded in run.json.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import Trainer

from pipeline.data.tokenization import TokenizedDataset, tokenize_dataset
from pipeline.models.checkpoint import Checkpoint, find_checkpoint, fingerprint_checkpoint
from pipeline.models.loading import load_tokenizer, pick_device
from pipeline.run_record import finish_output, read_record
from pipeline.teacher.finetune_config import FinetuneTeacherConfig
from pipeline.training.arguments import build_arguments
from pipeline.training.callbacks import RunCallback
from pipeline.training.checkpoints import remove_checkpoints
from pipeline.training.collation import (
    can_keep_logits,
    collate_for_model_loss,
    collate_sequences,
)
from pipeline.training.lora import load_trainable
from pipeline.training.model_config import check_length, load_model_config, stored_dtype
from pipeline.training.precision import pick_precision
from pipeline.training.quiet import quiet_transformers
from pipeline.training.run import claim_output, save_model, train

COMMAND = "finetune-teacher"


def run(config: FinetuneTeacherConfig) -> dict[str, Any]:
    """Fine-tune the model and return its run record; a finished output is returned at once.

    Raises:
        DataError: the dataset cannot be read, or nothing of it is left.
        ModelError: the model is missing or too short for the data, or the run diverged.
        OutputExistsError: the output holds another run.
    """
    quiet_transformers()
    output = Path(config.output)
    checkpoint = find_checkpoint(config.model, config.revision)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
    model_config = load_model_config(checkpoint, trust_remote_code=config.trust_remote_code)
    dataset = tokenize_dataset(config, tokenizer)
    print(dataset.describe())
    check_length(model_config, max(len(example.input_ids) for example in dataset.examples))

    inputs = {"model": config.model, "data": config.data}
    identity = {k: v for k, v in asdict(config).items() if k not in ("output", *inputs)}
    identity["dataset_fingerprint"] = dataset.fingerprint
    identity["model_fingerprint"] = fingerprint_checkpoint(checkpoint)
    if claim_output(output, COMMAND, identity, inputs) == "finished":
        print(f"{output} is finished already: nothing to do")
        return {"output": str(output), **read_record(output)}

    trainer = _prepare(config, dataset, checkpoint)
    summary = train(trainer, output)
    if trainer.is_world_process_zero():
        model = trainer.model.merge_and_unload() if config.merge else trainer.model
        save_model(model, tokenizer, output, stored_dtype(model_config))
        finish_output(output, counts=dataset.counts, **summary)
        remove_checkpoints(output)
        _print_summary(config, summary)
    trainer.accelerator.wait_for_everyone()
    return {"output": str(output), **read_record(output)}


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
