"""Word a record as a prompt text and a response text.

The two are tokenised apart, so a template decides where the white space between them goes.
Special tokens are tokenisation's, except those a chat template writes itself.
"""

import hashlib
import json
from datetime import date
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from pipeline.data.records import Record
from pipeline.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALPACA_WITH_CONTEXT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
)
ALPACA_WITHOUT_CONTEXT = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
# The prompts of arXiv 2502.11306's evaluation, on CNN/DailyMail and on XSum.
SUMMARIZE = {
    "summarize": "Article: {context}\nSummarize the article. Summary:",
    "summarize-one-sentence": (
        "Article: {context}\nSummarize the article in one sentence. Summary:"
    ),
}
SUMMARIZE_RESPONSE = " {response}"
PLAIN = "{instruction}\n\n{context}"
# Some chat templates print today's date; a fixed one keeps two days' examples the same.
TEMPLATE_DATE = date(2024, 7, 26)


def render(
    name: str, record: Record, number: int, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[str, str]:
    """Return the prompt text and the response text of a record.

    Args:
        name: one of pipeline.data.config.TEMPLATES.
        record: what to word.
        number: the record's row, counted from 1, for messages.
        tokenizer: its chat template is the wording of "chat".

    Raises:
        DataError: the record has not what the template needs.
        ConfigError: "chat" and a tokenizer without a chat template.
    """
    if name == "chat":
        return render_chat(tokenizer, _messages(record, number), number), record.response
    if record.messages is not None and record.instruction is None:
        raise DataError(
            f"row {number}: --template {name} cannot word a conversation of "
            f"{len(record.messages)} messages before the response; use --template chat"
        )
    if name == "plain":
        return _joined(record), record.response
    if name in SUMMARIZE:
        if record.context is None:
            raise DataError(
                f"row {number}: --template {name} needs a document and the row has none; "
                "use --template chat or alpaca, or name its field with --context-field"
            )
        return SUMMARIZE[name].replace("{context}", record.context), " " + record.response
    return _alpaca(record, number), record.response


def unrender_response(name: str, text: str) -> str:
    """Return the response that `render` words as `text`: a model's answer as a record holds it."""
    return text.removeprefix(" ") if name in SUMMARIZE else text


def _alpaca(record: Record, number: int) -> str:
    if record.instruction is None:
        raise DataError(
            f"row {number}: --template alpaca needs an instruction and the row has none; use "
            "--template plain"
        )
    if not record.context:
        return ALPACA_WITHOUT_CONTEXT.replace("{instruction}", record.instruction)
    before, after = ALPACA_WITH_CONTEXT.split("{context}")
    return before.replace("{instruction}", record.instruction) + record.context + after


def _joined(record: Record) -> str:
    return "\n\n".join(part for part in (record.instruction, record.context) if part)


def _messages(record: Record, number: int) -> list[dict[str, Any]]:
    if record.messages is not None:
        return list(record.messages)
    if record.instruction is None:
        raise DataError(
            f"row {number}: --template chat needs an instruction and the row has none; use "
            "--template plain"
        )
    return [{"role": "user", "content": _joined(record)}]


def render_chat(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[dict[str, Any]],
    number: int,
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Return the messages in the tokenizer's own chat template.

    Args:
        tokenizer: whose template is used.
        messages: {role, content} in order.
        number: the row, counted from 1, for messages; 0 for none.
        add_generation_prompt: end with the opening of the assistant's answer.

    Raises:
        ConfigError: the tokenizer has no chat template.
        DataError: the template refuses the messages (a role it does not know, say).
    """
    chat_template(tokenizer)
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            strftime_now=TEMPLATE_DATE.strftime,
        )
    except TemplateError as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        place = f"row {number}: " if number else ""
        raise DataError(
            f"{place}the tokenizer's chat template refuses the roles {roles}: {error}"
        ) from error
    return str(text)


def chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the tokenizer's chat template.

    Raises:
        ConfigError: it has none.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            f"--template chat: the tokenizer {tokenizer.name_or_path!r} has no chat template; "
            "use --template alpaca, summarize or plain, or an instruction-tuned model"
        )
    return str(tokenizer.get_chat_template())


def fingerprint_template(name: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the SHA-256 (hex) of a template's name and text, the tokenizer's own for "chat"."""
    texts = {
        "alpaca": [ALPACA_WITH_CONTEXT, ALPACA_WITHOUT_CONTEXT],
        **{name: [prompt, SUMMARIZE_RESPONSE] for name, prompt in SUMMARIZE.items()},
        "plain": [PLAIN],
    }
    text = [chat_template(tokenizer)] if name == "chat" else texts[name]
    return hashlib.sha256(json.dumps([name, *text]).encode()).hexdigest()
