"""What a distillation step costs beside plain fine-tuning: time and memory, on a CPU or a GPU.

    python tests/benchmarks/student_step.py --student MODEL --prompt-heavy CACHE \
        --response-heavy CACHE [--json]
    python tests/benchmarks/student_step.py --random-weights 8b --dtype bfloat16 --checkpointing

Every variant (tests/benchmarks/step_variants.py says what each does) is a process of its own with
the same LoRA model, number format, responses and optimiser; the processes take turns, one step
each, in opposite order every other round, so that noise hits all alike. To spare memory, ours-kd
stands beside --together - 1 others at a time, and does its steps again for each group. The first
round warms up.
A mix is a cache as precompute-logits wrote it; --random-weights has random ones and random
responses. Memory is the peak above what the loaded models and the interpreter take; the weights of
a live teacher are loaded before and stated apart. A variant whose package or device is missing is
named as not run, and its keys are null.

Each ratio is ours-kd over theirs, the median over the rounds (memory: of the peaks):
time_ratio_vs_hf_sft, memory_ratio_vs_hf_sft, the same vs_naive_kd, vs_own_sft, vs_trl_sft,
vs_trl_kd (TRL's DistillationTrainer), vs_trl_gkd, vs_liger_kd and vs_liger_sft; cpu_ratio_vs_* is
that of processor seconds, which other programs on the machine disturb less.
input_pipeline_share is the share of a run of consecutive ours-kd steps, without turns, that was
spent waiting for the step loader. model_flops_utilisation is the work a step cannot do without,
the same for every variant, over --peak-tflops.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

MIXES = ("prompt-heavy", "response-heavy")
VARIANTS = (
    "ours-kd", "ours-sft", "hf-sft", "naive-kd", "trl-sft", "trl-kd", "trl-gkd", "liger-kd",
    "liger-sft",
)  # fmt: skip
OURS = ("ours-kd", "ours-sft")
KINDS = ("time", "cpu", "memory")
Found = dict[str, list[dict[str, Any]]]


def measure(arguments: argparse.Namespace, mix: str) -> dict[str, Any]:
    """Measure ours-kd beside a few of the others at a time, and put the summaries together."""
    from step_variants import missing

    not_run = {name: why for name in arguments.variants if (why := missing(name))}
    others = [v for v in arguments.variants if v != "ours-kd" and v not in not_run]
    size = max(1, arguments.together - 1)
    groups = [others[at : at + size] for at in range(0, len(others), size)] or [[]]
    merged: dict[str, Any] = {}
    for group in groups:
        for key, value in _measure_group(arguments, mix, ["ours-kd", *group], not_run).items():
            if isinstance(value, dict):  # the first group's ours-kd stands
                merged[key] = {**value, **merged.get(key, {})}
            elif merged.get(key) is None:
                merged[key] = value
    return {**merged, "not_run": not_run}


def _measure_group(
    arguments: argparse.Namespace, mix: str, names: list[str], not_run: dict[str, str]
) -> dict[str, Any]:
    """Start a process for each variant, give them turns, and summarise; note those that fail."""
    from turns import Worker

    student, responses = _sources(arguments, mix)
    options = ["--student", student, "--responses", responses, "--mix", mix]
    options += ["--dtype", arguments.dtype, "--batch-size", str(arguments.batch_size)]
    options += ["--num-steps", str(2 * arguments.rounds + 1)]
    options += ["--checkpointing"] if arguments.checkpointing else []
    script = str(Path(__file__).with_name("step_worker.py"))
    workers = {name: Worker([script, "--variant", name, *options]) for name in names}
    facts = {name: worker.ready() for name, worker in workers.items()}
    for name in [name for name, fact in facts.items() if fact is None]:
        if name in OURS:
            raise SystemExit(f"{name} ended before its first step, see above")
        not_run[name] = "it ended before its first step"
        workers.pop(name).end()
    found: Found = {name: [] for name in workers}
    for turn in range(arguments.rounds + 1):
        for name in list(workers) if turn % 2 else list(workers)[::-1]:
            cost = workers[name].ask(first=turn, count=1)
            if turn > 0:
                found[name].append(cost)
    row = workers["ours-kd"].ask(first=arguments.rounds + 1, count=arguments.rounds)
    for worker in workers.values():
        worker.end()
    summary = summarize(found, arguments.peak_tflops)
    summary["input_pipeline_share"] = round(row["waited"] / row["seconds"], 5)
    summary["teacher_weights_mib"] = {
        name: round(fact["teacher_bytes"] / 2**20)
        for name, fact in facts.items()
        if fact and fact["teacher_bytes"]
    }
    return summary


def _sources(arguments: argparse.Namespace, mix: str) -> tuple[str, str]:
    """Return where the models and the responses come from."""
    if arguments.random_weights:
        return (f"random:{arguments.random_weights}",) * 2
    return arguments.student, getattr(arguments, mix.replace("-", "_"))


def summarize(found: Found, peak_tflops: float | None = None) -> dict[str, Any]:
    """The keys of the module's docstring, from what the steps of each variant cost."""
    seconds = {v: [step["seconds"] for step in steps] for v, steps in found.items()}
    memory = {v: max(step["memory"] for step in steps) for v, steps in found.items()}
    summary: dict[str, Any] = {}
    for other in VARIANTS[1:]:
        key = _key(other)
        is_there = other in found
        summary[f"time_ratio_vs_{key}"] = _ratio(found, other, "seconds") if is_there else None
        summary[f"cpu_ratio_vs_{key}"] = _ratio(found, other, "cpu_seconds") if is_there else None
        summary[f"memory_ratio_vs_{key}"] = (
            round(memory["ours-kd"] / memory[other], 3) if is_there else None
        )
    steps = found["ours-kd"]
    for key in ("tokens", "response_tokens"):
        summary[f"{key}_per_step"] = round(statistics.mean(step[key] for step in steps))
    tokens = sum(step["tokens"] for step in steps)
    work = sum(step["flops"] for step in steps)
    summary["median_seconds"] = {v: round(statistics.median(s), 4) for v, s in seconds.items()}
    summary["tokens_per_second"] = {v: round(tokens / sum(s), 1) for v, s in seconds.items()}
    summary["peak_mib_above_weights"] = {v: round(m / 2**20, 1) for v, m in memory.items()}
    summary["model_flops_utilisation"] = {
        v: round(work / sum(s) / (peak_tflops * 1e12), 4) if peak_tflops else None
        for v, s in seconds.items()
    }
    return summary


