"""The teacher pass: dataset -> logit cache. Resumable at any moment, a shard at a time."""

import time
from typing import Any

from pipeline.data.templates import chat_template
from pipeline.data.tokenization import Example, TokenizedDataset, tokenize_dataset
from pipeline.errors import ConfigError, ModelError
from pipeline.models.checkpoint import (
    Checkpoint,
    describe_place,
    find_checkpoint,
    fingerprint_checkpoint,
    max_positions,
    read_model_config,
    vocabulary_rows,
)
from pipeline.models.engines import pick_engine
from pipeline.models.loading import load_tokenizer
from pipeline.models.vocabulary import fingerprint_vocabulary, vocabulary_size
from pipeline.run_record import installed_versions
from pipeline.stopping import stopped_by_signals
from pipeline.teacher.dry_run import dry_run_pass
from pipeline.teacher.engine import (
    adapter_use,
    check_route,
    describe_engine,
    pick_route,
)
from pipeline.teacher.expectations import check_row_groups
from pipeline.teacher.pass_report import PassReport
from pipeline.teacher.precompute_config import PrecomputeConfig
from pipeline.teacher.scoring import start_engine
from pipeline.teacher.shard_pass import write_shards
from storage_schema import (
    LogitCache,
    Plan,
    claim_plan,
    finish_cache,
    missing_shards,
    open_cache,
)
from storage_schema.claim import check_place
from storage_schema.errors import CacheNotFoundError, CacheUnfinishedError
from storage_schema.layout import BFLOAT16_LOGITS, FLOAT16_ROUNDED
from storage_schema.location import Location, locate, snapshot
from storage_schema.passes import record_pass
from storage_schema.plan import read_plan
from storage_schema.publish import scratch_path


def run(config: PrecomputeConfig) -> dict[str, Any]:
    """Write, or continue, the cache or a partition of it, and return a summary.

    Raises:
        SmoothkdError: anything wrong with data, model, settings or what is already at the
            output, before the engine starts; a full disk or a signal at any moment.
    """
    if config.dry_run:
        return dry_run_pass(config)
    start = time.monotonic()
    engine_name, reason = pick_engine(config.engine)
    cache = locate(config.output)
    snapshot(cache)  # an object store that refuses is found out before the work
    check_place(cache)
    route, route_reason = pick_route(engine_name, config.vllm_route, _planned_route(cache))
    check_route(route, config.support_section(), config.codec)
    checkpoint = find_checkpoint(config.teacher, config.revision)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
    before = time.monotonic()
    dataset = tokenize_dataset(config, tokenizer)
    tokenization_seconds = time.monotonic() - before
    print(f"{dataset.describe()}\n  tokenised in {tokenization_seconds:.1f} s")
    plan = make_plan(config, checkpoint, tokenizer, dataset, engine_name, route)
    check_row_groups(plan.support, plan.examples_per_shard, dataset.examples)
    with stopped_by_signals(lambda: _describe_rest(cache, plan)):
        claim_plan(cache, plan)
        missing = missing_shards(cache, plan)
        mine = [i for i in missing if i % config.num_partitions == config.partition]
        account = None
        if mine:
            print(
                f"engine: {engine_name} ({reason}), route {route} ({route_reason}); "
                f"{plan.num_shards - len(missing)} of {plan.num_shards} shards are there"
            )
            account = _write_missing(config, checkpoint, plan, dataset.examples, mine)
            record_pass(cache, {**account, "shards": len(mine), "versions": installed_versions()})
        still_missing = missing_shards(cache, plan)
        finished = None if still_missing else _open_or_finish(cache, plan)
    summary = {
        "cache": str(cache),
        "tokenization": dataset.counts,
        "tokenization_seconds": tokenization_seconds,
        "shards_written": len(mine),
        "shards_missing": len(still_missing),
        "seconds": time.monotonic() - start,
        "pass": account,
    }
    if finished is None:
        print(
            f"partition {config.partition} of {config.num_partitions} is done; "
            f"{_describe_rest(cache, plan)}"
        )
        return summary
    return {**summary, **_describe_cache(finished, len(mine))}


def _planned_route(cache: Location) -> str | None:
    """Return the route of the cache that is continued, or None when it is new."""
    try:
        route: str | None = read_plan(cache).engine.get("route")
        return route
    except CacheNotFoundError:
        return None


