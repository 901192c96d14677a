"""The models and responses that the step benchmarks train with: real ones, or random of a shape.

Shapes: K entries.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cache_factory import ResponsesInMemory

from storage_schema import Response, open_cache, response_from_rows

LORA = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 16, "lora_alpha": 32}
# Llama-3.2-1B's and Llama-3.1-8B's numbers; `tiny` is for trying the options out.
SHAPES = {
    "tiny": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, vocab_size=512, tie_word_embeddings=True),
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
               num_attention_heads=32, num_key_value_heads=8, vocab_size=128_256,
               tie_word_embeddings=True),
    "8b": dict(hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
               num_attention_heads=32, num_key_value_heads=8, vocab_size=128_256,
               tie_word_embeddings=False),
}  # fmt: skip
# Prompt and response tokens of random responses at most; the least are a quarter of them.
RANDOM_LENGTHS = {"prompt-heavy": (1792, 256), "response-heavy": (256, 1792)}
TINY_LENGTHS = {"prompt-heavy": (28, 6), "response-heavy": (6, 28)}
RANDOM_ENTRIES = 64


def read_responses(source: str, mix: str) -> Any:
    """Return a cache, or for `random:SHAPE` random responses with K = 64 entries a row."""
    if not source.startswith("random:"):
        return open_cache(source)
    shape = source.partition(":")[2]
    size = SHAPES[shape]["vocab_size"]
    lengths = (TINY_LENGTHS if shape == "tiny" else RANDOM_LENGTHS)[mix]
    rng = np.random.default_rng(0)
    responses = [_random_response(rng, *lengths, size) for _ in range(64)]
    return ResponsesInMemory(responses)


def _random_response(
    rng: np.random.Generator, most_prompt: int, most_rows: int, size: int
) -> Response:
    prompt, rows = (int(rng.integers(-(-most // 4), most + 1)) for most in (most_prompt, most_rows))
    # Distinct ids without a permutation of the vocabulary for every row.
    strides = rng.integers(1, size // RANDOM_ENTRIES, (rows, RANDOM_ENTRIES))
    tokens = np.cumsum(strides, axis=1) % size
    logprobs = -np.sort(rng.exponential(3, (rows, RANDOM_ENTRIES)), axis=1) - 3
    logprobs -= np.log(np.exp(logprobs).sum(1, keepdims=True) / 0.9)
    return response_from_rows(
        rng.integers(0, size, prompt + rows), prompt, tokens, logprobs, np.full(rows, -20.0),
        k=RANDOM_ENTRIES, min_prob=0.0, vocabulary_size=size,
    )  # fmt: skip


def batch_reader(responses: Any, batch_size: int, seed: int) -> Callable[[int], list[Response]]:
    """Return what gives the responses of step n, those the student's own loader has there.

    The rule is docs/training-order.md's; peers, which have no such loader, are fed by it.
    """
    steps_per_epoch = -(-len(responses) // batch_size)
    order = responses.order(seed)

    def read(number: int) -> list[Response]:
        epoch, step = divmod(number, steps_per_epoch)
        examples = list(order.indices(epoch))[step * batch_size : (step + 1) * batch_size]
        return [responses[int(index)] for index in examples]

    return read


def load_base(source: str, dtype: str, attention: str | None = None) -> Any:
    """Return the causal model of a checkpoint, or random weights for `random:SHAPE`."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from pipeline.models.checkpoint import find_checkpoint
    from pipeline.models.loading import load_model, pick_device

    if not source.startswith("random:"):
        return load_model(find_checkpoint(source), dtype=dtype, attn_implementation=attention)
    config = LlamaConfig(**SHAPES[source.partition(":")[2]], max_position_embeddings=4096)
    torch.manual_seed(0)
    dtype = "float32" if dtype == "auto" else dtype
    with torch.device(pick_device()):
        return AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attention
        )


def load_student(source: str, dtype: str, attention: str | None = None) -> Any:
    """Return the model with a fresh LoRA adapter on every linear layer but the head."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    model = load_base(source, dtype, attention)
    set_seed(0)
    return get_peft_model(model, LoraConfig(**LORA)).train()


def load_teacher(source: str, dtype: str) -> Any:
    """Return a frozen model of the student's own size, on the device."""
    from pipeline.models.loading import pick_device

    return load_base(source, dtype).eval().requires_grad_(False).to(pick_device())


def count_flops(model: Any, responses: Sequence[Response]) -> float:
    """Return the floating-point operations that a step over `responses` cannot do without.

    A frozen weight takes 2 a token forward and 2 for the gradient of its input, a trained one 2
    more. The head, if frozen, is counted at response tokens alone, causal attention at half its
    square, and padding and recomputation not at all: the same for every variant.
    """
    from torch import nn

    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight
    per_token = 0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and weight is not head:
            per_token += weight.numel() * (6 if weight.requires_grad else 4)
    tokens = sum(len(r.input_ids) for r in responses)
    rows = sum(len(r.input_ids) - r.response_start for r in responses)
    squares = sum(len(r.input_ids) ** 2 for r in responses)
    attention = 6 * config.num_hidden_layers * config.hidden_size * squares
    return float(per_token * tokens + 4 * head.numel() * rows + attention)
