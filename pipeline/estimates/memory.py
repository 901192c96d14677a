"""Memory of a teacher pass and of a training step, in bytes: estimates from a model's shape.

Formulas and sources are in docs/recipes.md; tests/benchmarks/estimates.py compares them with
measured steps. What allocators, kernels and the runtime take comes on top (about 1 GB on a GPU).
"""

from dataclasses import dataclass

from pipeline.estimates.shapes import ModelShape

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# NF4 with quantised constants: 4 bits and 0.127 (QLoRA, arXiv 2305.14314, section 3).
NF4_BYTES = 4.127 / 8
# AdamW: two float32 moments of every trained weight.
MOMENT_BYTES = 8
# Fine-tuning the teacher makes the logits of response positions: float32 logits, their
# log-softmax and its gradient, and the bfloat16 ones where the head computes in that.
FLOAT32_LOGIT_BYTES, BFLOAT16_LOGIT_BYTES = 12, 14


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingChoices:
    """What of a training run's settings decides its memory.

    Attributes:
        tuning: lora, qlora or full.
        dtype: float32 or bfloat16, as training computes.
        lora_rank: of the adapter, where there is one.
        gradient_checkpointing: keep only each layer's input.
        processes: over which weights, gradients and moments are sharded; 1 for none.
    """

    tuning: str
    dtype: str
    lora_rank: int
    gradient_checkpointing: bool = False
    processes: int = 1


def weight_bytes(shape: ModelShape, dtype: str, *, in_4_bits: bool = False) -> float:
    """Return the bytes of a model's weights; in 4 bits the linear layers but the head are."""
    size = DTYPE_BYTES[dtype]
    if not in_4_bits:
        return shape.num_parameters * size
    rest = shape.num_parameters - shape.layer_weights
    return shape.layer_weights * NF4_BYTES + rest * size


def key_value_bytes(shape: ModelShape, dtype: str) -> int:
    """Return what one token takes in the attention cache of all layers."""
    return 2 * shape.num_layers * shape.key_value * DTYPE_BYTES[dtype]


def activation_bytes(shape: ModelShape, choices: TrainingChoices) -> float:
    """Return what the backward pass needs of one token, attention matrices excluded.

    Counted over the tensors that transformers' modules keep, with an attention kernel that keeps
    no [T, T] matrix (sdpa, FlashAttention); docs/recipes.md lists them.
    """
    one_layer = _layer_activation_bytes(shape, choices)
    if not choices.gradient_checkpointing:
        return shape.num_layers * one_layer
    return shape.num_layers * shape.hidden * DTYPE_BYTES[_compute_type(choices)] + one_layer


def _compute_type(choices: TrainingChoices) -> str:
    """The type of the residual stream: that of the loaded weights."""
    return "float32" if choices.tuning == "full" else choices.dtype


def _layer_activation_bytes(shape: ModelShape, choices: TrainingChoices) -> float:
    full = choices.tuning == "full"
    # Norms compute in float32: their input, and with trained weights what these multiply.
    norms = 2 * shape.hidden * 4 * (2 if full else 1)
    # Inputs of the linear layers, one for those that read the same; the attention's output is one.
    inputs = 2 * shape.hidden + shape.attention + shape.intermediate
    queries_keys_values = shape.attention + 2 * shape.key_value
    # Gate, its activation and the way up; without a gate the way up alone.
    inner = (3 if shape.gated else 1) * shape.intermediate
    adapter = 0 if full else len(shape.linears) * choices.lora_rank
    size = DTYPE_BYTES[choices.dtype]
    return norms + size * (inputs + queries_keys_values + inner) + 4 * adapter


def training_step_memory(
    shape: ModelShape,
    choices: TrainingChoices,
    *,
    tokens: int,
    response_tokens: int,
    loss_chunk_bytes: int | None,
) -> dict[str, float]:
    """Return the parts of a process's peak in a training step.

    Args:
        shape: the model trained.
        choices: tuning, type, rank, checkpointing, sharding.
        tokens: of one forward pass, padding counted.
        response_tokens: of them those that are scored.
        loss_chunk_bytes: logits the loss makes at a time; None where it makes all of them.

    Returns:
        weights, gradients, optimiser, activations, loss and their total.
    """
    full = choices.tuning == "full"
    base_type = "float32" if full else choices.dtype
    adapter = 0 if full else shape.num_lora_parameters(choices.lora_rank)
    trained = shape.num_parameters if full else adapter
    weights = weight_bytes(shape, base_type, in_4_bits=choices.tuning == "qlora") + 4 * adapter
    if full and choices.dtype == "bfloat16":  # autocast keeps a copy of what it casts
        weights += 2 * shape.layer_weights
    parts = {
        "weights": weights / choices.processes,
        "gradients": 4 * trained / choices.processes,
        "optimiser": MOMENT_BYTES * trained / choices.processes,
        "activations": tokens * activation_bytes(shape, choices),
        "loss": _loss_bytes(shape, choices, response_tokens, loss_chunk_bytes),
    }
    return {**parts, "total": sum(parts.values())}


def _loss_bytes(
    shape: ModelShape, choices: TrainingChoices, response_tokens: int, chunk: int | None
) -> float:
    if chunk is None:
        half = choices.dtype == "bfloat16"
        a_logit = BFLOAT16_LOGIT_BYTES if half else FLOAT32_LOGIT_BYTES
        return response_tokens * shape.vocabulary_rows * a_logit
    # A chunk of logits and one temporary of its size; hidden rows and their gradient.
    logits = min(chunk, response_tokens * shape.vocabulary_rows * 4)
    return 2 * logits + 2 * response_tokens * shape.hidden * 4


def teacher_pass_memory(
    shape: ModelShape, dtype: str, *, longest: int, tensor_parallel: int, scoring_bytes: int
) -> dict[str, float]:
    """Return the least a GPU of a teacher pass must hold.

    An engine takes more for attention if it may: more sequences are then in flight.

    Args:
        shape: the teacher.
        dtype: of its weights.
        longest: tokens of the longest sequence.
        tensor_parallel: GPUs the model is spread over.
        scoring_bytes: logits and what is made of them at a time, on one GPU.

    Returns:
        weights, attention_cache of one longest sequence, scoring and their total.
    """
    parts = {
        "weights": weight_bytes(shape, dtype) / tensor_parallel,
        "attention_cache": longest * key_value_bytes(shape, dtype) / tensor_parallel,
        "scoring": float(scoring_bytes),
    }
    return {**parts, "total": sum(parts.values())}
