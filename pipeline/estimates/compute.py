"""Floating-point operations of a stage, and how long a device would take: estimates.

A product of a token with a weight is 2 operations, and a backward pass costs as much again for
the gradient of the activations and as much for that of the weights (Kaplan et al., arXiv
2001.08361, section 2.1; attention as in PaLM, arXiv 2204.02311, appendix B).
"""

from dataclasses import dataclass

from pipeline.estimates.shapes import ModelShape


@dataclass(frozen=True, slots=True)
class Device:
    """What a device can do: peak of dense bfloat16 products, memory, its bandwidth."""

    name: str
    peak_flops: float
    memory_bytes: float
    bandwidth: float


# NVIDIA's data sheets: L4, A100 80 GB, H100 SXM, H200; without sparsity.
DEVICES = (
    Device("L4 24 GB", 121e12, 24e9, 0.3e12),
    Device("A100 80 GB", 312e12, 80e9, 2.0e12),
    Device("H100 80 GB", 989e12, 80e9, 3.35e12),
    Device("H200 141 GB", 989e12, 141e9, 4.8e12),
)
# What a run of the demo reached on two cores of a virtual machine (2026-11-22): 229 tokens/s of
# training and 1,854 of scoring, as operations by the functions here, and 0.1 s for a step of
# generation at batch size 8. The peak is set so that UTILISATION of it is that.
TWO_CORES_TRAINING = Device("2 CPU cores", 0.30e12, 0.0, 2.7e9)
TWO_CORES_SCORING = Device("2 CPU cores", 1.18e12, 0.0, 2.7e9)
# The least of a forward pass in transformers on a GPU, whose kernel launches take longer than a
# small model's arithmetic; an assumption, not measured here. A training step is three of them.
STEP_SECONDS = 0.02
# Share of the peak. Llama 3 reports 38 to 43 % in pre-training on H100s (arXiv 2407.21783, table
# 4); small models and short sequences reach much less.
UTILISATION = 0.35
# A device an allocator cannot fill.
USABLE_SHARE = 0.92


def forward_flops(
    shape: ModelShape, *, tokens: int, scored_tokens: int, mean_length: float
) -> dict[str, float]:
    """Return operations of a forward pass: layers, attention over mean_length, and head."""
    return {
        "layers": 2.0 * shape.layer_weights * tokens,
        "attention": 4.0 * shape.num_layers * shape.attention * mean_length * tokens / 2,
        "head": 2.0 * shape.head_weights * scored_tokens,
    }


def training_flops(
    shape: ModelShape,
    *,
    tokens: int,
    scored_tokens: int,
    mean_length: float,
    full: bool,
    gradient_checkpointing: bool,
) -> float:
    """Return operations of one pass over the data with its backward pass.

    Frozen weights have no gradient: 2 forward passes' worth instead of 3. Recomputing the
    layers costs one more.
    """
    forward = forward_flops(
        shape, tokens=tokens, scored_tokens=scored_tokens, mean_length=mean_length
    )
    passes = (3 if full else 2) + (1 if gradient_checkpointing else 0)
    # Attention has no weights: its backward pass is twice its forward one either way.
    attention_passes = 3 + (1 if gradient_checkpointing else 0)
    return (
        forward["layers"] * passes
        + forward["attention"] * attention_passes
        + forward["head"] * (3 if full else 2)
    )


def training_seconds(device: Device, flops: float, passes: int) -> float:
    """Return the time of a training run: its operations, but no less than its kernel launches.

    Args:
        device: where it runs.
        flops: of the whole run.
        passes: forward passes with their backward passes.
    """
    return max(flops / (device.peak_flops * UTILISATION), passes * 3 * STEP_SECONDS)


def generation_seconds(
    shape: ModelShape,
    device: Device,
    *,
    prompts: int,
    prompt_tokens: int,
    new_tokens: int,
    batch_size: int,
    weight_bytes: float,
) -> float:
    """Return the time of answering: every step of a batch reads all weights once.

    Args:
        shape: the model.
        device: where it runs.
        prompts: how many.
        prompt_tokens: of all prompts.
        new_tokens: the longest answer; shorter ones end sooner.
        batch_size: prompts answered together.
        weight_bytes: of the model as it is loaded.
    """
    prefill = forward_flops(shape, tokens=prompt_tokens, scored_tokens=prompts, mean_length=0)
    batches = -(-prompts // batch_size)
    a_step = max(STEP_SECONDS, weight_bytes / device.bandwidth)
    steps = batches * new_tokens * a_step
    return sum(prefill.values()) / (device.peak_flops * UTILISATION) + steps
