"""Read a checkpoint's configuration without its weights, and what training must know from it."""

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from pipeline.errors import ModelError
from pipeline.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def load_model_config(
    checkpoint: Checkpoint, *, trust_remote_code: bool = False
) -> "PreTrainedConfig":
    """Return the model's configuration.

    Raises:
        ModelError: config.json is no configuration of a model that transformers knows.
    """
    try:
        return AutoConfig.from_pretrained(
            str(checkpoint.model_path), trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"no model configuration could be read from {checkpoint.model_path}: {error}"
        ) from error


def max_positions(model_config: Any) -> int | None:
    """Return the longest sequence in tokens the model can read, or None when it sets no limit."""
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def stored_dtype(model_config: Any) -> str:
    """Return the name of the type the checkpoint's weights are stored in."""
    dtype = getattr(model_config, "dtype", None)
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def check_length(model_config: Any, longest_sequence: int) -> None:
    """Check that the model can read the longest sequence, counted in tokens.

    Raises:
        ModelError: it cannot.
    """
    limit = max_positions(model_config)
    if limit is not None and longest_sequence > limit:
        raise ModelError(
            f"the longest example has {longest_sequence} tokens, the model reads at most {limit}; "
            f"use --max-sequence-tokens {limit} and fewer --max-prompt-tokens"
        )
