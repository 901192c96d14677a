"""How the KL term treats the cached support; standard library only, checked where it is made."""

from dataclasses import dataclass

from pipeline.errors import ConfigError

TAILS = ("renormalize", "ghost", "label")


@dataclass(frozen=True, slots=True, kw_only=True)
class KlSettings:
    """The choices about the KL term that are made at training time, never by the cache.

    Attributes:
        tail: what becomes of the teacher mass outside the support, one of TAILS (docs/losses.md).
        temperature: T > 0, divides teacher log-probabilities and student logits in the KL only.
        top_k: keep the k' largest entries of each row, at least 1; None keeps all.
        min_prob: drop entries below this probability, in [0, 1); a row keeps at least one.

    Raises:
        ConfigError: a value is out of range, or the tail needs a normaliser that a top-k
            support does not hold (ghost and label at a temperature other than 1).
    """

    tail: str = "renormalize"
    temperature: float = 1.0
    top_k: int | None = None
    min_prob: float = 0.0

    def __post_init__(self) -> None:
        if self.tail not in TAILS:
            raise ConfigError(f"--tail {self.tail!r} is unknown: one of {', '.join(TAILS)}")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"--temperature {self.temperature} must be above 0 and finite")
        if self.tail != "renormalize" and self.temperature != 1:
            raise ConfigError(
                f"--tail {self.tail} with --temperature {self.temperature} is not possible: the "
                "tempered tail mass needs the teacher's full distribution, which the cache does "
                "not hold; use --temperature 1 or --tail renormalize"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"--top-k {self.top_k} must be at least 1 (leave it out to keep all)")
        if not 0 <= self.min_prob < 1:
            raise ConfigError(f"--min-prob {self.min_prob} must be in [0, 1)")
