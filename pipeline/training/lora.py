"""Load a model for training: all of its weights, or a fresh LoRA adapter on frozen ones; merge.

For QLoRA (arXiv 2305.14314) the frozen ones are loaded in 4 bits: NF4 with quantised constants.
"""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import set_seed

from pipeline.errors import ModelError
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import load_model
from pipeline.training.precision import Precision
from pipeline.training.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_trainable(checkpoint: Checkpoint) -> None:
    """Refuse to train on top of an adapter.

    Raises:
        ModelError: the checkpoint is itself an adapter.
    """
    if checkpoint.adapter_path is not None:
        raise ModelError(
            f"{checkpoint.name} is an adapter on {checkpoint.model_path}: training starts from a "
            "full model; merge the adapter first (finetune-teacher --merge writes one)"
        )


def load_trainable(
    checkpoint: Checkpoint,
    settings: TrainingSettings,
    precision: Precision,
    attn_implementation: str | None = None,
) -> "PreTrainedModel":
    """Return the model in training mode, wrapped with a LoRA adapter if asked for.

    It is on the CPU, but on this process's device when it is loaded in 4 bits.

    The adapter's first weights depend on settings.seed only. Its configuration names the base
    model by hub name or absolute path, so that peft and inference engines find it from
    anywhere.

    Raises:
        ModelError: the checkpoint is itself an adapter, or does not load.
    """
    check_trainable(checkpoint)
    model = load_model(
        checkpoint,
        dtype=precision.weights,
        trust_remote_code=settings.trust_remote_code,
        attn_implementation=attn_implementation,
        in_4_bits=settings.tuning == "qlora",
    )
    if settings.tuning == "full":
        return model.train()
    from peft import LoraConfig, get_peft_model

    set_seed(settings.seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
    )
    wrapped = get_peft_model(model, config)
    is_local = Path(checkpoint.name).expanduser().is_dir()
    config.base_model_name_or_path = str(checkpoint.model_path) if is_local else checkpoint.name
    config.revision = settings.revision
    # A set otherwise, saved in another order by each process: one adapter, many fingerprints.
    config.target_modules = sorted(config.target_modules)
    return wrapped.train()


def merge_adapter(
    model: Any,
    settings: TrainingSettings,
    checkpoint: Checkpoint,
    state_dict: dict[str, Any] | None = None,
) -> "PreTrainedModel":
    """Return a full model with the trained adapter's weights added to the checkpoint's.

    A base in 4 bits, or in parts on several processes (whose gathered `state_dict` is given), is
    loaded again in float32: adding to 4 bits would lose precision.
    """
    if settings.tuning != "qlora" and state_dict is None:
        merged: PreTrainedModel = model.merge_and_unload()
        return merged
    adapter = Path(tempfile.mkdtemp())
    try:
        model.save_pretrained(str(adapter), state_dict=state_dict)
        return load_model(
            Checkpoint(checkpoint.name, checkpoint.model_path, adapter),
            dtype="float32",
            trust_remote_code=settings.trust_remote_code,
            merge_adapter=True,
        )
    finally:
        shutil.rmtree(adapter, ignore_errors=True)
