"""One variant in a process of its own: does the steps it is asked for and says what they cost."""

import argparse
import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from step_inputs import batch_reader, count_flops, read_responses
from step_variants import Setup, Variant, make_variant, optimizer_of
from turns import answer


class Memory:
    """Peak memory since this was made, above what was in use then, in bytes."""

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            trim()  # what loading freed must not count as in use
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
            self._before = _resident("VmRSS")

    def peak(self) -> int:
        """Return the bytes."""
        now = torch.cuda.max_memory_allocated() if self._cuda else _resident("VmHWM")
        return int(now) - self._before


def trim() -> None:
    """Give memory that was freed back to the machine, which all processes share."""
    ctypes.CDLL(None).malloc_trim(0)


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024


def _bytes(model: Any) -> int:
    return 0 if model is None else sum(p.nbytes for p in model.parameters())


def _steps(variant: Variant, optimizer: Any, batches: Any, numbers: range) -> dict[str, Any]:
    """Do the steps one after the other; return the seconds of all and those spent waiting."""
    work = [(number, batches(number)) for number in numbers]
    start, busy, waited = time.perf_counter(), time.process_time(), 0.0
    for number, responses in work:
        waited += variant.backward(number, responses)
        optimizer.step()
        optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    held = [response for _, responses in work for response in responses]
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - busy,
        "waited": waited,
        "tokens": sum(len(r.input_ids) for r in held),
        "response_tokens": sum(r.num_response_tokens for r in held),
        "flops": count_flops(variant.model, held),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("variant", "student", "responses", "mix", "dtype"):
        parser.add_argument(f"--{name}")
    for name in ("batch-size", "num-steps"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    responses = read_responses(arguments.responses, arguments.mix)
    setup = Setup(
        arguments.student, responses, arguments.batch_size, arguments.num_steps, arguments.dtype,
        arguments.checkpointing,
    )  # fmt: skip
    variant = make_variant(arguments.variant, setup)
    variant.model.train()
    optimizer = optimizer_of(variant)
    batches = batch_reader(responses, setup.batch_size, setup.seed)
    memory = Memory()
    answer({"ready": {"teacher_bytes": _bytes(variant.teacher), "bytes": _bytes(variant.model)}})
    for line in sys.stdin:
        first, count = json.loads(line)["first"], json.loads(line)["count"]
        found = _steps(variant, optimizer, batches, range(first, first + count))
        peak = memory.peak()
        trim()
        answer({**found, "memory": peak})


if __name__ == "__main__":
    main()
