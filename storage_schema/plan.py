"""What a cache will hold: its inputs, settings and fingerprints, and the division into shards.

The plan is written first. Everything that decides the content of the cache is in it, so that
starting over an existing directory with anything different is refused field by field.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from storage_schema import layout
from storage_schema.documents import read_json, take
from storage_schema.errors import (
    CacheDamagedError,
    CacheError,
    CacheFormatError,
    CacheNotFoundError,
)
from storage_schema.inside import check_inside
from storage_schema.layout import (
    CODECS,
    FLOAT16_ROUNDED,
    FORMAT_NAME,
    FORMAT_VERSION,
    MANIFEST_FILE,
    MAX_EXAMPLES_PER_SHARD,
    MAX_PLAN_BYTES,
    MAX_VOCABULARY_SIZE,
    PLAN_FILE,
    SHARD_DIRECTORY,
    SUPPORT_KINDS,
)
from storage_schema.location import Location, locate

Section = dict[str, Any]


def fingerprint_examples(example_ids: Iterable[bytes]) -> str:
    """Return the SHA-256 (hex) over the 32-byte example ids in order: the dataset's identity."""
    digest = hashlib.sha256()
    for identifier in example_ids:
        digest.update(identifier)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Inputs and settings of one cache; every section is a JSON object.

    Attributes:
        teacher: name, fingerprint, adapter, dtype and vocabulary_rows of the teacher.
        tokenizer: vocabulary_fingerprint and vocabulary_size; ids in the cache are below it.
        template: name and fingerprint of the prompt template, and chat_template, its text for
            the students to take over, or null.
        dataset: name, num_examples, num_response_tokens, fingerprint (`fingerprint_examples`)
            and counts of what tokenisation dropped or cut.
        engine: name, route and package versions of what computed the log-probabilities.
        support: kind ("top_k" or "sampled"), k (at most that many entries a row), min_prob (none
            below it), entropy (whether the teacher's exact entropies are stored; false if
            absent); of a sampled support also num_samples (equal to k; min_prob is 0) and seed.
        limits: max_prompt_tokens and max_sequence_tokens.
        codec: how log-probabilities are kept, one of layout.CODECS.
        examples_per_shard: shard i holds examples [i * this, (i + 1) * this).
    """

    teacher: Section
    tokenizer: Section
    template: Section
    dataset: Section
    engine: Section
    support: Section
    codec: str = FLOAT16_ROUNDED
    limits: Section
    examples_per_shard: int

    def __post_init__(self) -> None:
        where = "plan"
        _check_range(take(self.dataset, "num_examples", int, where), "num_examples", 1, 2**40)
        _check_range(self.examples_per_shard, "examples_per_shard", 1, MAX_EXAMPLES_PER_SHARD)
        size = take(self.tokenizer, "vocabulary_size", int, where)
        _check_range(size, "vocabulary_size", 1, MAX_VOCABULARY_SIZE)
        take(self.tokenizer, "vocabulary_fingerprint", str, where)
        take(self.dataset, "fingerprint", str, where)
        if self.codec not in CODECS:
            raise CacheFormatError(
                f"plan: codec is {self.codec!r}, this release reads {', '.join(CODECS)}"
            )
        rows = self.teacher.get("vocabulary_rows", size)
        if not isinstance(rows, int) or isinstance(rows, bool):
            raise CacheDamagedError(f"plan: field 'vocabulary_rows' is {rows!r}, expected int")
        _check_range(rows, "vocabulary_rows", size, MAX_VOCABULARY_SIZE)
        _check_support(self.support)

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest token id the cache may hold."""
        return int(self.tokenizer["vocabulary_size"])

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the teacher's matrix: the softmax goes over these, padding rows included."""
        return int(self.teacher.get("vocabulary_rows", self.vocabulary_size))

    @property
    def support_kind(self) -> str:
        """One of layout.SUPPORT_KINDS."""
        return str(self.support["kind"])

    @property
    def stores_entropy(self) -> bool:
        """Whether the teacher's exact entropies are stored."""
        return bool(self.support.get("entropy", False))

    @property
    def schema(self) -> pa.Schema:
        """The columns of every shard."""
        return layout.schema(self.codec, self.support_kind, self.stores_entropy)

    @property
    def k(self) -> int:
        """The largest number of entries a row may have."""
        return int(self.support["k"])

    @property
    def min_prob(self) -> float:
        """Entries of a lower probability are not stored, but for the first of a row."""
        return float(self.support["min_prob"])

    @property
    def num_examples(self) -> int:
        """How many responses the finished cache holds."""
        return int(self.dataset["num_examples"])

    @property
    def num_shards(self) -> int:
        """How many shards the examples are divided into."""
        return -(-self.num_examples // self.examples_per_shard)

    def shard_examples(self, index: int) -> range:
        """Return which examples, by position in the dataset, shard `index` holds."""
        first = index * self.examples_per_shard
        return range(first, min(first + self.examples_per_shard, self.num_examples))

    def to_json(self) -> dict[str, Any]:
        """Return the content of plan.json."""
        return {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **asdict(self)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the plan's canonical JSON (sorted keys, no white space)."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _check_support(support: Section) -> None:
    kind = take(support, "kind", str, "plan")
    if kind not in SUPPORT_KINDS:
        raise CacheFormatError(
            f"plan: support kind is {kind!r}, this release reads {', '.join(SUPPORT_KINDS)}"
        )
    _check_range(take(support, "k", int, "plan"), "k", 1, MAX_VOCABULARY_SIZE)
    min_prob = support.get("min_prob")
    if isinstance(min_prob, bool) or not isinstance(min_prob, int | float) or not 0 <= min_prob < 1:
        raise CacheFormatError(f"plan: min_prob is {min_prob!r}, expected 0 <= min_prob < 1")
    take({"entropy": False, **support}, "entropy", bool, "plan")
    if kind != "sampled":
        return
    take(support, "seed", int, "plan")
    if take(support, "num_samples", int, "plan") != support["k"]:
        raise CacheFormatError(
            f"plan: num_samples is {support['num_samples']} and k {support['k']}, expected the same"
        )
    if min_prob != 0:
        raise CacheFormatError(
            f"plan: min_prob is {min_prob} of a sampled support, expected 0: dropping drawn ids "
            "would bias the estimate"
        )


def _check_range(value: int, name: str, low: int, high: int) -> None:
    if not low <= value <= high:
        raise CacheFormatError(f"plan: {name} is {value}, expected {low} to {high}")


_FIELD_KINDS: dict[str, type] = {"codec": str, "examples_per_shard": int}


def read_plan(cache: str | Location) -> Plan:
    """Return the plan of the cache at `cache`.

    Raises:
        CacheNotFoundError: there is no cache.
        CacheFormatError: it is of another format or version.
        CacheDamagedError: the plan alone is missing, is not readable, or holds other fields.
        CacheError: the object store refuses.
    """
    cache = locate(cache)
    path = cache / PLAN_FILE
    check_inside(cache, path)
    if not path.exists():
        refuse_lost_plan(cache)
        raise CacheNotFoundError(
            f"no logit cache at {cache}: {PLAN_FILE} is missing; precompute-logits makes one"
        )
    document = read_json(path, MAX_PLAN_BYTES)
    check_version(document, path)
    fields = {name: document.pop(name, None) for name in Plan.__annotations__}
    unknown = set(document) - {"format", "format_version"}
    if unknown:
        raise CacheDamagedError(f"{path}: unknown fields {sorted(unknown)}")
    for name in fields:
        take(fields, name, _FIELD_KINDS.get(name, dict), str(path))
    try:
        return Plan(**fields)
    except CacheError as error:
        raise type(error)(f"{path}: {error}") from error


def check_version(document: dict[str, Any], path: Location) -> None:
    """Refuse a JSON document of another format or version.

    Raises:
        CacheFormatError: with what was found and what this release reads.
    """
    name, version = document.get("format"), document.get("format_version")
    if name != FORMAT_NAME or version != FORMAT_VERSION:
        raise CacheFormatError(
            f"{path} is format {name!r} version {version!r}; this release reads "
            f"{FORMAT_NAME!r} version {FORMAT_VERSION}; install the release that wrote it"
        )


def refuse_lost_plan(cache: Location) -> None:
    """Refuse a directory that holds a cache but for its plan.

    Raises:
        CacheDamagedError: naming what is there.
    """
    names = {path.name for path in cache.iterdir()} if cache.is_dir() else set()
    there = sorted(names & {MANIFEST_FILE, SHARD_DIRECTORY})
    # Looked for last: another process may have published it, and then its shards, just now.
    if there and not (cache / PLAN_FILE).exists():
        raise CacheDamagedError(
            f"{cache} holds {' and '.join(there)}, but no {PLAN_FILE}: it was not copied whole, or "
            f"the file was deleted; copy {PLAN_FILE} there again, it is small"
        )
