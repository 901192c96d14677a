"""How the time of a pass, forward and backward, grows with its tokens: PASS_TOKENS is from here.

    OMP_NUM_THREADS=1 python tests/benchmarks/pass_cost.py --student MODEL

Prints processor seconds (the least of three) of one sequence of each length through the model with
its adapter, the head left out, and the line through the shortest and the longest.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

LENGTHS = (16, 32, 64, 128, 256)


def main() -> None:
    import torch
    from step_inputs import load_student

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True)
    model = load_student(parser.parse_args().student, "float32").get_base_model().model
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
    slope = (seconds[LENGTHS[-1]] - seconds[LENGTHS[0]]) / (LENGTHS[-1] - LENGTHS[0])
    fixed = seconds[LENGTHS[0]] - slope * LENGTHS[0]
    print(f"{slope:.5f} s a token, {fixed:.3f} s a pass, or {fixed / slope:.0f} tokens")


if __name__ == "__main__":
    main()
