"""The contract between the stages: a cache of teacher log-probabilities on disk.

    cache/plan.json                    written first: inputs, settings, division into shards
    cache/shards/shard-00000.parquet   one row a response, each file published whole
    cache/manifest.json                written last: counts, lengths, checksums

Row t of a response is the teacher's distribution for token input_ids[response_start + t].
docs/storage-format.md is the specification. Needs numpy and pyarrow, and fsspec
for a cache on an object store: wherever a cache is named, a URL like s3://bucket/cache may stand.
"""

from storage_schema.claim import claim_plan
from storage_schema.manifest import Manifest
from storage_schema.order import BlockOrder
from storage_schema.plan import Plan, fingerprint_examples
from storage_schema.reader import LogitCache, open_cache
from storage_schema.response import Response, example_id
from storage_schema.rows import response_from_rows
from storage_schema.writer import finish_cache, missing_shards, write_shard

__all__ = [
    "BlockOrder",
    "LogitCache",
    "Manifest",
    "Plan",
    "Response",
    "claim_plan",
    "example_id",
    "finish_cache",
    "fingerprint_examples",
    "missing_shards",
    "open_cache",
    "response_from_rows",
    "write_shard",
]
