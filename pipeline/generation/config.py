"""The settings of generation, the same for every command that generates. Standard library only."""

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.models.engines import ENGINES
from pipeline.settings import setting


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What generates, how tokens are chosen, and which texts end an answer."""

    engine: str = setting("What generates; auto takes vllm where it is installed.", "auto", ENGINES)
    temperature: float = setting("Draw at this temperature; 0 takes the most probable token.", 0.0)
    top_p: float = setting("Draw among the most probable tokens of this mass together.", 1.0)
    seed: int = setting("Seed of the draws; each depends on it, the prompt and the sample only.", 0)
    stop: tuple[str, ...] = setting("Text that ends an answer and is cut off; repeatable.", ())
    gpu_memory_utilization: float = setting(
        "Share of GPU memory the engine may take (engine vllm).", 0.85
    )

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"--engine {self.engine!r}: must be one of {', '.join(ENGINES)}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"--temperature {self.temperature} must be at least 0 and finite")
        for name in ("top_p", "gpu_memory_utilization"):
            if not 0 < getattr(self, name) <= 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} {getattr(self, name)} must be above 0, at most 1")
        if self.top_p < 1 and self.temperature == 0:
            raise ConfigError(
                f"--top-p {self.top_p} has no effect at --temperature 0; drop it, or set "
                "--temperature above 0"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed {self.seed} must be in [0, 2^63)")
        self._check_stop()

    def _check_stop(self) -> None:
        if "" in self.stop:
            raise ConfigError("--stop '' would end every answer at once: give a text")
        if r"\n" in self.stop:
            raise ConfigError(
                r"--stop '\n' is a backslash and an n, which no answer holds: for a line break "
                r"write --stop $'\n' in the shell, or stop: [" + r'"\n"' + "] in YAML"
            )
