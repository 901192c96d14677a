"""What N students from one cache cost beside N students with the teacher running in each.

    python tests/benchmarks/sweep_cost.py --model MODEL --data FILE [--runs 5] [--json]

Measured, on the first --examples of the data, with a frozen teacher of the student's own size:

    pass        precompute-logits as a command, once before the steps and once after them: the mean
                of its scoring time. Loading the engine is stated apart
    step        one epoch of optimiser steps of each variant, in processes that take turns, one step
                each: ours-kd, ours-sft and hf-sft of step_variants.py, and
    online-kd   the teacher's forward pass without gradients on the student's own padded batch, then
                CE + KL over the full vocabulary on the response rows alone (one head product for
                each model, float32 softmax): no logits of prompt positions, no second pass
    online-kd-cut  the same loop with the passes that train-student would make of the step

Computed from it, loading left out everywhere:

    cost(N) = pass + N * epochs * (seconds of an epoch of ours-kd)      from the cache
    cost(N) = N * epochs * (seconds of an epoch of the variant)         anything else

ratio_vs_online_kd is the first over the second at N = --runs, and ratio_vs_online_kd_cut,
ratio_vs_hf_sft and ratio_vs_own_sft likewise; break_even_runs is the smallest N at which the cache
is cheaper than online-kd. A larger teacher adds to the pass once, and to online-kd in every step of
every run.
"""

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

VARIANTS = ("ours-kd", "ours-sft", "hf-sft", "online-kd", "online-kd-cut")
KEYS = {
    "online-kd": "ratio_vs_online_kd",
    "online-kd-cut": "ratio_vs_online_kd_cut",
    "hf-sft": "ratio_vs_hf_sft",
    "ours-sft": "ratio_vs_own_sft",
}


def run_pass(arguments: argparse.Namespace, cache: str) -> dict[str, Any]:
    """Write the cache with precompute-logits and return the account it gives of itself."""
    from turns import environment

    command = [sys.executable, "-c", "from pipeline.cli.precompute_logits import main; main()"]
    command += ["--teacher", arguments.model, "--data", arguments.data, "--output", cache]
    command += ["--max-examples", str(arguments.examples), "--engine", arguments.engine, "--json"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env=environment()
    )
    if done.returncode:
        raise SystemExit(f"precompute-logits ended with {done.returncode}, see above")
    return dict(json.loads(done.stdout[done.stdout.index("{") :])["pass"])


def run_epochs(arguments: argparse.Namespace, cache: str) -> dict[str, list[dict[str, Any]]]:
    """Let the variants take turns through one epoch, after a warm-up step each."""
    from turns import Worker

    from storage_schema import open_cache

    num_steps = math.ceil(len(open_cache(cache)) / arguments.batch_size)
    script = str(Path(__file__).with_name("step_worker.py"))
    options = ["--student", arguments.model, "--responses", cache, "--mix", "-"]
    options += ["--dtype", arguments.dtype, "--batch-size", str(arguments.batch_size)]
    options += ["--num-steps", str(2 * num_steps)]
    workers = {name: Worker([script, "--variant", name, *options]) for name in VARIANTS}
    for name, worker in workers.items():
        if worker.ready() is None:
            raise SystemExit(f"{name} ended before its first step, see above")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
    # The warm-up is a step of the second epoch, so that every one of the first is counted.
    for turn in (num_steps, *range(num_steps)):
        for name in VARIANTS if turn % 2 else VARIANTS[::-1]:
            cost = workers[name].ask(first=turn, count=1)
            if turn < num_steps:
                found[name].append(cost)
    for worker in workers.values():
        worker.end()
    return found


