"""The names, columns and limits of the on-disk format: constants, and which columns a cache has.

docs/storage-format.md is the specification in words; a test keeps the two equal.
"""

from functools import cache
from typing import Any

import pyarrow as pa

FORMAT_NAME = "smoothkd-cache"
FORMAT_VERSION = 1

PLAN_FILE = "plan.json"
MANIFEST_FILE = "manifest.json"
SHARD_DIRECTORY = "shards"
# Records of what making the cache took; no part of the cache (passes.py).
PASS_DIRECTORY = "passes"
SHARD_FILE = SHARD_DIRECTORY + "/shard-{index:05d}.parquet"

POSITION_RULE = "row t is the teacher's distribution for token input_ids[response_start + t]"
SUPPORT_KINDS = ("top_k", "sampled")
FLOAT16_ROUNDED = "float16-rounded"
BFLOAT16_LOGITS = "bfloat16-logits"
CODECS = (FLOAT16_ROUNDED, BFLOAT16_LOGITS)

# A row group is the unit of reading: large enough to compress, small enough to keep several.
ROW_GROUP_RESPONSES = 128
COMPRESSION = "zstd"
COMPRESSION_LEVEL = 6
# Ids hold next to no repetition: looking harder for it costs time and makes them larger.
ID_COMPRESSION_LEVEL = 1
# Whole column chunks, as far as possible: each page starts compressing anew.
DATA_PAGE_BYTES = 4 * 2**20

# What a document may take before it is read: no plan or manifest of real data comes near.
MAX_PLAN_BYTES = 16 * 2**20
MAX_MANIFEST_BYTES = 2**30
MAX_PASS_BYTES = 2**20
# Bounds what the lengths of one shard take in memory, whatever its manifest says.
MAX_EXAMPLES_PER_SHARD = 2**20

# Token ids are int32 on disk.
MAX_VOCABULARY_SIZE = 2**31 - 1
# Lowest finite float16; anything below is stored as this, a probability of exp(-65504) = 0.
MIN_LOGPROB = -65504.0
# How far stored probabilities may sum above 1. Rounding to float16 changes an entry by at most
# |l| * p * 2**-11, so a row by at most its entropy (12.5 nats for 262,144 tokens) * 2**-11.
MAX_MASS_EXCESS = 0.0075


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


@cache
def schema(codec: str, support_kind: str, entropy: bool) -> pa.Schema:
    """Return the columns of a cache, in order.

    Args:
        codec: one of CODECS.
        support_kind: one of SUPPORT_KINDS.
        entropy: whether the teacher's exact entropies are stored.
    """
    logits = codec == BFLOAT16_LOGITS
    columns = {
        "example_id": pa.binary(32),
        "input_ids": _list_of(pa.int32()),
        "response_start": pa.int32(),
        "num_entries": _list_of(pa.int32()),
        "entry_token_ids": _list_of(pa.int32()),
        **({"entry_logit_codes": _list_of(pa.int32())} if logits else {}),
        **({} if logits else {"entry_logprobs": _list_of(pa.float32())}),
        **({"entry_draws": _list_of(pa.int32())} if support_kind == "sampled" else {}),
        "label_logprobs": _list_of(pa.float32()),
        "log_tail_mass": _list_of(pa.float32()),
        **({"log_normalizers": _list_of(pa.float32())} if logits else {}),
        **({"entropies": _list_of(pa.float32())} if entropy else {}),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


# The columns of most caches.
SCHEMA = schema(FLOAT16_ROUNDED, "top_k", False)


def writer_options(columns: pa.Schema) -> dict[str, Any]:
    """Return how a shard of these columns is written, as arguments of pyarrow's ParquetWriter.

    Byte-stream split puts equal bytes of all values together, so that the zero mantissa bytes of
    rounded values and the high bytes of ids vanish under zstd.
    """
    lists = [f"{field.name}.list.element" for field in columns if pa.types.is_list(field.type)]
    others = [field.name for field in columns if not pa.types.is_list(field.type)]
    levels = {name: COMPRESSION_LEVEL for name in [*lists, *others]}
    levels["entry_token_ids.list.element"] = ID_COMPRESSION_LEVEL
    return {
        "compression": COMPRESSION,
        "compression_level": levels,
        "data_page_size": DATA_PAGE_BYTES,
        "use_dictionary": False,
        "column_encoding": {name: "BYTE_STREAM_SPLIT" for name in lists},
        "write_page_checksum": True,
        "write_statistics": False,
    }


# Keys in every shard's Parquet metadata: a shard explains itself without plan or manifest.
METADATA_FORMAT = "smoothkd.format"
METADATA_VERSION = "smoothkd.format_version"
METADATA_CODEC = "smoothkd.codec"
METADATA_POSITION_RULE = "smoothkd.position_rule"
METADATA_PLAN = "smoothkd.plan_fingerprint"
METADATA_SHARD = "smoothkd.shard_index"
