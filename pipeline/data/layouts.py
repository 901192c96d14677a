"""Recognise which fields of a row are the instruction, the context and the response.

A layout is recognised from field names alone, so a whole dataset has one layout. Rows of another
one and values of a wrong type are refused with their row (counted from 1), never converted.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pipeline.data.config import DataSettings
from pipeline.data.records import Record
from pipeline.errors import DataError

SUMMARIZE_TEXT = "Summarize the following text."
SUMMARIZE_DIALOGUE = "Summarize the following dialogue."
REFERENCES_FIELD = "references"
MAX_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Layout:
    """Field names of one layout; `instruction` is the wording where no field holds it."""

    response: str
    prompt: str | None = None
    context: str | None = None
    instruction: str | None = None
    context_optional: bool = False

    @property
    def name(self) -> str:
        """The fields in reading order, such as "instruction/context/response"."""
        return "/".join(field for field in (self.prompt, self.context, self.response) if field)

    @property
    def required(self) -> tuple[str, ...]:
        """The fields without which a row is not of this layout."""
        context = None if self.context_optional else self.context
        return tuple(field for field in (self.prompt, context, self.response) if field)


MESSAGES = Layout("messages")
# From the most specific to the least: the first that fits is taken.
LAYOUTS = (
    MESSAGES,
    Layout("response", "instruction", "context", context_optional=True),
    Layout("output", "instruction", "input", context_optional=True),
    Layout("highlights", context="article", instruction=SUMMARIZE_TEXT),
    Layout("summary", context="document", instruction=SUMMARIZE_TEXT),
    Layout("summary", context="dialogue", instruction=SUMMARIZE_DIALOGUE),
    Layout("completion", "prompt"),
    Layout("text"),
)
OPTIONAL_CONTEXTS = {layout.context for layout in LAYOUTS if layout.context_optional}
INSTRUCTION_RESPONSES = {layout.response for layout in LAYOUTS if layout.context_optional}


def find_layout(fields: Collection[str], settings: DataSettings) -> Layout:
    """Return the layout named by the settings, or else the first known one that fits.

    Raises:
        DataError: a named field is missing, no known layout fits, or two fields could be the
            context or the response of an instruction.
    """
    if settings.prompt_field and settings.response_field:
        return _named_layout(fields, settings)
    for layout in LAYOUTS:
        if _fits(layout, fields):
            if layout.context_optional:
                _refuse_choice("context", OPTIONAL_CONTEXTS, fields, settings)
                _refuse_choice("response", INSTRUCTION_RESPONSES, fields, settings)
            return layout
    raise DataError(
        f"{settings.data}: no known layout in the fields {_listed(fields)}; known are "
        f"{', '.join(layout.name for layout in LAYOUTS)}; name other fields with "
        "--prompt-field, --context-field and --response-field"
    )


def _named_layout(fields: Collection[str], settings: DataSettings) -> Layout:
    named = {
        "--prompt-field": settings.prompt_field,
        "--context-field": settings.context_field,
        "--response-field": settings.response_field,
    }
    for flag, field in named.items():
        if field is not None and field not in fields:
            raise DataError(
                f"{settings.data}: no field {field!r} ({flag}); the fields are {_listed(fields)}"
            )
    return Layout(
        settings.response_field or "",
        settings.prompt_field,
        settings.context_field,
        context_optional=True,
    )


def _fits(layout: Layout, fields: Collection[str]) -> bool:
    if not set(layout.required) <= set(fields):
        return False
    # A context under the other layout's name would otherwise be ignored in silence.
    foreign = layout.context_optional and OPTIONAL_CONTEXTS & set(fields)
    return not foreign or layout.context in fields


def _refuse_choice(
    role: str, known: Collection[str | None], fields: Collection[str], settings: DataSettings
) -> None:
    found = [field for field in fields if field in known]
    if len(found) > 1:
        raise DataError(
            f"{settings.data}: each of the fields {_listed(found)} could be the {role}, and only "
            "one is read: choose with --prompt-field, --context-field and --response-field"
        )


def _listed(fields: Collection[str]) -> str:
    return ", ".join(repr(field) for field in fields) or "(none)"


def to_record(row: dict[str, Any], layout: Layout, number: int) -> Record:
    """Return the row as a record; null and missing values become "".

    Args:
        row: field name to value.
        layout: which fields are which.
        number: the row's place in the dataset, counted from 1, for messages.

    Raises:
        DataError: the row has the fields of another layout instead, or a value has another type
            than its layout says.
    """
    _refuse_other_layout(row, layout, number)
    references = _references(row, number)
    if layout is MESSAGES:
        return _conversation(row.get("messages"), references, number)
    return Record(
        instruction=_text(row, layout.prompt, number) if layout.prompt else layout.instruction,
        context=_context(row, layout, number),
        response=_text(row, layout.response, number),
        references=references,
    )


def _context(row: dict[str, Any], layout: Layout, number: int) -> str | None:
    text = _text(row, layout.context, number) if layout.context else ""
    if layout.instruction is None:
        return text or None
    return text if text.strip() else ""  # a document: the row asks nothing without it


def _refuse_other_layout(row: dict[str, Any], layout: Layout, number: int) -> None:
    missing = [field for field in layout.required if field not in row]
    if not missing:
        return
    other = next((other for other in LAYOUTS if set(other.required) <= row.keys()), None)
    if other is not None:
        raise DataError(
            f"row {number}: the fields are {_listed(row)} (layout {other.name}), without "
            f"{_listed(missing)} of the dataset's layout {layout.name}: keep rows of one layout in "
            "a file, or give all rows the same fields"
        )


def _text(row: dict[str, Any], field: str, number: int) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"row {number}: field {field!r} is {_shown(value)}: expected text")
    _check_unicode(value, field, number)
    return value


def _check_unicode(value: str, field: str, number: int) -> None:
    """Refuse half a surrogate pair, which JSON can hold and no tokenizer reads."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"row {number}: field {field!r} holds {value[error.start]!r} at character "
            f"{error.start}, which is no Unicode text"
        ) from error