def compute(
    pass_seconds: float, epoch_seconds: dict[str, float], epochs: float, runs: int
) -> dict[str, Any]:
    """Return the keys of the module's docstring from the measured seconds."""
    cached = pass_seconds + runs * epochs * epoch_seconds["ours-kd"]
    ratios = {
        key: round(cached / (runs * epochs * epoch_seconds[name]), 3) for name, key in KEYS.items()
    }
    saved = epochs * (epoch_seconds["online-kd"] - epoch_seconds["ours-kd"])
    return {
        **ratios,
        "break_even_runs": math.floor(pass_seconds / saved) + 1 if saved > 0 else None,
        "epochs": epochs,
        "runs": runs,
        "cost_seconds": {
            "from the cache": round(cached, 1),
            **{name: round(runs * epochs * epoch_seconds[name], 1) for name in KEYS},
        },
    }


def summarize(
    passes: list[dict[str, Any]], found: dict[str, list[dict[str, Any]]], epochs: float, runs: int
) -> dict[str, Any]:
    """Return what was measured and what is computed from it."""
    pass_seconds = sum(account["pass_seconds"] for account in passes) / len(passes)
    seconds = {name: sum(step["seconds"] for step in steps) for name, steps in found.items()}
    steps = found["ours-kd"]
    measured = {
        "pass_seconds": round(pass_seconds, 2),
        "passes": [round(account["pass_seconds"], 2) for account in passes],
        "engine_start_seconds": [round(account["engine_start_seconds"], 2) for account in passes],
        "epoch_seconds": {name: round(value, 2) for name, value in seconds.items()},
        "steps": len(steps),
        "tokens": sum(step["tokens"] for step in steps),
        "response_tokens": sum(step["response_tokens"] for step in steps),
    }
    return {**compute(pass_seconds, seconds, epochs, runs), "measured": measured}


def table(summary: dict[str, Any]) -> str:
    """Return Markdown of a JSON object of this script."""
    measured, runs, epochs = summary["measured"], summary["runs"], summary["epochs"]
    kd = measured["epoch_seconds"]["ours-kd"]
    lines = [
        f"Measured: {measured['steps']} steps an epoch, {measured['tokens']} tokens, of them "
        f"{measured['response_tokens']} of responses; the teacher pass over them "
        f"{measured['pass_seconds']:.1f} s.",
        "",
        f"cost(N) = {measured['pass_seconds']:.1f} s + N * {epochs:g} * {kd:.1f} s from the cache; "
        f"cheaper than online KD from N = {summary['break_even_runs']} on",
        "",
        f"| way | s an epoch | s for {runs} runs | the cache costs |",
        "|---|---|---|---|",
        f"| from the cache | {kd:.1f} | {summary['cost_seconds']['from the cache']:.0f} | 1 |",
    ]
    for name, key in KEYS.items():
        lines.append(
            f"| {name} | {measured['epoch_seconds'][name]:.1f} | "
            f"{summary['cost_seconds'][name]:.0f} | {summary[key]:.2f} |"
        )
    return "\n".join(lines)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="student, and teacher of its own size")
    parser.add_argument("--data", help="as precompute-logits takes it")
    parser.add_argument("--examples", type=int, default=60, help="of the data, measured")
    parser.add_argument("--engine", default="auto", help="of the teacher pass")
    parser.add_argument("--runs", type=int, default=5, help="students of a sweep")
    parser.add_argument("--epochs", type=float, default=3.0, help="of each student")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", metavar="FILE", help="print the table of a saved JSON object")
    arguments = parser.parse_args(argv)
    if not arguments.table and not (arguments.model and arguments.data):
        parser.error("name a model with --model and its data with --data")
    if arguments.runs < 1 or arguments.epochs <= 0:
        parser.error(f"--runs {arguments.runs} --epochs {arguments.epochs:g}: expected 1 or more")
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.table:
        return print(table(json.loads(Path(arguments.table).read_text())))
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(sys.stderr):
        passes = [run_pass(arguments, f"{directory}/before")]
        found = run_epochs(arguments, f"{directory}/before")
        passes.append(run_pass(arguments, f"{directory}/after"))
    summary = summarize(passes, found, arguments.epochs, arguments.runs)
    return print(json.dumps(summary, indent=2) if arguments.json else table(summary))


if __name__ == "__main__":
    main()
