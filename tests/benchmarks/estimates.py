"""The estimates of --dry-run beside what a real model takes: parameters, a step's memory, a cache.

    OMP_NUM_THREADS=1 python tests/benchmarks/estimates.py --model SmolLM2-135M-Instruct \
        --cache runs/demo/cache

Each step runs in a process of its own, so that its peak of resident memory is its own. glibc is
told to give freed tensors back at once; otherwise it keeps gigabytes that no tensor uses.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.estimates.disk import cache_bytes
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


def main() -> None:
    """Print the table, or with --json one object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cache")
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
    if options.json:
        print(json.dumps(table))
        return
    for name, row in table.items():
        ratio = row["predicted"] / row["measured"]
        print(f"{name:40} {row['predicted']:16,.0f} {row['measured']:16,.0f} {ratio:6.2f}")


if __name__ == "__main__":
    main()
