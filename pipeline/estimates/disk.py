"""Bytes on disk of a logit cache and of a trained model: estimates.

The constants are fits to docs/results/cache-codec.md: 128 and 64 entries a row, cut and uncut,
of two data sets and two vocabularies, within 3 % on real text, a fifth on random rows.
"""

import math

from pipeline.estimates.memory import DTYPE_BYTES, MOMENT_BYTES
from pipeline.estimates.shapes import ModelShape

# Entries of a row of SmolLM2-135M-Instruct on databricks-dolly-15k, by k and least probability;
# measured by tests/benchmarks/estimates.py. A surer teacher stores fewer.
ENTRY_KS = (8, 32, 64, 128, 256, 1024, 4096)
ENTRIES_BY_MIN_PROB = {
    1e-6: (8.0, 31.0, 60.8, 118.5, 229.9, 805.5, 1981.6),
    1e-5: (7.9, 29.9, 57.6, 110.0, 202.4, 531.1, 715.9),
    1e-4: (7.6, 27.7, 51.1, 87.1, 132.4, 180.3, 180.5),
    1e-3: (7.1, 22.3, 32.6, 38.3, 38.6, 38.6, 38.6),
    1e-2: (5.7, 7.8, 7.8, 7.8, 7.8, 7.8, 7.8),
}
# Different tokens among 50 draws of the same rows; grows with the draws' square root or slower.
DISTINCT_OF_50 = 13.2
# Bytes: an entry with a vocabulary of 49,152 and one of 128,256; of a row; of a token of input_ids.
SMALL_ENTRY_BYTES, LARGE_ENTRY_BYTES, LARGE_VOCABULARY = 2.15, 2.5, 2**16
ROW_BYTES, TOKEN_BYTES = 13.0, 2.0
# bfloat16-logits against float16-rounded, uncut rows of k = 64 and 128.
BFLOAT16_LOGITS_SHARE = 0.92


def _distance(min_prob: float, other: float) -> float:
    return abs(math.log(min_prob / other))


def entries_per_row(k: int, min_prob: float) -> float:
    """Return the mean number of stored entries of a top-k row, between measured points."""
    if min_prob <= 0:
        return float(k)
    row: tuple[float, ...]
    nearest = min(ENTRIES_BY_MIN_PROB, key=lambda measured: _distance(measured, min_prob))
    row = ENTRIES_BY_MIN_PROB[nearest]
    if k <= ENTRY_KS[0]:
        return min(float(k), row[0])
    for low, high, few, many in zip(ENTRY_KS, ENTRY_KS[1:], row, row[1:], strict=False):
        if k <= high:
            share = (k - low) / (high - low)
            return few + (many - few) * share
    return row[-1]


def entries_per_sampled_row(num_samples: int) -> float:
    """Return the mean number of different tokens among the draws for a row."""
    return min(float(num_samples), DISTINCT_OF_50 * math.sqrt(num_samples / 50))


def cache_bytes(
    *,
    response_tokens: int,
    tokens: int,
    entries: float,
    vocabulary_rows: int,
    codec: str,
) -> float:
    """Return the bytes of a cache's shards.

    Args:
        response_tokens: rows of the teacher.
        tokens: of prompts and responses together.
        entries: mean number stored of a row.
        vocabulary_rows: of the teacher.
        codec: one of storage_schema.layout.CODECS.
    """
    an_entry = SMALL_ENTRY_BYTES if vocabulary_rows < LARGE_VOCABULARY else LARGE_ENTRY_BYTES
    rows = response_tokens * (ROW_BYTES + entries * an_entry)
    if codec == "bfloat16-logits":
        rows *= BFLOAT16_LOGITS_SHARE
    return float(rows + tokens * TOKEN_BYTES)


def student_bytes(shape: ModelShape, tuning: str, lora_rank: int, merge: bool) -> dict[str, float]:
    """Return the bytes of a trained model, and of a checkpoint while it trains.

    An adapter is stored in float32, a whole model in the type it came in.
    """
    adapter = shape.num_lora_parameters(lora_rank)
    whole = tuning == "full" or merge
    size = DTYPE_BYTES.get(shape.dtype, 4)
    trained = shape.num_parameters if tuning == "full" else adapter
    return {
        "output": float(shape.num_parameters * size if whole else adapter * 4),
        "checkpoint": float(trained * (4 + MOMENT_BYTES)),
    }