def _ratio(found: Found, other: str, key: str) -> float:
    pairs = zip(found["ours-kd"], found[other], strict=True)
    return round(statistics.median(ours[key] / theirs[key] for ours, theirs in pairs), 3)


def _key(variant: str) -> str:
    return "own_sft" if variant == "ours-sft" else variant.replace("-", "_")


def _shown(summary: dict[str, Any], kind: str, variant: str) -> str:
    value = 1 if variant == "ours-kd" else summary.get(f"{kind}_ratio_vs_{_key(variant)}")
    return "-" if value is None else f"{value:.2f}"


def table(summaries: dict[str, Any]) -> str:
    """Return Markdown of a JSON object of this script."""
    lines = []
    for mix, summary in ((mix, summaries[mix]) for mix in MIXES if mix in summaries):
        lines += [
            f"**{mix}**: {summary['tokens_per_step']} tokens a step, of them "
            f"{summary['response_tokens_per_step']} of responses; input pipeline share "
            f"{summary['input_pipeline_share']:.2%}",
            "",
            "| variant | s a step | tokens/s | ours-kd takes | cpu | MiB above | ours-kd takes |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, seconds in summary["median_seconds"].items():
            ratios = [_shown(summary, kind, name) for kind in KINDS]
            teacher = summary["teacher_weights_mib"].get(name)
            beside = f" (and a teacher of {teacher})" if teacher else ""
            lines.append(
                f"| {name} | {seconds:.3f} | {summary['tokens_per_second'][name]:.0f} | "
                f"{ratios[0]} | {ratios[1]} | "
                f"{summary['peak_mib_above_weights'][name]:.0f}{beside} | {ratios[2]} |"
            )
        lines += [
            f"| {name} | not run: {why} | | | | | |" for name, why in summary["not_run"].items()
        ]
        lines.append("")
    return "\n".join(lines)


def describe_machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the numbers depend on beside the code."""
    import torch

    versions = {}
    for package in ("torch", "transformers", "peft", "trl", "liger_kernel"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {os.cpu_count()} cores",
        "threads": None if cuda else torch.get_num_threads(),
        "model": arguments.random_weights or Path(arguments.student).name,
        "dtype": arguments.dtype,
        "batch_size": arguments.batch_size,
        "rounds": arguments.rounds,
        "gradient_checkpointing": arguments.checkpointing,
        "versions": versions,
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", help="a model; live teachers are a second copy of it")
    parser.add_argument("--prompt-heavy", metavar="CACHE", help="a cache of long prompts")
    parser.add_argument("--response-heavy", metavar="CACHE", help="a cache of long responses")
    parser.add_argument("--random-weights", choices=("tiny", "1b", "8b"), help="instead of those")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the utilisation")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--together", type=int, default=4, help="processes alive at a time")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", metavar="FILE", help="print the table of a saved JSON object")
    arguments = parser.parse_args(argv)
    arguments.mixes = [
        mix for mix in MIXES
        if arguments.random_weights or getattr(arguments, mix.replace("-", "_"))
    ]  # fmt: skip
    if not arguments.table:
        if not (arguments.random_weights or arguments.student):
            parser.error("name a model with --student, or --random-weights")
        if not arguments.mixes:
            parser.error("name a cache with --prompt-heavy or --response-heavy")
        if "ours-kd" not in arguments.variants:
            parser.error("--variants without ours-kd: it is what the others are compared with")
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.table:
        return print(table(json.loads(Path(arguments.table).read_text())))
    summaries: dict[str, Any] = {"machine": describe_machine(arguments)}
    for mix in arguments.mixes:
        summaries[mix] = measure(arguments, mix)
    return print(json.dumps(summaries, indent=2) if arguments.json else table(summaries))


if __name__ == "__main__":
    main()
