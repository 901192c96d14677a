"""docs/data.md says what the code does."""

from pathlib import Path

from pipeline.data.config import TEMPLATES, DataSettings
from pipeline.data.docstrings import DOCUMENT_WORDS, PACKAGES, SUMMARY_WORDS
from pipeline.data.layouts import LAYOUTS
from pipeline.data.templates import ALPACA_WITH_CONTEXT, ALPACA_WITHOUT_CONTEXT, SUMMARIZE

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")


def test_layouts_are_in_the_table_in_order() -> None:
    rows = [f"| `{layout.name}` | " for layout in LAYOUTS]
    places = [PAGE.index(row) for row in rows]
    assert places == sorted(places)


def test_templates_are_there_word_by_word() -> None:
    assert f"```\n{ALPACA_WITH_CONTEXT}\n```" in PAGE
    assert f"```\n{ALPACA_WITHOUT_CONTEXT}\n```" in PAGE
    for name, prompt in SUMMARIZE.items():
        assert "| `{}` | `{}` |".format(name, prompt.replace("\n", "\\n")) in PAGE
    assert all(f"| `{name}`" in PAGE for name in TEMPLATES)


def test_limits_are_the_defaults() -> None:
    settings = DataSettings(data="rows.jsonl")
    assert f"| `--max-prompt-tokens` | {settings.max_prompt_tokens} |" in PAGE
    assert f"| `--max-sequence-tokens` | {settings.max_sequence_tokens} |" in PAGE


def test_demo_rules_and_packages() -> None:
    assert "of {} to {} words, ending".format(*SUMMARY_WORDS) in PAGE
    assert "has {} to {} words in whole".format(*DOCUMENT_WORDS) in PAGE
    assert all(package in PAGE for package in PACKAGES)
    assert len(PACKAGES) == 12
