"""The settings of a dataset, the same for every stage that reads one. Standard library only."""

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.settings import setting

TEMPLATES = ("alpaca", "chat", "summarize", "summarize-one-sentence", "plain")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which rows to read, how to word them, and how long an example may be."""

    data: str = setting(
        "Dataset: a .jsonl, .json, .csv or .parquet file, a folder or hub name with an optional "
        ":config and @split, or demo:docstrings."
    )
    template: str = setting(
        "Wording of prompt and response; chat is the tokenizer's own.", "chat", TEMPLATES
    )
    prompt_field: str | None = setting(
        "Field with the instruction, when the layout is not a known one.", None
    )
    context_field: str | None = setting(
        "Field with the input or document; only with --prompt-field.", None
    )
    response_field: str | None = setting("Field with the response; with --prompt-field.", None)
    max_examples: int | None = setting("Read only the first N rows.", None)
    max_prompt_tokens: int = setting("Drop an example whose prompt is longer than this.", 1536)
    max_sequence_tokens: int = setting(
        "Cut the response of an example that is longer than this with its prompt.", 2048
    )

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("--data is '': expected a file, a folder, a hub name or a demo")
        if self.template not in TEMPLATES:
            raise ConfigError(
                f"--template {self.template!r} is unknown: choose one of {', '.join(TEMPLATES)}"
            )
        self._check_fields()
        self._check_limits()

    def _check_fields(self) -> None:
        if bool(self.prompt_field) != bool(self.response_field):
            raise ConfigError(
                f"--prompt-field is {self.prompt_field!r} and --response-field is "
                f"{self.response_field!r}: name both, or neither for a known layout"
            )
        if self.context_field and not self.prompt_field:
            raise ConfigError(
                f"--context-field {self.context_field!r} needs --prompt-field and --response-field"
            )
        named = [self.prompt_field, self.context_field, self.response_field]
        repeated = next((field for field in named if field and named.count(field) > 1), None)
        if repeated:
            raise ConfigError(
                f"{repeated!r} is named more than once by --prompt-field, --context-field and "
                "--response-field: name a different field with each"
            )

    def _check_limits(self) -> None:
        if self.max_examples is not None and self.max_examples < 1:
            raise ConfigError(f"--max-examples is {self.max_examples}: expected at least 1")
        if self.max_prompt_tokens < 1:
            raise ConfigError(
                f"--max-prompt-tokens is {self.max_prompt_tokens}: expected at least 1"
            )
        if self.max_prompt_tokens >= self.max_sequence_tokens:
            raise ConfigError(
                f"--max-prompt-tokens {self.max_prompt_tokens} leaves no room for a response: "
                f"it must be below --max-sequence-tokens {self.max_sequence_tokens}"
            )
