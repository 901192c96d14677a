"""The settings of generate-responses; standard library only, read by --help."""

from dataclasses import dataclass

from pipeline.data.config import DataSettings
from pipeline.errors import ConfigError
from pipeline.generation.config import GenerationSettings
from pipeline.models.loading import DTYPES
from pipeline.settings import check_local, setting


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(DataSettings, GenerationSettings):
    """Which model answers which prompts, and how.

    Raises:
        ConfigError: a setting is out of range or contradicts another one.
    """

    model: str = setting("Model that answers: a model or adapter directory, or a hub name.")
    output: str = setting("Directory for responses.jsonl; an unfinished one is continued.")
    max_new_tokens: int = setting(
        "Longest response in tokens; --max-sequence-tokens limits it with its prompt, too.", 512
    )
    samples_per_prompt: int = setting("Responses to each prompt; above 1 with --temperature.", 1)
    keep_cut: bool = setting("Keep responses that the token limit cut, instead of dropping.", False)
    batch_size: int = setting("Responses in one batch (engine transformers).", 16)
    dtype: str = setting("Number type of the weights; auto is the stored one.", "auto", DTYPES)
    tensor_parallel_size: int = setting("GPUs the model is spread over (engine vllm).", 1)
    revision: str | None = setting("Branch, tag or commit of a model on the hub.", None)
    trust_remote_code: bool = setting("Run model code shipped with the checkpoint.", False)

    def __post_init__(self) -> None:
        DataSettings.__post_init__(self)
        GenerationSettings.__post_init__(self)
        check_local("--output", self.output)
        for name in ("max_new_tokens", "samples_per_prompt", "batch_size", "tensor_parallel_size"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} {getattr(self, name)} must be at least 1")
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype!r}: must be one of {', '.join(DTYPES)}")
        if self.samples_per_prompt > 1 and self.temperature == 0:
            raise ConfigError(
                f"--samples-per-prompt {self.samples_per_prompt} at --temperature 0 would give "
                "equal responses; set --temperature above 0"
            )
