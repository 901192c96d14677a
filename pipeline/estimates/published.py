"""The published shapes of the recipes' models, for estimates where no hub is at hand.

Each entry is what the config.json of that hub repository says; a test compares the parameters
they make with the number the repository or paper publishes. A model on disk is never looked up.
"""

from typing import Any

from pipeline.errors import ModelError
from pipeline.estimates.shapes import ModelShape, read_shape


def _llama(
    hidden: int, layers: int, heads: int, kv_heads: int, inner: int, rows: int, **other: Any
) -> dict[str, Any]:
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": rows,
        "dtype": "bfloat16",
    }
    return config | other


def _pythia(hidden: int, layers: int, heads: int, inner: int, rows: int) -> dict[str, Any]:
    return _llama(hidden, layers, heads, heads, inner, rows, model_type="gpt_neox", dtype="float16")


# Hub repository -> the fields of its config.json that count.
PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": _llama(4096, 32, 32, 32, 11008, 32000, dtype="float16"),
    "meta-llama/Llama-2-13b-hf": _llama(5120, 40, 40, 40, 13824, 32000, dtype="float16"),
    "meta-llama/Llama-3.1-8B-Instruct": _llama(4096, 32, 32, 8, 14336, 128256),
    "meta-llama/Llama-3.1-70B-Instruct": _llama(8192, 80, 64, 8, 28672, 128256),
    "Qwen/Qwen2.5-7B-Instruct": _llama(3584, 28, 28, 4, 18944, 152064, model_type="qwen2"),
    "Qwen/Qwen2.5-32B-Instruct": _llama(5120, 64, 40, 8, 27648, 152064, model_type="qwen2"),
    "HuggingFaceTB/SmolLM2-135M": _llama(576, 30, 9, 3, 1536, 49152, tie_word_embeddings=True),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _llama(
        576, 30, 9, 3, 1536, 49152, tie_word_embeddings=True
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _llama(
        2048, 24, 32, 32, 8192, 49152, tie_word_embeddings=True
    ),
    "EleutherAI/pythia-1b-deduped": _pythia(2048, 16, 8, 8192, 50304),
    "EleutherAI/pythia-6.9b-deduped": _pythia(4096, 32, 32, 16384, 50432),
}


def published_shape(name: str) -> ModelShape:
    """Return the published shape of a hub model.

    Raises:
        ModelError: it is not in the table.
    """
    config = PUBLISHED.get(name)
    if config is None:
        raise ModelError(
            f"{name} is neither on this disk nor among the models whose shape is known: "
            f"{', '.join(PUBLISHED)}"
        )
    return read_shape(config)
