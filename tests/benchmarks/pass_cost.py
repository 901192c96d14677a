"""What a forward and backward pass costs beside its tokens, and the padding that knowing it saves.

    OMP_NUM_THREADS=1 python tests/benchmarks/pass_cost.py --student MODEL
    python tests/benchmarks/pass_cost.py --cache CACHE

The first prints processor seconds (the least of three) of one sequence of each length through the
model with its adapter, the head left out, and the line through them: what PASS_TOKENS is taken
from. The second prints, for the first epoch of a cache, how many tokens are computed for each that
there is: with a step's responses in one padded batch, and in the passes train-student makes on a
CPU.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

LENGTHS = (16, 32, 64, 128, 256)


def measure(student: str) -> None:
    """Print the time of passes of each length."""
    import torch
    from step_inputs import load_student

    model = load_student(student, "float32").get_base_model().model
    seconds = {}
    for length in (LENGTHS[-1], *LENGTHS):  # the first one warms up
        times = []
        for _ in range(3):
            start = time.process_time()
            ids = torch.zeros(1, length, dtype=torch.long)
            model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
            times.append(time.process_time() - start)
        seconds[length] = min(times)
    for length in LENGTHS:
        print(f"{length:5} tokens {seconds[length]:.3f} s")
    slope, fixed = np.polyfit(LENGTHS, [seconds[length] for length in LENGTHS], 1)
    print(f"{slope:.5f} s a token, {fixed:.3f} s a pass, or {fixed / slope:.0f} tokens")


def count_padding(cache: str, batch_size: int) -> tuple[float, float, float]:
    """Return tokens computed for each there is, padded and cut, and the passes of a step."""
    from pipeline.student.passes import PassLimit, divide
    from pipeline.student.trainer import PASS_TOKENS
    from storage_schema import open_cache

    opened = open_cache(cache)
    lengths = opened.sequence_lengths.astype(np.int64)
    order = list(opened.order(0).indices(0))
    steps = [lengths[order[i : i + batch_size]] for i in range(0, len(order), batch_size)]
    limit = PassLimit(responses=batch_size, fixed_tokens=PASS_TOKENS["cpu"])
    passes = [step[places] for step in steps for places in divide(step, limit, 1)[0]]

    def padded(batches: list[np.ndarray]) -> float:
        return float(sum(batch.max() * len(batch) for batch in batches) / lengths.sum())

    return padded(steps), padded(passes), len(passes) / len(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", help="measure passes of this model")
    parser.add_argument("--cache", help="count the padding of this cache")
    parser.add_argument("--batch-size", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.student:
        measure(arguments.student)
    if arguments.cache:
        padded, cut, passes = count_padding(arguments.cache, arguments.batch_size)
        print(f"computed for each token: padded {padded:.3f}, cut {cut:.3f} ({passes:.1f} passes)")


if __name__ == "__main__":
    main()
