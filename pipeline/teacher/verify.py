"""verify-cache: is every byte what was written, and what does the cache say of its teacher."""

from typing import Any

from pipeline.progress import Progress
from pipeline.teacher.verify_config import VerifyCacheConfig
from pipeline.teacher.verify_table import format_report
from storage_schema import Response
from storage_schema.audit import CacheAudit
from storage_schema.statistics import LOW_STORED_MASS, CacheStatistics

# Above it, a difference from the cache is more than low-precision noise of two engines.
LARGE_DIFFERENCE_NATS = 0.1


def run(config: VerifyCacheConfig) -> dict[str, Any]:
    """Check the cache, print what it holds, and return the same for JSON.

    Raises:
        CacheError: the cache is damaged, unfinished or absent; nothing else is reported then.
        ModelError: the teacher of --rescore is not the one that made the cache.
    """
    audit = CacheAudit(config.cache, allow_incomplete=config.allow_incomplete)
    checkpoint = None
    if config.teacher is not None:
        from pipeline.teacher.rescore import find_teacher

        checkpoint = find_teacher(config, audit.plan)
    statistics, sample = _read(audit, config.rescore)
    result = _summary(audit, statistics)
    if checkpoint is not None:
        from pipeline.teacher.rescore import rescore

        result["rescored"] = rescore(config, checkpoint, audit.plan, sample)
    result["warnings"] = _warnings(result)
    print(format_report(result))
    return result


def _read(audit: CacheAudit, num_sampled: int) -> tuple[CacheStatistics, list[Response]]:
    """Read everything once; return its statistics and the evenly spaced sample."""
    statistics, sample = CacheStatistics(), []
    positions = set(spaced_positions(num_sampled, audit.num_examples))
    with Progress("verify-cache", audit.num_examples, "responses") as progress:
        for responses in audit.read():
            first = statistics.num_examples
            sample += [r.copy() for i, r in enumerate(responses, first) if i in positions]
            statistics.add(responses)
            progress.advance(len(responses))
    return statistics, sample


def spaced_positions(wanted: int, available: int) -> list[int]:
    """Return `wanted` positions below `available`, evenly spaced from 0; all if there are fewer."""
    num = min(wanted, available)
    return [i * available // num for i in range(num)]


def _summary(audit: CacheAudit, statistics: CacheStatistics) -> dict[str, Any]:
    summary, num_bytes = statistics.summary(), audit.num_bytes
    complete = audit.manifest is not None
    return {
        "cache": str(audit.path),
        "complete": complete,
        "fingerprint": audit.manifest.fingerprint if audit.manifest is not None else None,
        "plan_fingerprint": audit.plan.fingerprint,
        "teacher_name": audit.plan.teacher.get("name"),
        "support": audit.plan.support,
        "codec": audit.plan.codec,
        "num_shards": len(audit.shards),
        "num_shards_planned": audit.plan.num_shards,
        "num_examples_planned": audit.plan.num_examples,
        "num_bytes": num_bytes,
        "bytes_per_response_token": num_bytes / summary["num_response_tokens"],
        "bytes_per_entry": num_bytes / summary["num_entries"],
        "bits_per_entry": 8 * num_bytes / summary["num_entries"],
        **summary,
        "strangers": audit.strangers,
        "rescored": None,
    }


def _warnings(result: dict[str, Any]) -> list[str]:
    warnings = []
    if not result["complete"]:
        warnings.append(
            f"UNFINISHED: {result['num_shards']} of {result['num_shards_planned']} shards are "
            "there, every number is of those alone and no checksum was compared (there is no "
            "manifest); train-student refuses this cache; precompute-logits continues it"
        )
    if result["strangers"]:
        shown = ", ".join(result["strangers"][:5])
        warnings.append(
            f"{len(result['strangers'])} files here are no part of the cache and are ignored: "
            f"{shown}{', ...' if len(result['strangers']) > 5 else ''}"
        )
    if result["renormalized"] is not None and result["stored_mass"]["mean"] < LOW_STORED_MASS:
        warnings.append(_sharpening(result))
    warnings += _drawn_from_another(result["entropy"])
    if result["rescored"] is not None:
        warnings += _differences(result["rescored"])
    return warnings


def _sharpening(result: dict[str, Any]) -> str:
    teacher, renormalized = result["teacher"], result["renormalized"]
    return (
        f"the entries hold {result['stored_mass']['mean']:.4f} of the teacher's probability on "
        "average, so the tail treatment renormalize would sharpen the teacher: it multiplies "
        f"probabilities by {renormalized['factor']:.3f} (1 / mean stored mass) and lies "
        f"{renormalized['kl_nats']:.4f} nats a token from the teacher (KL(renormalized || teacher) "
        "= mean of -ln stored mass); the mean confidence goes from "
        f"{teacher['mean_confidence']:.4f} to {renormalized['mean_confidence']:.4f}, ECE from "
        f"{teacher['ece']:.4f} to {renormalized['ece']:.4f}. Train with --tail ghost or --tail "
        "label, or make a cache with a larger --k or a smaller --min-prob"
    )


def _drawn_from_another(entropy: dict[str, float | None]) -> list[str]:
    stored, drawn = entropy["mean_nats"], entropy["mean_nats_from_draws"]
    if stored is None or drawn is None or abs(drawn - stored) <= LARGE_DIFFERENCE_NATS:
        return []
    return [
        f"the drawn ids have {drawn:.4f} nats of surprise (-ln p) on average, the stored entropies "
        f"a mean of {stored:.4f}; of ids drawn from the teacher both are its entropy: too few rows "
        "to tell, or they were drawn from another distribution"
    ]


def _differences(rescored: dict[str, Any]) -> list[str]:
    found, noise = rescored["cache"]["label"]["mean"], rescored["repeat"]["label"]["mean"]
    if found <= max(LARGE_DIFFERENCE_NATS, 3 * noise):
        return []
    return [
        f"the cache's label log-probabilities lie {found:.4f} nats on average from what the engine "
        f"says now, its own repeat noise is {noise:.4f}: the cache was made under other settings, "
        "by an engine that computes something else, or its rows are wrong"
    ]
