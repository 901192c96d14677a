"""A quantised teacher through vLLM: the cache holds the rows of its dequantised weights."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_vllm import score, worst_difference

from pipeline.errors import EngineError, ModelError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

ROWS = [
    ("Return the sum of the two numbers.", "It is raining, and the quick brown fox is missing."),
    ("Summarize the text.", "A teacher shows a student what it is unsure of."),
    ("Article", "the lazy dog jumps over two numbers given, or raises an error"),
]
SETTINGS = {"k": 16, "min_prob": 0.0, "dtype": "bfloat16"}
GROUP = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [json.dumps({"prompt": prompt, "completion": text}) for prompt, text in ROWS]
    path.write_text("\n".join(rows) + "\n")
    return path


def quantize_int4(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return compressed-tensors' packed form, symmetric in groups of columns, and its values."""
    out, columns = weight.shape
    grouped = weight.float().view(out, -1, GROUP)
    scale = (grouped.abs().amax(2, keepdim=True) / 7).bfloat16().float()
    whole = (grouped / scale).round().clamp(-8, 7)
    nibbles = (whole.view(out, columns // 8, 8) + 8).to(torch.int64)
    packed = (nibbles << (4 * torch.arange(8))).sum(2)
    tensors = {
        "weight_packed": (packed - (packed >= 2**31) * 2**32).to(torch.int32),
        "weight_scale": scale[..., 0].bfloat16(),
        "weight_shape": torch.tensor([out, columns]),
    }
    return tensors, (whole * scale).view(out, columns)


def quantize_int8(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return int8 weights with a scale for each output channel, and their values."""
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    whole = (weight.float() / scale).round()
    return {"weight": whole.to(torch.int8), "weight_scale": scale}, whole * scale


SCHEMES: dict[str, Any] = {
    "int4": (
        quantize_int4,
        {
            "format": "pack-quantized",
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": GROUP,
            },
            "input_activations": None,
        },
    ),
    "int8": (
        quantize_int8,
        {
            "format": "int-quantized",
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        },
    ),
}


def write_quantized(full: Path, output: Path, scheme: str) -> tuple[Path, Path, dict[str, Any]]:
    """Write the quantised checkpoint and one of its values; return both and the configuration."""
    quantize, group = SCHEMES[scheme]
    packed, plain = {}, {}
    for name, tensor in load_file(full / "model.safetensors").items():
        if "_proj." not in name:  # linear layers; embeddings, norms and head stay
            packed[name] = plain[name] = tensor
            continue
        tensors, values = quantize(tensor)
        packed |= {name.replace("weight", key): part for key, part in tensors.items()}
        plain[name] = values
    config = json.loads((full / "config.json").read_text())
    quantization = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": group["format"],
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], **group}},
    }
    for name, weights, extra in (
        ("quantized", packed, {"quantization_config": quantization}),
        ("plain", plain, {}),
    ):
        (output / name).mkdir(parents=True)
        weights = {key: part.clone().contiguous() for key, part in weights.items()}
        save_file(weights, output / name / "model.safetensors", metadata={"format": "pt"})
        (output / name / "config.json").write_text(json.dumps(config | extra))
        for file in full.glob("*token*"):
            (output / name / file.name).write_bytes(file.read_bytes())
        for file in full.glob("chat_template*"):
            (output / name / file.name).write_bytes(file.read_bytes())
    return output / "quantized", output / "plain", quantization


def round_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round the inputs of quantised linear layers as W8A8 does: int8, a scale for each token."""
    linear = torch.nn.Linear.forward

    def forward(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if self.out_features in (128, 256):  # not the head
            scale = x.float().abs().amax(-1, keepdim=True) / 127
            x = ((x.float() / scale).round() * scale).to(x.dtype)
        return linear(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)


# The worst measured were 0.06 (int4) and 0.17 (int8, whose rounding steps at another place for
# every last bit of an activation); to the unquantised model 1.4 and 0.19, a row off 4.5.
@pytest.mark.parametrize(("scheme", "tolerance"), [("int4", 0.15), ("int8", 0.3)])
def test_rows_are_those_of_the_dequantised_weights(
    small_model: Path,
    data: Path,
    tmp_path: Path,
    scheme: str,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quantized, plain, quantization = write_quantized(small_model, tmp_path, scheme)
    ours = score(quantized, data, tmp_path / "ours", engine="vllm", **SETTINGS)
    assert ours.plan.engine["route"] == "worker_hook"
    assert ours.plan.teacher["quantization"] == quantization
    theirs = score(quantized, data, tmp_path / "theirs", engine="transformers", **SETTINGS)
    if scheme == "int8":
        round_activations(monkeypatch)
    truth = score(plain, data, tmp_path / "truth", engine="transformers", **SETTINGS)
    assert truth.plan.teacher["quantization"] is None
    for other in (theirs, truth):
        assert max(worst_difference(ours, other)) < tolerance
    assert min(worst_difference(ours, truth, shift=1)) > 1.0
    if scheme == "int4":  # else a checkpoint that was not quantised at all would pass
        unquantized = score(small_model, data, tmp_path / "full", engine="transformers", **SETTINGS)
        assert max(worst_difference(ours, unquantized)) > 1.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_bits": 3}, r"Quant type \(uint3b4\) not supported by CPUWNA16"),
        ({"num_bits": 8}, r"Quant type \(uint8b128\) not supported by CPUWNA16"),
        ({"strategy": "tensor_group"}, "No compressed-tensors compatible scheme was found"),
    ],
)
def test_a_scheme_without_a_kernel_is_refused_in_vllms_words(
    small_model: Path, data: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    quantized, _, _ = write_quantized(small_model, tmp_path, "int4")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"] |= change
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match=rf"(?s)vLLM could not start with .*{reason}"):
        score(quantized, data, tmp_path / "ours", engine="vllm", **SETTINGS)


def test_a_checkpoint_that_transformers_cannot_read_is_refused(
    small_model: Path, data: Path, tmp_path: Path
) -> None:
    quantized, _, _ = write_quantized(small_model, tmp_path, "int4")
    config = json.loads((quantized / "config.json").read_text())
    del config["quantization_config"]["quantization_status"]
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lack model.layers.0.mlp.down_proj.*, .* and 25 more"):
        score(quantized, data, tmp_path / "ours", engine="transformers", **SETTINGS)
