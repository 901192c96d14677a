"""Load a model for training: all of its weights, or a fresh LoRA adapter on frozen ones."""

from pathlib import Path
from typing import TYPE_CHECKING

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
    checkpoint: Checkpoint, settings: TrainingSettings, precision: Precision
) -> "PreTrainedModel":
    """Return the model on the CPU in training mode, wrapped with a LoRA adapter if asked for.

    The adapter's first weights depend on settings.seed only. Its configuration names the base
    model by hub name or absolute path, so that peft and inference engines find it from
    anywhere.

    Raises:
        ModelError: the checkpoint is itself an adapter, or does not load.
    """
    check_trainable(checkpoint)
    model = load_model(
        checkpoint, dtype=precision.weights, trust_remote_code=settings.trust_remote_code
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
    return wrapped.train()
