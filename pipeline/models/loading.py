"""Load a tokenizer, or a causal language model with its adapter, from a checkpoint."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pipeline.errors import ModelError
from pipeline.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What the loaders raise for damaged, foreign or mismatched files.
_UNLOADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_tokenizer(
    checkpoint: Checkpoint, *, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """Return the checkpoint's tokenizer: the adapter's own if saved beside it, else the model's.

    Raises:
        ModelError: no tokenizer can be loaded from the directory.
    """
    from transformers import AutoTokenizer

    path = checkpoint.model_path
    if checkpoint.adapter_path and (checkpoint.adapter_path / "tokenizer_config.json").exists():
        path = checkpoint.adapter_path
    try:
        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"no tokenizer could be loaded from {path}: {error}") from error


def pick_device() -> str:
    """Return "cuda" if a GPU is usable here, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    merge_adapter: bool = False,
    attn_implementation: str | None = None,
    in_4_bits: bool = False,
) -> "PreTrainedModel":
    """Return the causal model in evaluation mode on the CPU; the caller moves it.

    Args:
        checkpoint: where it lies.
        dtype: one of DTYPES; "auto" takes the type the weights are stored in.
        trust_remote_code: run model code shipped with the checkpoint.
        merge_adapter: add an adapter's weights into the model's, instead of keeping it apart.
        attn_implementation: passed to transformers; None takes its default.
        in_4_bits: store the linear layers in NF4 by bitsandbytes and compute in `dtype`; the
            model is then on this process's device already.

    Raises:
        ModelError: the weights are not safetensors, do not load, or some are missing.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the stages show their own
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if in_4_bits:
        options |= _quantization(dtype)
    path = checkpoint.model_path
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(path), use_safetensors=True, output_loading_info=True, **options
        )
        _check_complete(found["missing_keys"], path)
        if checkpoint.adapter_path is not None:
            path = checkpoint.adapter_path
            model = _put_on(model, path)
    except _UNLOADABLE as error:
        base = "" if path == checkpoint.model_path else f", an adapter, on {checkpoint.model_path}"
        raise ModelError(f"no model could be loaded from {path}{base}: {error}") from error
    if in_4_bits:
        _keep_packing(model)
    if checkpoint.adapter_path is not None and merge_adapter:
        model = model.merge_and_unload()
    return model.eval()


def _check_complete(missing: Iterable[str], path: Path) -> None:
    """Refuse a model of which transformers would make up some weights at random.

    Raises:
        ModelError: weights are missing.
    """
    names = sorted(missing)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelError(
            f"no model could be loaded from {path}: its files lack {', '.join(names[:3])}{more}; "
            "a part of the checkpoint is gone, or transformers does not know how it is quantised"
        )


def _put_on(model: "PreTrainedModel", adapter_path: Path) -> Any:
    """Return the model with the adapter on it.

    Raises:
        ModelError: the adapter's file lacks weights; peft would leave them as they start.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, str(adapter_path))
        except UserWarning as warning:
            raise ModelError(
                f"no model could be loaded from {adapter_path}: {str(warning)[:400]}"
            ) from warning


def _keep_packing(model: "PreTrainedModel") -> None:
    """Keep bitsandbytes from packing weights anew, for good, in a CPU's first evaluation.

    Widths below 64 cannot be packed so, and no gradient passes through what was.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _quantization(dtype: str) -> dict[str, Any]:
    """Return the options that load linear layers as NF4 with quantised constants."""
    import torch
    from transformers import BitsAndBytesConfig

    device = pick_device()
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    place = torch.cuda.current_device() if device == "cuda" else device
    return {"quantization_config": config, "device_map": {"": place}}
