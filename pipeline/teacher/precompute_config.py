"""Settings of precompute-logits."""

from dataclasses import dataclass
from typing import Any

from pipeline.data.config import DataSettings
from pipeline.errors import ConfigError
from pipeline.models.loading import DTYPES
from pipeline.settings import DRY_RUN, setting
from pipeline.teacher.engine_config import EngineSettings
from storage_schema.layout import CODECS, FLOAT16_ROUNDED, SUPPORT_KINDS


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig(DataSettings, EngineSettings):
    """What the teacher pass reads, how it scores, and where the cache goes."""

    teacher: str = setting("Teacher: a model or adapter directory, or a hub name.")
    output: str = setting(
        "Directory of the logit cache, or a URL like s3://bucket/cache; an unfinished one is "
        "continued."
    )
    support: str = setting(
        "What is stored of a row: the k most probable entries, or draws from all of them.",
        "top_k",
        SUPPORT_KINDS,
    )
    k: int = setting("Most entries stored per response token (support top_k).", 128)
    min_prob: float = setting(
        "Entries below this probability are not stored; their mass joins the tail (support top_k).",
        1e-3,
    )
    num_samples: int = setting("Draws per response token (support sampled).", 50)
    seed: int = setting("Of the draws (support sampled).", 0)
    store_entropy: bool = setting("Also store the entropy of every row.", False)
    codec: str = setting(
        "How log-probabilities are stored; bfloat16-logits is exact for a bfloat16 teacher.",
        FLOAT16_ROUNDED,
        CODECS,
    )
    dtype: str = setting(
        "Precision of the teacher; auto takes the checkpoint's own.",
        "auto",
        DTYPES,
    )
    examples_per_shard: int = setting("Responses in one shard, the unit of resuming.", 2048)
    num_partitions: int = setting("Processes that share the shards, one engine each.", 1)
    partition: int = setting("Which of them this is, from 0: it writes every N-th shard.", 0)
    ray: bool = setting("Run an engine on every free GPU of a running Ray cluster.", False)
    dry_run: bool = setting(DRY_RUN, False)

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: naming the flag and its value.
        """
        DataSettings.__post_init__(self)
        EngineSettings.__post_init__(self)
        for name in ("k", "num_samples", "examples_per_shard", "num_partitions"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.min_prob < 1:
            raise ConfigError(f"--min-prob is {self.min_prob}, expected at least 0 and below 1")
        if not 0 <= self.partition < self.num_partitions:
            raise ConfigError(
                f"--partition is {self.partition}, expected 0 to {self.num_partitions - 1} as "
                f"--num-partitions is {self.num_partitions}"
            )
        if self.ray and self.num_partitions > 1:
            raise ConfigError(
                f"--ray divides the shards itself, --num-partitions is {self.num_partitions}: "
                "give one of them"
            )

    def support_section(self) -> dict[str, Any]:
        """Return the plan's section support."""
        section: dict[str, Any] = {"kind": "top_k", "k": self.k, "min_prob": self.min_prob}
        if self.support == "sampled":
            section = {"kind": "sampled", "k": self.num_samples, "min_prob": 0.0}
            section |= {"num_samples": self.num_samples, "seed": self.seed}
        return section | {"entropy": self.store_entropy}