def _shown(value: Any) -> str:
    text = repr(value)
    cut = text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "..."
    return f"{cut} ({type(value).__name__})"


def _references(row: dict[str, Any], number: int) -> tuple[str, ...]:
    value = row.get(REFERENCES_FIELD)
    if value is None:
        return ()
    if isinstance(value, str):  # a CSV cell cannot hold a list
        return (value,) if value.strip() else ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(
            f"row {number}: field {REFERENCES_FIELD!r} is {_shown(value)}: expected a text or a "
            "list of texts"
        )
    return tuple(value)


def _conversation(value: Any, references: tuple[str, ...], number: int) -> Record:
    if not isinstance(value, list):
        raise DataError(
            f"row {number}: field 'messages' is {_shown(value)}: expected a list of "
            "{role, content}"
        )
    messages = tuple(_message(item, place, number) for place, item in enumerate(value, 1))
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages) or "none"
        raise DataError(
            f"row {number}: field 'messages' has the roles {roles}: expected at least one "
            "message and then the assistant's, which is the response"
        )
    *prompt, answer = messages
    alone = len(prompt) == 1 and prompt[0]["role"] == "user"
    return Record(
        instruction=prompt[0]["content"] if alone else None,
        context=None,
        response=answer["content"],
        messages=tuple(prompt),
        references=references,
    )


def _message(item: Any, place: int, number: int) -> dict[str, Any]:
    if (
        not isinstance(item, dict)
        or not isinstance(item.get("role"), str)
        or not isinstance(item.get("content"), str)
    ):
        raise DataError(
            f"row {number}: field 'messages', message {place} is {_shown(item)}: expected "
            "{role, content}, both text"
        )
    _check_unicode(item["content"], "messages", number)
    # Datasets fill absent keys with None; a template must see them absent.
    return {key: value for key, value in item.items() if value is not None}
