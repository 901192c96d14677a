"""Wrote tests/golden/v1 and v1.json, once: python tests/golden/make.py; never run it again.

The files are what version 1 of the format looked like on its first day. A later release that
cannot read them to the same numbers breaks every cache in the world; a change of format gets a
new directory beside this one instead.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def responses() -> list:
    """Four responses with what is rare: ties, one entry, no tail, a label outside, wide ids."""
    from cache_factory import random_responses

    from storage_schema import response_from_rows

    settings = {"k": 4, "min_prob": 0.01, "vocabulary_size": 200_000}
    certain = response_from_rows(
        np.array([0, 199_999, 5], np.int32),
        1,
        np.array([[199_999, 131_072, 7, -1], [9, 5, 3, 70_000]]),
        np.log(np.array([[1.0, 1e-9, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]) + 1e-300),
        np.array([0.0, np.log(0.25)]),
        **settings,
    )
    outside = response_from_rows(
        np.array([1, 2, 3, 4], np.int32),
        3,
        np.array([[65_536, 65_535, 12, 13]]),
        np.log(np.array([[0.5, 0.25, 0.125, 0.005]])),
        np.array([-20.5]),
        **settings,
    )
    return [certain, outside, *random_responses(2, seed=7, k=4, vocabulary_size=64, rows=3)]


def main() -> None:
    """Write the cache and its arrays as JSON."""
    from cache_factory import make_cache

    from storage_schema import open_cache

    if (HERE / "v1").exists():
        raise SystemExit(f"{HERE / 'v1'} is there: a golden cache is never written again")
    make_cache(
        HERE / "v1", responses(), k=4, min_prob=0.01, vocabulary_size=200_000, examples_per_shard=3
    )
    cache = open_cache(HERE / "v1")
    arrays = [
        {
            "example_id": response.example_id.hex(),
            "response_start": response.response_start,
            **{
                name: getattr(response, name).tolist()
                for name in ("input_ids", "num_entries", "entry_token_ids")
            },
            **{  # exact for floats, -inf included
                name: [value.hex() for value in getattr(response, name).tolist()]
                for name in ("entry_logprobs", "label_logprobs", "log_tail_mass")
            },
        }
        for response in cache
    ]
    text = json.dumps({"fingerprint": cache.fingerprint, "responses": arrays}, indent=1)
    (HERE / "v1.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
