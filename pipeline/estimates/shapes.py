"""The shape of a model, from its config.json, and how many parameters that makes: exactly.

Linear layers are listed one by one, because everything else is counted over them: LoRA matrices,
weights in 4 bits, floating-point operations. Standard library only; no weights are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ModelError


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix of [outputs, inputs] weights, and a bias or none."""

    inputs: int
    outputs: int
    bias: bool = False

    @property
    def num_weights(self) -> int:
        """The matrix alone."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder of equal layers, an embedding and an output head.

    Attributes:
        family: model_type of config.json.
        hidden, num_layers: width and depth.
        attention: width of the queries of a layer, heads x head dimension.
        key_value: width of its keys, and of its values.
        intermediate: width of the feed-forward part.
        gated: whether that part has a gate beside the way up.
        vocabulary_rows: rows of the embedding, padding rows included.
        tied: whether the head is the embedding.
        linears: the linear layers of one layer.
        norm_weights: all parameters of one layer's norms.
        last_norm_weights: those of the norm before the head.
        dtype: number type of the stored weights.
    """

    family: str
    hidden: int
    num_layers: int
    attention: int
    key_value: int
    intermediate: int
    gated: bool
    vocabulary_rows: int
    tied: bool
    linears: tuple[Linear, ...]
    norm_weights: int
    last_norm_weights: int
    dtype: str

    @property
    def layer_weights(self) -> int:
        """Weights of the linear layers of all layers, without biases."""
        return self.num_layers * sum(linear.num_weights for linear in self.linears)

    @property
    def head_weights(self) -> int:
        """Weights of the output head, or of the embedding it is tied to."""
        return self.vocabulary_rows * self.hidden

    @property
    def num_parameters(self) -> int:
        """All parameters; tied ones once."""
        biases = sum(linear.outputs for linear in self.linears if linear.bias)
        layers = self.layer_weights + self.num_layers * (biases + self.norm_weights)
        return layers + self.last_norm_weights + self.head_weights * (1 if self.tied else 2)

    def num_lora_parameters(self, rank: int) -> int:
        """Parameters of adapters of a rank on every linear layer but the head."""
        return self.num_layers * sum(rank * (one.inputs + one.outputs) for one in self.linears)


def read_shape(config: dict[str, Any]) -> ModelShape:
    """Return the shape that a config.json describes.

    Raises:
        ModelError: a family whose layers are not known here, or a value is missing.
    """
    family = config.get("model_type")
    reader = READERS.get(str(family))
    if reader is None:
        raise ModelError(
            f"no estimate for model_type {family!r}: the layers of {', '.join(READERS)} are known"
        )
    try:
        return reader(config)
    except KeyError as error:
        raise ModelError(f"config.json of a {family} model names no {error}") from error


def _read_llama(config: dict[str, Any]) -> ModelShape:
    """Llama and what has its layers: gated feed-forward, grouped queries, RMS norms."""
    family, hidden = config["model_type"], config["hidden_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    attention, key_value = heads * head, (config.get("num_key_value_heads") or heads) * head
    # Qwen2 always has biases on queries, keys and values and none on the output.
    bias = family == "qwen2" or bool(config.get("attention_bias"))
    mlp_bias = bool(config.get("mlp_bias"))
    inner = config["intermediate_size"]
    linears = (
        Linear(hidden, attention, bias),
        Linear(hidden, key_value, bias),
        Linear(hidden, key_value, bias),
        Linear(attention, hidden, bias and family != "qwen2"),
        Linear(hidden, inner, mlp_bias),
        Linear(hidden, inner, mlp_bias),
        Linear(inner, hidden, mlp_bias),
    )
    return ModelShape(
        family=family,
        hidden=hidden,
        num_layers=config["num_hidden_layers"],
        attention=attention,
        key_value=key_value,
        intermediate=inner,
        gated=True,
        vocabulary_rows=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        linears=linears,
        norm_weights=2 * hidden + (2 * head if family == "qwen3" else 0),
        last_norm_weights=hidden,
        dtype=_dtype(config),
    )


def _read_gpt_neox(config: dict[str, Any]) -> ModelShape:
    """Pythia: one matrix for queries, keys and values, no gate, biases, layer norms."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    linears = (
        Linear(hidden, 3 * hidden, True),
        Linear(hidden, hidden, True),
        Linear(hidden, inner, True),
        Linear(inner, hidden, True),
    )
    return ModelShape(
        family=config["model_type"],
        hidden=hidden,
        num_layers=config["num_hidden_layers"],
        attention=hidden,
        key_value=hidden,
        intermediate=inner,
        gated=False,
        vocabulary_rows=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        linears=linears,
        norm_weights=4 * hidden,
        last_norm_weights=2 * hidden,
        dtype=_dtype(config),
    )


def _dtype(config: dict[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


READERS: dict[str, Callable[[dict[str, Any]], ModelShape]] = {
    "llama": _read_llama,
    "mistral": _read_llama,
    "qwen2": _read_llama,
    "qwen3": _read_llama,
    "gpt_neox": _read_gpt_neox,
}
