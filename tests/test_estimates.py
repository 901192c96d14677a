"""Estimates against what they estimate: parameters exactly, the rest within a stated share."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.config import DataSettings
from pipeline.errors import ConfigError, ModelError
from pipeline.estimates import stages
from pipeline.estimates.compute import DEVICES, forward_flops, training_flops
from pipeline.estimates.disk import (
    cache_bytes,
    entries_per_row,
    entries_per_sampled_row,
    student_bytes,
)
from pipeline.estimates.memory import (
    TrainingChoices,
    activation_bytes,
    key_value_bytes,
    teacher_pass_memory,
    training_step_memory,
    weight_bytes,
)
from pipeline.estimates.published import PUBLISHED, published_shape
from pipeline.estimates.shapes import read_shape
from pipeline.estimates.sizes import DataSize, expect_tokens
from pipeline.estimates.text import describe
from pipeline.training.settings import TrainingSettings

ROOT = Path(__file__).parent.parent
# Totals that the hub's safetensors headers give; Pythia's are in the table of its paper's README.
PARAMETERS = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "EleutherAI/pythia-1b-deduped": 1_011_781_632,
    "EleutherAI/pythia-6.9b-deduped": 6_857_302_016,
}
SMALL = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "vocab_size": 101}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def test_published_shapes_make_the_published_number_of_parameters() -> None:
    assert {name: published_shape(name).num_parameters for name in PUBLISHED} == PARAMETERS
    with pytest.raises(ModelError, match=r"org/unknown is neither on this disk nor among"):
        published_shape("org/unknown")


@pytest.mark.parametrize(
    ("family", "other"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
        ("mistral", {"head_dim": None}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("qwen3", {"head_dim": 16}),
        ("gpt_neox", {"tie_word_embeddings": False}),
    ],
)
def test_parameters_are_those_of_the_model_that_transformers_makes(
    family: str, other: dict[str, Any]
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **SMALL, **other)
    shape = read_shape(json.loads(config.to_json_string(use_diff=False)))
    model = AutoModelForCausalLM.from_config(config)
    assert shape.num_parameters == sum(p.numel() for p in model.parameters())
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=8)
    trained = sum(p.numel() for p in get_peft_model(model, lora).parameters() if p.requires_grad)
    assert shape.num_lora_parameters(8) == trained


def test_unknown_families_and_missing_values_are_named() -> None:
    with pytest.raises(ModelError, match="no estimate for model_type 'mamba': the layers of llama"):
        read_shape({"model_type": "mamba"})
    with pytest.raises(ModelError, match="config.json of a llama model names no 'num_attention_he"):
        read_shape({"model_type": "llama", "hidden_size": 8})


def test_weights_by_hand() -> None:
    shape = read_shape({"model_type": "llama", **SMALL, "dtype": "bfloat16"})
    # 3 layers of q 32x32, k and v 32x16, o 32x32, three of 32x80; norms; embedding and head.
    layers = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 80)
    rest = 3 * 2 * 32 + 32 + 2 * 101 * 32
    assert shape.num_parameters == layers + rest
    assert weight_bytes(shape, "bfloat16") == 2 * (layers + rest)
    four = weight_bytes(shape, "bfloat16", in_4_bits=True)
    assert four == pytest.approx(layers * 4.127 / 8 + 2 * rest)
    assert key_value_bytes(shape, "float16") == 2 * 3 * 16 * 2
    memory = teacher_pass_memory(
        shape, "bfloat16", longest=10, tensor_parallel=2, scoring_bytes=1000
    )
    assert memory["total"] == (layers + rest) + 10 * 2 * 3 * 16 + 1000


@pytest.mark.parametrize(("tuning", "lowest"), [("lora", 0.95), ("full", 0.85)])
def test_activations_are_what_a_forward_pass_keeps(tuning: str, lowest: float) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = SMALL | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6}
    config = AutoConfig.for_model("llama", **fields)
    model = AutoModelForCausalLM.from_config(config)
    if tuning == "lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=8)
        model = get_peft_model(model, lora)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(
            input_ids=torch.zeros(2, 128, dtype=torch.long), logits_to_keep=1, use_cache=False
        )
        measured = sum(kept.values())
    del outputs
    choices = TrainingChoices(tuning=tuning, dtype="float32", lora_rank=8)
    shape = read_shape(json.loads(config.to_json_string(use_diff=False)))
    assert lowest < 2 * 128 * activation_bytes(shape, choices) / measured < 1.1


def test_a_training_step_adds_up() -> None:
    shape = published_shape("HuggingFaceTB/SmolLM2-135M-Instruct")
    lora = TrainingChoices(tuning="lora", dtype="bfloat16", lora_rank=16)
    memory = training_step_memory(
        shape, lora, tokens=1000, response_tokens=100, loss_chunk_bytes=None
    )
    assert memory["weights"] == 2 * 134_515_008 + 4 * 4_884_480
    assert memory["optimiser"] == 2 * memory["gradients"] == 8 * 4_884_480
    assert memory["loss"] == 100 * 49152 * 14
    assert memory["total"] == sum(v for k, v in memory.items() if k != "total")
    bounded = training_step_memory(
        shape, lora, tokens=1000, response_tokens=100, loss_chunk_bytes=2**20
    )
    assert bounded["loss"] == 2 * 2**20 + 2 * 100 * 576 * 4
    full = dataclasses.replace(lora, tuning="full", processes=4)
    sharded = training_step_memory(
        shape, full, tokens=1000, response_tokens=100, loss_chunk_bytes=None
    )
    assert sharded["optimiser"] == 8 * 134_515_008 / 4
    kept = dataclasses.replace(lora, gradient_checkpointing=True)
    # Every layer's input, and one layer that is made again.
    assert activation_bytes(shape, kept) == 30 * 576 * 2 + activation_bytes(shape, lora) / 30


def codec_table() -> list[tuple[str, str, float, int, float, float, float]]:
    """Every row of our own format in docs/results/cache-codec.md."""
    text = (ROOT / "docs/results/cache-codec.md").read_text()
    rows = []
    for block in re.findall(
        r"(\S+): [^\n]*vocabulary (\d+), k (\d+)\n.*?\n(.*?)(?=\n\n|```)", text, re.S
    ):
        name, vocabulary, k, lines = block
        for line in lines.splitlines():
            found = re.match(r"(ours(?:, bfloat16-logits)?) +([\d.]+) +([\d.]+) +([\d.]+)", line)
            if found:
                form, cut, entries, size = found.groups()
                rows.append(
                    (name, form, float(cut), int(k), float(entries), float(size), int(vocabulary))
                )
    return rows


@pytest.mark.parametrize("row", codec_table(), ids=lambda row: "-".join(map(str, row[:4])))
def test_cache_bytes_fit_the_measured_ones(row: Any) -> None:
    name, form, _, _, entries, measured, vocabulary = row
    # Prompt tokens a response token: from the data sets' own counts.
    prompts = {"dolly": 0.75, "demo:docstrings": 6.9, "synthetic-128k": 0.3}[name]
    predicted = cache_bytes(
        response_tokens=1000,
        tokens=round(1000 * (1 + prompts)),
        entries=entries,
        vocabulary_rows=vocabulary,
        codec="bfloat16-logits" if form.endswith("logits") else "float16-rounded",
    )
    assert predicted / 1000 == pytest.approx(measured, rel=0.21)


def test_the_codec_table_was_found() -> None:
    assert len(codec_table()) == 24


def test_entries_of_a_row() -> None:
    assert entries_per_row(64, 0.0) == 64
    assert entries_per_row(128, 1e-3) == 38.3
    assert entries_per_row(96, 1e-3) == pytest.approx((32.6 + 38.3) / 2)
    assert entries_per_row(4, 1e-2) == 4
    assert entries_per_row(100_000, 1e-6) == 1981.6
    assert entries_per_row(128, 2e-3) == entries_per_row(128, 1e-3)  # the nearest measured
    assert entries_per_sampled_row(50) == 13.2
    assert entries_per_sampled_row(2) == 2


def test_flops_by_hand() -> None:
    shape = read_shape({"model_type": "llama", **SMALL})
    layers = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 80)
    flops = forward_flops(shape, tokens=10, scored_tokens=4, mean_length=6)
    assert flops == {
        "layers": 2 * layers * 10,
        "attention": 4 * 3 * 32 * 6 * 10 / 2,
        "head": 2 * 101 * 32 * 4,
    }

    def cost(full: bool, again: bool) -> float:
        return training_flops(
            shape,
            tokens=10,
            scored_tokens=4,
            mean_length=6,
            full=full,
            gradient_checkpointing=again,
        )

    assert cost(True, False) == 3 * sum(flops.values())
    assert cost(True, True) - cost(True, False) == flops["layers"] + flops["attention"]
    assert cost(True, False) - cost(False, False) == flops["layers"] + flops["head"]


def size(rows: int = 100) -> DataSize:
    return DataSize(
        rows=rows,
        tokens=rows * 30,
        response_tokens=rows * 10,
        longest=60,
        longest_response=20,
        source="counted",
    )


def test_steps_are_those_of_the_trainer() -> None:
    shape = published_shape("HuggingFaceTB/SmolLM2-135M-Instruct")
    settings = TrainingSettings(batch_size=8, gradient_accumulation_steps=2, epochs=2.5)
    found = stages.training(shape, size(), settings, loss_chunk_bytes=2**20)
    assert found["steps"] == math.ceil(2.5 * math.ceil(100 / 16))
    assert found["responses_per_step"] == 16
    found = stages.training(shape, size(), settings, processes=4)
    assert found["responses_per_step"] == 64
    found = stages.training(shape, size(), dataclasses.replace(settings, max_steps=3))
    assert found["steps"] == 3
    found = stages.training(shape, size(), dataclasses.replace(settings, save_every_steps=None))
    assert list(found["disk_bytes"]) == ["output"]
    assert student_bytes(shape, "lora", 16, merge=False)["output"] == 4 * 4_884_480
    assert student_bytes(shape, "lora", 16, merge=True)["output"] == 2 * 134_515_008


def test_a_sweep_is_the_sum_of_its_cells() -> None:
    shape = published_shape("HuggingFaceTB/SmolLM2-135M-Instruct")
    cell = stages.training(shape, size(), TrainingSettings())
    evaluation = stages.generation(shape, size(), dtype="auto", max_new_tokens=8, batch_size=4)
    whole = stages.sweep([cell, cell], [evaluation], [evaluation], num_baselines=1)
    for name, hours in whole["gpu_hours"].items():
        expected = 2 * cell["gpu_hours"][name] + 3 * evaluation["gpu_hours"][name]
        assert hours == pytest.approx(expected)
    assert whole["disk_bytes"]["students"] == 2 * cell["disk_bytes"]["output"]
    assert "2 students trained and evaluated, 1 more models evaluated" in describe("x", whole)


def test_what_fits_where() -> None:
    large = published_shape("meta-llama/Llama-3.1-70B-Instruct")
    settings = {"dtype": "auto", "support": {"kind": "top_k", "k": 128, "min_prob": 1e-3}}
    settings |= {"codec": "float16-rounded", "examples_per_shard": 40, "num_partitions": 1}
    settings |= {"scoring_bytes": 2**28}
    found = stages.teacher_pass(large, size(), tensor_parallel=1, **settings)
    assert found["fits"] == []
    assert "fits none of the devices" in describe("x", found)
    assert found["shards"] == 3
    assert "2 CPU cores" not in found["gpu_hours"]
    found = stages.teacher_pass(large, size(), tensor_parallel=4, **settings)
    assert found["fits"] == [device.name for device in DEVICES if device.memory_bytes > 70e9]


@pytest.mark.parametrize("stated", [[1, 2], [100, 0, 3], [100, "a", 3]])
def test_wrong_expectations_are_named(stated: list[Any]) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"run.expected of x.jsonl is {stated!r}, exp")):
        expect_tokens(stated, DataSettings(data="x.jsonl"))


def test_expected_tokens_stay_within_the_limits() -> None:
    settings = DataSettings(
        data="x.jsonl", max_examples=10, max_prompt_tokens=50, max_sequence_tokens=80
    )
    found = expect_tokens([100, 60, 40], settings)
    assert (found.rows, found.tokens, found.response_tokens) == (10, 800, 300)
    assert (found.longest, found.source) == (80, "expected")
