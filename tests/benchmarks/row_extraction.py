"""Microseconds a row from hidden states to entries, beside the vocabulary head alone.

    OMP_NUM_THREADS=1 python tests/benchmarks/row_extraction.py
    python tests/benchmarks/row_extraction.py --device cuda [--rows 8192] [--json]

Random bfloat16 hidden states and matrices of an 8B model's shape (4,096 x 128,256; on a CPU with
a hidden size of 64, where the head would hide everything else). The head alone runs in the chunks
that the extractor uses; the least of several repetitions counts. Seconds are of the processor on a
CPU, of the clock on a GPU, where peak MiB is the most that was allocated beyond hidden states and
matrix.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch

from pipeline.teacher.extraction import Extractor
from pipeline.teacher.row_spec import RowSpec

VOCABULARIES = (49_152, 128_256, 151_936)


def least_seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Return the least of several repetitions, one more warms up."""
    on_gpu = device == "cuda"
    found = []
    for _ in range(repeats + 1):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter() if on_gpu else time.process_time()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        found.append((time.perf_counter() if on_gpu else time.process_time()) - start)
    return min(found[1:])


def peak_mib(work: Callable[[], object], device: str) -> float | None:
    """Return the most memory allocated beyond what is now; None on a CPU."""
    if device != "cuda":
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(arguments: argparse.Namespace, vocabulary: int) -> dict[str, object]:
    """Return microseconds a row and peak memory of each kind of row."""
    device, rows, k = arguments.device, arguments.rows, arguments.k
    hidden = torch.randn(rows, arguments.hidden, device=device).bfloat16()
    matrix = torch.randn(vocabulary, arguments.hidden, device=device).bfloat16()
    matrix *= 3 / arguments.hidden**0.5
    labels = torch.randint(vocabulary, (rows,), device=device)
    positions = torch.arange(rows, device=device)

    def head(low: int, high: int) -> torch.Tensor:
        return hidden[low:high] @ matrix.T

    kinds = {
        "top_k": RowSpec(k, vocabulary),
        "top_k_and_entropy": RowSpec(k, vocabulary, entropy=True),
        "sampled": RowSpec(k, vocabulary, seed=0),
    }
    result: dict[str, object] = {"vocabulary": vocabulary}
    for name, spec in kinds.items():
        extractor = Extractor(spec)

        def extract(extractor: Extractor = extractor) -> object:
            return extractor.extract(head, labels, positions, positions)

        extract()
        size = extractor.chunk_rows or rows

        def head_alone(size: int = size) -> None:
            for low in range(0, rows, size):
                head(low, min(low + size, rows))

        seconds = least_seconds(extract, device, arguments.repeats)
        alone = least_seconds(head_alone, device, arguments.repeats)
        result[name] = {
            "chunk_rows": size,
            "microseconds_per_row": seconds / rows * 1e6,
            "head_alone_microseconds_per_row": alone / rows * 1e6,
            "peak_mib": peak_mib(extract, device),
            "head_alone_peak_mib": peak_mib(head_alone, device),
        }
    return result


def main() -> None:
    """Print a line for each vocabulary and kind of row, or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=int, help="default 408 on a CPU, 8192 on a GPU")
    parser.add_argument("--hidden", type=int, help="default 64 on a CPU, 4096 on a GPU")
    parser.add_argument("--vocabulary", type=int, action="append", help="may be repeated")
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("Error: --device cuda: torch sees no GPU here")
    on_gpu = arguments.device == "cuda"
    arguments.rows = arguments.rows or (8192 if on_gpu else 408)
    arguments.hidden = arguments.hidden or (4096 if on_gpu else 64)
    torch.manual_seed(0)
    results = [measure(arguments, size) for size in arguments.vocabulary or VOCABULARIES]
    place = torch.cuda.get_device_name() if on_gpu else "cpu"
    if arguments.json:
        print(json.dumps({**vars(arguments), "place": place, "results": results}))
        return
    print(f"{place}, {arguments.rows} rows of {arguments.hidden}, k = {arguments.k}")
    for result in results:
        for name, found in result.items():
            if isinstance(found, dict):
                peak = "" if found["peak_mib"] is None else f", peak {found['peak_mib']:.0f} MiB"
                print(
                    f"{result['vocabulary']:7d} {name:18s} {found['microseconds_per_row']:8.1f} us "
                    f"a row, head alone {found['head_alone_microseconds_per_row']:8.1f}{peak}"
                )


if __name__ == "__main__":
    main()
