"""The settings of an engine, the same for every command that runs one. Standard library only."""

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.models.engines import ENGINES
from pipeline.settings import setting

# How rows leave vLLM: scored inside its workers, or through its public interface.
WORKER_HOOK, PROMPT_LOGPROBS = "worker_hook", "prompt_logprobs"
VLLM_ROUTES = ("auto", WORKER_HOOK, PROMPT_LOGPROBS)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Which engine computes the log-probabilities, and what it may take of the machine."""

    engine: str = setting(
        "What computes the log-probabilities; auto takes vllm where it is installed.",
        "auto",
        ENGINES,
    )
    vllm_route: str = setting(
        "How rows leave vLLM; auto takes the faster worker_hook where it knows the version.",
        "auto",
        VLLM_ROUTES,
    )
    batch_tokens: int = setting("Positions per forward pass (engine transformers).", 4096)
    tensor_parallel_size: int = setting("GPUs the teacher is spread over (engine vllm).", 1)
    gpu_memory_utilization: float = setting(
        "Share of GPU memory the engine may take (engine vllm).", 0.85
    )
    revision: str | None = setting("Branch, tag or commit of a teacher on the hub.", None)
    trust_remote_code: bool = setting("Run model code shipped with the teacher.", False)

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "tensor_parallel_size"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} is {getattr(self, name)}, expected at least 1")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"--gpu-memory-utilization is {self.gpu_memory_utilization}, expected over 0, "
                "at most 1"
            )
