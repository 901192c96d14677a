"""Settings of a dataset: each contradiction is refused with the flag and the value."""

import pytest

from pipeline.data.config import DataSettings
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": ""}, r"--data is ''"),
        (
            {"template": "vicuna"},
            r"'vicuna' is unknown.*alpaca, chat, summarize, summarize-one.*, plain",
        ),
        ({"prompt_field": "q"}, r"--prompt-field is 'q' and --response-field is None"),
        ({"response_field": "a"}, r"--prompt-field is None and --response-field is 'a'"),
        ({"context_field": "c"}, r"--context-field 'c' needs --prompt-field"),
        (
            {"prompt_field": "a", "response_field": "a"},
            r"'a' is named more than once by --prompt-field, --context-field and --response-field",
        ),
        (
            {"prompt_field": "q", "context_field": "a", "response_field": "a"},
            r"'a' is named more than once",
        ),
        ({"max_examples": 0}, r"--max-examples is 0"),
        ({"max_prompt_tokens": 0}, r"--max-prompt-tokens is 0"),
        ({"max_prompt_tokens": 64, "max_sequence_tokens": 64}, r"64 leaves no room.*64"),
    ],
)
def test_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataSettings(**{"data": "rows.jsonl", **fields})


def test_defaults() -> None:
    settings = DataSettings(data="rows.jsonl")
    assert (settings.template, settings.max_prompt_tokens, settings.max_sequence_tokens) == (
        "chat",
        1536,
        2048,
    )
