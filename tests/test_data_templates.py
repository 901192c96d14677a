"""The exact wording of each template, and the records each refuses."""

import pytest
from tokenizer_factory import make_tokenizer

from pipeline.data.config import TEMPLATES
from pipeline.data.records import Record
from pipeline.data.templates import chat_template, fingerprint_template, render, render_chat
from pipeline.errors import ConfigError, DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENIZER = make_tokenizer(chat_template=CHATML)
SYSTEM, USER = {"role": "system", "content": "S"}, {"role": "user", "content": "Q"}
CONVERSATION = Record(None, None, "R", (SYSTEM, USER))
WITH_CONTEXT, WITHOUT = Record("I {context}", "C {instruction}", "R"), Record("I", None, "R")


@pytest.mark.parametrize(
    ("name", "record", "prompt", "response"),
    [
        (
            "alpaca",
            WITH_CONTEXT,
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            "### Instruction:\nI {context}\n\n### Input:\nC {instruction}\n\n### Response:\n",
            "R",
        ),
        (
            "alpaca",
            WITHOUT,
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\nI\n\n### Response:\n",
            "R",
        ),
        (
            "summarize",
            Record("I", "D {context}", "R"),
            "Article: D {context}\nSummarize the article. Summary:",
            " R",
        ),
        (
            "summarize-one-sentence",
            Record("I", "D", "R"),
            "Article: D\nSummarize the article in one sentence. Summary:",
            " R",
        ),
        ("plain", WITHOUT, "I", "R"),
        ("plain", Record("I", "C", "R"), "I\n\nC", "R"),
        ("plain", Record(None, None, "R"), "", "R"),
        ("chat", WITHOUT, "<|im_start|>user\nI<|im_end|>\n<|im_start|>assistant\n", "R"),
        (
            "chat",
            Record("I", "C", "R"),
            "<|im_start|>user\nI\n\nC<|im_end|>\n<|im_start|>assistant\n",
            "R",
        ),
        (
            "chat",
            CONVERSATION,
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
            "<|im_start|>assistant\n",
            "R",
        ),
        ("plain", Record("Q", None, "R", (USER,)), "Q", "R"),
    ],
)
def test_wording(name: str, record: Record, prompt: str, response: str) -> None:
    assert render(name, record, 1, TOKENIZER) == (prompt, response)


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("alpaca", CONVERSATION, r"row 4: --template alpaca.* 2 messages.*--template chat"),
        ("summarize", CONVERSATION, r"row 4: --template summarize.* 2 messages"),
        ("plain", CONVERSATION, r"row 4: --template plain.* 2 messages"),
        ("summarize", WITHOUT, r"row 4: --template summarize needs a document.*--context-field"),
        ("alpaca", Record(None, None, "R"), r"row 4: --template alpaca needs an instr.*plain"),
        ("chat", Record(None, None, "R"), r"row 4: --template chat needs an instruction.*plain"),
    ],
)
def test_records_that_do_not_fit(name: str, record: Record, message: str) -> None:
    with pytest.raises(DataError, match=message):
        render(name, record, 4, TOKENIZER)


def test_chat_without_a_chat_template() -> None:
    with pytest.raises(ConfigError, match=r"--template chat: the tokenizer .* has no chat templ"):
        chat_template(make_tokenizer())


def test_chat_template_that_refuses_a_role() -> None:
    tokenizer = make_tokenizer(
        chat_template="{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
    )
    with pytest.raises(DataError, match=r"row 4: .* roles system, user: System role not supp"):
        render("chat", CONVERSATION, 4, tokenizer)


def test_a_template_that_prints_the_date_prints_a_fixed_one() -> None:
    tokenizer = make_tokenizer(chat_template="{{ strftime_now('%d %b %Y') }}")
    assert render_chat(tokenizer, [USER], 1) == "26 Jul 2024"


def test_fingerprints_differ_by_name_and_text() -> None:
    prints = {fingerprint_template(name, TOKENIZER) for name in TEMPLATES}
    other = make_tokenizer(chat_template=CHATML + " ")
    prints |= {fingerprint_template(name, other) for name in TEMPLATES}
    assert len(prints) == len(TEMPLATES) + 1
    assert all(len(value) == 64 for value in prints)
    assert fingerprint_template("chat", make_tokenizer(chat_template=CHATML)) in prints
