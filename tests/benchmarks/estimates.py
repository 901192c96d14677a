"""The estimates of --dry-run beside what a real model takes: parameters, a step's memory, a cache.

    OMP_NUM_THREADS=1 python tests/benchmarks/estimates.py --model SmolLM2-135M-Instruct \
        --cache runs/demo/cache --data dolly.jsonl=40

With --data also how many entries of a row, and how much of its mass, are stored under each k and
least probability: the constants of pipeline/estimates/disk.py. Each step runs in a process of its
own, so that its peak of resident memory is its own. glibc is told to give freed tensors back at
once; otherwise it keeps gigabytes that no tensor uses.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.estimates.disk import ENTRIES_BY_MIN_PROB, ENTRY_KS, cache_bytes
from pipeline.estimates.memory import TrainingChoices, activation_bytes, training_step_memory
from pipeline.estimates.shapes import read_shape

# Responses of a batch, tokens of each, response tokens of each.
BATCH, LENGTH, RESPONSE = 8, 224, 64
STEPS = (("lora", False), ("lora", True), ("full", False), ("full", True))


def measure_step(path: str, tuning: str, checkpointing: bool) -> dict[str, float]:
    """Return bytes a training step keeps for backward, and how much the process grew by it."""
    import numpy as np
    import peft  # noqa: F401, or its import would count
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401

    from pipeline.models.checkpoint import find_checkpoint
    from pipeline.student.fused_loss import LossInputs
    from pipeline.student.head import ResponseHead
    from pipeline.training.lora import load_trainable
    from pipeline.training.precision import Precision
    from pipeline.training.settings import TrainingSettings

    before = _peak_bytes()
    settings = TrainingSettings(tuning=tuning, gradient_checkpointing=checkpointing)
    model = load_trainable(find_checkpoint(path), settings, Precision("float32", False))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if tuning == "lora":
            model.enable_input_require_grads()
    head = ResponseHead(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    rng = np.random.default_rng(0)
    ids_BT = torch.from_numpy(rng.integers(0, model.config.vocab_size, (BATCH, LENGTH)))
    inside_T = torch.arange(LENGTH - RESPONSE, LENGTH)
    positions_N = (torch.arange(BATCH)[:, None] * LENGTH + inside_T - 1).flatten()
    inputs = LossInputs(labels_N=ids_BT[:, inside_T].flatten())
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model_inputs = {"input_ids": ids_BT, "use_cache": False}
    for _ in range(2):  # the second step has the optimiser's moments beside its activations
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            sums, _outputs = head.score(model, model_inputs, positions_N, inputs)
            activations = sum(kept.values())
        (sums.loss / len(positions_N)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"activations": activations, "peak": _peak_bytes() - before}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def predict_step(path: str, tuning: str, checkpointing: bool) -> dict[str, float]:
    """Return the same from the shape alone."""
    from pipeline.student.fused_loss import CHUNK_BYTES

    shape = read_shape(json.loads((Path(path) / "config.json").read_text()))
    choices = TrainingChoices(
        tuning=tuning, dtype="float32", lora_rank=16, gradient_checkpointing=checkpointing
    )
    tokens, scored = BATCH * LENGTH, BATCH * RESPONSE
    memory = training_step_memory(
        shape,
        choices,
        tokens=tokens,
        response_tokens=scored,
        loss_chunk_bytes=CHUNK_BYTES["cpu"],
    )
    return {"activations": tokens * activation_bytes(shape, choices), "peak": memory["total"]}


def compare_cache(path: str) -> dict[str, float]:
    """Return the bytes of a cache's shards, predicted from its own counts and measured."""
    from storage_schema import open_cache

    cache = open_cache(path)
    manifest = cache.manifest
    predicted = cache_bytes(
        response_tokens=manifest.num_response_tokens,
        tokens=int(cache.sequence_lengths.sum()),
        entries=manifest.num_entries / manifest.num_response_tokens,
        vocabulary_rows=int(cache.plan.teacher["vocabulary_rows"]),
        codec=cache.plan.codec,
    )
    return {"predicted": predicted, "measured": manifest.num_bytes}


