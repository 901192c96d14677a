"""Settings of precompute-logits."""

from dataclasses import dataclass

from pipeline.data.config import DataSettings
from pipeline.errors import ConfigError
from pipeline.settings import setting


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig(DataSettings):
    """What the teacher pass reads, how it scores, and where the cache goes."""

    teacher: str = setting("Teacher: a model or adapter directory, or a hub name.")
    output: str = setting("Directory of the logit cache; an unfinished one is continued.")
    engine: str = setting(
        "What computes the log-probabilities; auto takes vllm where it is installed.",
        "auto",
        ("auto", "vllm", "transformers"),
    )
    k: int = setting("Most entries stored per response token.", 64)
    min_prob: float = setting(
        "Entries below this probability are not stored; their mass joins the tail.", 1e-4
    )
    dtype: str = setting(
        "Precision of the teacher; auto takes the checkpoint's own.",
        "auto",
        ("auto", "float32", "bfloat16", "float16"),
    )
    examples_per_shard: int = setting("Responses in one shard, the unit of resuming.", 2048)
    batch_tokens: int = setting("Positions per forward pass (engine transformers).", 4096)
    tensor_parallel_size: int = setting("GPUs the teacher is spread over (engine vllm).", 1)
    gpu_memory_utilization: float = setting(
        "Share of GPU memory the engine may take (engine vllm).", 0.85
    )
    revision: str | None = setting("Branch, tag or commit of a teacher on the hub.", None)
    trust_remote_code: bool = setting("Run model code shipped with the teacher.", False)

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: naming the flag and its value.
        """
        super().__post_init__()
        for name in ("k", "examples_per_shard", "batch_tokens", "tensor_parallel_size"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.min_prob < 1:
            raise ConfigError(f"--min-prob is {self.min_prob}, expected at least 0 and below 1")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"--gpu-memory-utilization is {self.gpu_memory_utilization}, expected over 0, "
                "at most 1"
            )