def make_plan(
    config: PrecomputeConfig,
    checkpoint: Checkpoint,
    tokenizer: Any,
    dataset: TokenizedDataset,
    engine_name: str,
    route: str,
) -> Plan:
    """Return the plan: everything that decides the content of the cache.

    Raises:
        ModelError: the teacher has fewer logits than its tokenizer has tokens, or takes no
            sequence as long as the longest example.
        ConfigError: k exceeds the vocabulary, or the codec does not go with the number type.
    """
    size, rows = vocabulary_size(tokenizer), vocabulary_rows(checkpoint)
    check_teacher(config, checkpoint, dataset, size, rows)
    model_config = read_model_config(checkpoint)
    dtype = config.dtype
    if dtype == "auto":
        dtype = model_config.get("dtype") or model_config.get("torch_dtype") or "float32"
    if config.codec == BFLOAT16_LOGITS and dtype != "bfloat16":
        raise ConfigError(
            f"--codec {BFLOAT16_LOGITS} needs logits that are bfloat16, the teacher computes in "
            f"{dtype}; use --codec {FLOAT16_ROUNDED}, or --dtype bfloat16"
        )
    return Plan(
        teacher={
            "name": describe_place(checkpoint.name),
            "fingerprint": fingerprint_checkpoint(checkpoint),
            "adapter": adapter_use(checkpoint, engine_name, route)[0],
            "revision": config.revision,
            "dtype": dtype,
            "quantization": model_config.get("quantization_config"),
            "vocabulary_rows": rows,
        },
        tokenizer={
            "vocabulary_fingerprint": fingerprint_vocabulary(tokenizer),
            "vocabulary_size": size,
        },
        template={
            "name": config.template,
            "fingerprint": dataset.template_fingerprint,
            # The students of the cache take it over, so that their prompts are these prompts.
            "chat_template": chat_template(tokenizer) if config.template == "chat" else None,
        },
        dataset={
            "name": describe_place(config.data),
            "num_examples": len(dataset.examples),
            "num_response_tokens": sum(
                len(example.input_ids) - example.response_start for example in dataset.examples
            ),
            "fingerprint": dataset.fingerprint,
            "counts": dataset.counts,
        },
        engine=describe_engine(engine_name, route, config.tensor_parallel_size),
        support=config.support_section(),
        codec=config.codec,
        limits={
            "max_prompt_tokens": config.max_prompt_tokens,
            "max_sequence_tokens": config.max_sequence_tokens,
        },
        examples_per_shard=config.examples_per_shard,
    )


def check_teacher(
    config: PrecomputeConfig,
    checkpoint: Checkpoint,
    dataset: TokenizedDataset,
    size: int,
    rows: int,
) -> None:
    """Refuse a teacher that does not fit its tokenizer (size), k or the longest example.

    Raises:
        ModelError, ConfigError: naming both values.
    """
    if rows < size:
        raise ModelError(f"{checkpoint.name} has {rows} logits for {size} tokens of its tokenizer")
    if config.support == "top_k" and config.k > size:
        raise ConfigError(f"--k is {config.k}, the vocabulary has {size} tokens")
    limit = max_positions(checkpoint)
    longest = max(len(example.input_ids) for example in dataset.examples)
    if limit is not None and longest + 1 > limit:
        raise ModelError(
            f"the longest example has {longest} tokens, {checkpoint.name} takes {limit} with one "
            f"to spare; lower --max-sequence-tokens to {limit - 1} and --max-prompt-tokens below it"
        )


def _write_missing(
    config: PrecomputeConfig,
    checkpoint: Checkpoint,
    plan: Plan,
    examples: list[Example],
    shards: list[int],
) -> dict[str, float | int]:
    """Write the shards, on this machine or on a Ray cluster; return where the time went."""
    cache = locate(config.output)
    report = PassReport(cache, plan, examples, shards)
    if config.ray:
        from pipeline.teacher.ray_pass import write_shards_on_ray

        with report:
            times = write_shards_on_ray(config, plan, examples, shards, report)
        return report.finish(times)
    merged_path = scratch_path(cache / "merged-teacher")
    start = time.monotonic()
    engine = start_engine(str(plan.engine["name"]), config, checkpoint, plan, examples, merged_path)
    seconds = time.monotonic() - start
    try:
        with report:
            times = write_shards(
                engine, cache, plan, examples, shards, report.advance, report.published
            )
    finally:
        engine.close()
    times.engine_start = seconds
    return report.finish(times)


def _open_or_finish(cache: Location, plan: Plan) -> LogitCache:
    try:
        return open_cache(cache)
    except CacheUnfinishedError:
        finish_cache(cache, plan)
        return open_cache(cache)


def _describe_rest(cache: Location, plan: Plan) -> str:
    missing = missing_shards(cache, plan)
    if not missing:
        return f"all {plan.num_shards} shards are in {cache}: run the same command to finish it"
    return (
        f"{plan.num_shards - len(missing)} of {plan.num_shards} shards are in {cache}, "
        f"{len(missing)} are missing (first: {missing[0]}): the same command, or that of another "
        "partition, continues with them"
    )


def _describe_cache(cache: LogitCache, written: int) -> dict[str, Any]:
    manifest = cache.manifest
    tokens = manifest.num_response_tokens
    print(
        f"cache: {cache.path} holds {manifest.num_examples} responses, {tokens} response tokens in "
        f"{len(manifest.shards)} shards ({written} written now)\n"
        f"       {manifest.num_bytes / tokens:.1f} bytes and {manifest.num_entries / tokens:.1f} "
        f"entries per response token"
    )
    return {
        "fingerprint": cache.fingerprint,
        "num_examples": manifest.num_examples,
        "num_response_tokens": tokens,
        "num_bytes": manifest.num_bytes,
        "bytes_per_response_token": manifest.num_bytes / tokens,
        "entries_per_response_token": manifest.num_entries / tokens,
    }