def count_parameters(path: str) -> dict[str, int]:
    """Return the parameters by the shape, and those of the stored weights."""
    from safetensors import safe_open

    shape = read_shape(json.loads((Path(path) / "config.json").read_text()))
    measured = 0
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(str(file), "pt") as weights:
            for key in weights.keys():
                size = 1
                for extent in weights.get_slice(key).get_shape():
                    size *= extent
                measured += size
    return {"predicted": shape.num_parameters, "measured": measured}


def measure_entries(path: str, data: str, num_rows: int) -> dict[str, Any]:
    """Return mean entries and stored mass of a row by k and min_prob, and ids in 50 draws."""
    import torch

    from pipeline.data.config import DataSettings
    from pipeline.data.tokenization import tokenize_dataset
    from pipeline.models.checkpoint import find_checkpoint
    from pipeline.models.loading import load_model, load_tokenizer

    checkpoint = find_checkpoint(path)
    settings = DataSettings(
        data=data, max_examples=num_rows, max_prompt_tokens=512, max_sequence_tokens=1024
    )
    examples = tokenize_dataset(settings, load_tokenizer(checkpoint)).examples
    model = load_model(checkpoint)
    generator = torch.Generator().manual_seed(0)
    sums: dict[str, list[float]] = {}
    rows, distinct = 0, 0
    for example in examples:
        ids_BT = torch.from_numpy(example.input_ids[None].astype("int64"))
        with torch.no_grad():
            logits_NV = model(ids_BT).logits[0, example.response_start - 1 : -1].float()
        probs_NV = logits_NV.softmax(-1)
        draws_ND = torch.multinomial(probs_NV, 50, replacement=True, generator=generator)
        distinct += sum(len(torch.unique(row)) for row in draws_ND)
        probs_NV = probs_NV.sort(-1, descending=True).values
        mass_NV = probs_NV.double().cumsum(-1)
        rows += len(probs_NV)
        for min_prob in ENTRIES_BY_MIN_PROB:
            above_N = (probs_NV >= min_prob).sum(-1).clamp(min=1)
            for k in ENTRY_KS:
                kept_N = above_N.clamp(max=k)
                mass = mass_NV.gather(1, kept_N[:, None] - 1).sum().item()
                total = sums.setdefault(f"k {k}, min_prob {min_prob:g}", [0.0, 0.0])
                total[0] += kept_N.sum().item()
                total[1] += mass
    table = {name: {"entries": n / rows, "mass": mass / rows} for name, (n, mass) in sums.items()}
    return {"response_tokens": rows, "distinct_of_50": distinct / rows, "supports": table}


def main() -> None:
    """Print the table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cache")
    parser.add_argument("--data", help="FILE=ROWS")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.step:
        tuning, checkpointing = options.step
        print(json.dumps(measure_step(options.model, tuning, checkpointing == "True")))
        return
    table: dict[str, dict[str, float]] = {"parameters": count_parameters(options.model)}
    if options.cache:
        table["cache bytes"] = compare_cache(options.cache)
    for tuning, checkpointing in STEPS:
        command = [sys.executable, __file__, "--model", options.model]
        command += ["--step", tuning, str(checkpointing)]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        output = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment
        ).stdout
        measured = json.loads(output.splitlines()[-1])
        predicted = predict_step(options.model, tuning, checkpointing)
        name = f"{tuning}{', checkpointing' if checkpointing else ''}"
        for what in ("activations", "peak"):
            table[f"{name}: {what}"] = {"predicted": predicted[what], "measured": measured[what]}
    entries = {}
    if options.data:
        data, _, rows = options.data.rpartition("=")
        entries = measure_entries(options.model, data, int(rows))
    if options.json:
        print(json.dumps({"table": table, "entries": entries}))
        return
    for name, row in table.items():
        ratio = row["predicted"] / row["measured"]
        print(f"{name:40} {row['predicted']:16,.0f} {row['measured']:16,.0f} {ratio:6.2f}")
    if entries:
        print(
            f"{entries['response_tokens']} rows; ids in 50 draws: {entries['distinct_of_50']:.1f}"
        )
        for name, found in entries["supports"].items():
            print(f"{name:40} {found['entries']:8.1f} entries {found['mass']:8.4f} of the mass")


if __name__ == "__main__":
    main()
