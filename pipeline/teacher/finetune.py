"""finetune-teacher: supervised fine-tuning on a dataset, before the teacher scores it.

The loss is the model's own cross-entropy on response tokens. Resumable, recorded in run.json.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.data.tokenization import tokenize_dataset
from pipeline.models.checkpoint import find_checkpoint, fingerprint_checkpoint
from pipeline.models.loading import load_tokenizer
from pipeline.run_record import find_finished, is_first_process, read_record, require_weights
from pipeline.teacher.dry_run import dry_run_finetuning
from pipeline.teacher.finetune_config import FinetuneTeacherConfig
from pipeline.training.settings import UNCOMPARED


def run(config: FinetuneTeacherConfig) -> dict[str, Any]:
    """Fine-tune the model and return its run record; a finished output is returned at once.

    Raises:
        DataError: the dataset cannot be read, or nothing of it is left.
        ModelError: the model is missing or too short for the data, or the run diverged.
        OutputExistsError: the output holds another run, or a finished one without its weights.
    """
    if config.dry_run:
        return dry_run_finetuning(config)
    output = Path(config.output)
    checkpoint = find_checkpoint(config.model, config.revision)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
    dataset = tokenize_dataset(config, tokenizer)
    if is_first_process():
        print(dataset.describe())
    # Inputs are compared by content: data that was moved is the same data.
    inputs = {"model": config.model, "data": config.data}
    identity = {k: v for k, v in asdict(config).items() if k not in (*UNCOMPARED, *inputs)}
    identity["dataset_fingerprint"] = dataset.fingerprint
    identity["model_fingerprint"] = fingerprint_checkpoint(checkpoint)
    identity["responses_per_step"] = config.responses_per_step
    if find_finished(output, "finetune-teacher", identity):
        require_weights(output)
        print(f"{output} is finished already: nothing to do")
    else:
        from pipeline.teacher.finetune_model import finetune_model

        finetune_model(config, dataset, tokenizer, checkpoint, identity, inputs)
    return {"output": str(output), **read_record(output)}
