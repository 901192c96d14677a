"""Which fields are taken for what, and what is refused with its row, field and value."""

import pytest

from pipeline.data.config import DataSettings
from pipeline.data.layouts import find_layout, to_record
from pipeline.data.records import Record
from pipeline.errors import DataError

SETTINGS = DataSettings(data="rows.jsonl")
TEXT, DIALOGUE = "Summarize the following text.", "Summarize the following dialogue."
USER, SYSTEM = {"role": "user", "content": "Q"}, {"role": "system", "content": "S"}
ANSWER = {"role": "assistant", "content": "A"}


def convert(row: dict, settings: DataSettings = SETTINGS) -> Record:
    return to_record(row, find_layout(row, settings), 7)


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"instruction": "I", "context": "C", "response": "R"}, Record("I", "C", "R")),
        ({"instruction": "I", "context": None, "response": "R"}, Record("I", None, "R")),
        ({"instruction": "I", "context": "", "response": "R"}, Record("I", None, "R")),
        ({"instruction": "I", "response": "R"}, Record("I", None, "R")),
        ({"instruction": "I", "input": "C", "output": "R"}, Record("I", "C", "R")),
        ({"instruction": "I", "output": "R"}, Record("I", None, "R")),
        ({"article": "D", "highlights": "R"}, Record(TEXT, "D", "R")),
        ({"document": "D", "summary": "R", "id": 3}, Record(TEXT, "D", "R")),
        # The columns of Dolly, Alpaca, CNN/DailyMail and DialogSum.
        (
            {"instruction": "I", "context": "C", "response": "R", "category": "X"},
            Record("I", "C", "R"),
        ),
        ({"instruction": "I", "input": "C", "output": "R", "text": "T"}, Record("I", "C", "R")),
        ({"article": "D", "highlights": "R", "id": "3"}, Record(TEXT, "D", "R")),
        ({"id": "3", "dialogue": "D", "summary": "R", "topic": "T"}, Record(DIALOGUE, "D", "R")),
        ({"dialogue": "D", "summary": "R"}, Record(DIALOGUE, "D", "R")),
        ({"prompt": "I", "completion": "R"}, Record("I", None, "R")),
        ({"text": "R"}, Record(None, None, "R")),
        ({"prompt": None, "completion": None}, Record("", None, "")),
        ({"messages": [USER, ANSWER]}, Record("Q", None, "A", (USER,))),
        ({"messages": [SYSTEM, USER, ANSWER]}, Record(None, None, "A", (SYSTEM, USER))),
    ],
)
def test_layouts(row: dict, record: Record) -> None:
    assert convert(row) == record


def test_the_most_specific_layout_wins() -> None:
    rest = {"prompt": "P", "completion": "C", "text": "T"}
    assert convert({"messages": [USER, ANSWER], **rest}).response == "A"
    assert convert({"document": "D", "summary": "S", **rest}).response == "S"
    assert convert(rest).response == "C"


def test_a_context_of_another_layout_is_not_ignored_in_silence() -> None:
    with pytest.raises(DataError, match="'instruction', 'input', 'response'"):
        convert({"instruction": "I", "input": "C", "response": "R"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"instruction": "I", "input": "C", "output": "R", "context": "C2"},
            "rows.jsonl: each of the fields 'input', 'context' could be the context",
        ),
        (
            {"instruction": "I", "output": "R", "response": "R2"},
            "fields 'output', 'response' could be the response, .* with --prompt-field, --context",
        ),
    ],
)
def test_two_contexts_or_responses_need_a_choice(row: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        convert(row)
    fields = {"prompt_field": "instruction", "response_field": "output"}
    assert convert(row, DataSettings(data="d", **fields)).response == "R"


def test_a_row_of_another_layout_is_refused() -> None:
    row = {"instruction": "I", "input": "C", "output": "R"}
    for settings in (SETTINGS, DataSettings(data="d", prompt_field="prompt", response_field="b")):
        layout = find_layout(["prompt", "completion", "b"], settings)
        with pytest.raises(
            DataError,
            match=r"row 7: the fields are 'instruction', 'input', 'output' \(layout instruction/"
            r"input/output\), without 'prompt', '\w+' of the dataset's layout prompt/",
        ):
            to_record(row, layout, 7)
        assert to_record({"prompt": "I", "id": 3}, layout, 7) == Record("I", None, "")


@pytest.mark.parametrize(
    ("row", "lacking"),
    [
        ({"prompt": " \n", "completion": "R"}, True),
        ({"prompt": None, "completion": "R"}, True),
        ({"instruction": "", "input": "", "output": "R"}, True),
        ({"instruction": "", "input": "C", "output": "R"}, False),
        ({"document": " \n", "summary": "R"}, True),
        ({"article": None, "highlights": "R"}, True),
        ({"dialogue": "D", "summary": "R"}, False),
        ({"instruction": "I", "context": "", "response": "R"}, False),
        ({"messages": [{**USER, "content": " "}, ANSWER]}, True),
        ({"messages": [SYSTEM, {**USER, "content": ""}, ANSWER]}, True),
        ({"messages": [{**USER, "content": ""}, ANSWER, USER, ANSWER]}, False),
        ({"messages": [USER, {"role": "tool", "content": ""}, ANSWER]}, False),
        ({"text": "R"}, False),
    ],
)
def test_rows_that_lack_a_prompt(row: dict, lacking: bool) -> None:
    assert convert(row).lacks_prompt == lacking


def test_references() -> None:
    row = {"document": "D", "summary": "R"}
    assert convert(row).references == ("R",)
    assert convert({**row, "references": ["R", "R2"]}).references == ("R", "R2")
    assert convert({**row, "references": "R2"}).references == ("R2",)
    for nothing in (None, "", " ", []):
        assert convert({**row, "references": nothing}).references == ("R",)


def test_absent_message_keys_stay_absent() -> None:
    question = {**USER, "name": None, "weight": 1}
    assert convert({"messages": [question, ANSWER]}).messages == ({**USER, "weight": 1},)


def test_named_fields() -> None:
    row = {"q": "I", "about": "C", "a": "R", "text": "T"}
    named = DataSettings(data="d", prompt_field="q", response_field="a")
    assert convert(row, named) == Record("I", None, "R")
    named = DataSettings(data="d", prompt_field="q", context_field="about", response_field="a")
    assert convert(row, named) == Record("I", "C", "R")


def test_named_field_missing() -> None:
    named = DataSettings(data="d", prompt_field="q", response_field="answer")
    with pytest.raises(DataError, match=r"'answer' \(--response-field\); the fields are 'q', 'a'"):
        convert({"q": "I", "a": "R"}, named)


def test_no_layout() -> None:
    with pytest.raises(DataError, match=r"'q', 'a'; known are messages, instruction/context"):
        convert({"q": "I", "a": "R"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": 3, "completion": "R"}, r"row 7: field 'prompt' is 3 \(int\)"),
        ({"text": ["x"]}, r"row 7: field 'text' is \['x'\] \(list\)"),
        ({"text": b"x" * 99}, r"row 7: field 'text' is b'x+\.\.\. \(bytes\)"),
        ({"text": "x", "references": 3}, r"'references' is 3 \(int\): expected a text or a list"),
        ({"text": "x", "references": [1]}, r"'references' is \[1\] \(list\)"),
        ({"messages": "hi"}, r"row 7: field 'messages' is 'hi' \(str\)"),
        ({"messages": None}, r"row 7: field 'messages' is None \(NoneType\)"),
        ({"messages": ["hi"]}, r"'messages', message 1 is 'hi' \(str\)"),
        ({"messages": [USER, {"role": "assistant"}]}, r"message 2 is \{'role': 'assistant'\}"),
        ({"messages": [ANSWER, USER]}, r"roles assistant, user: expected"),
        ({"messages": [ANSWER]}, r"roles assistant: expected at least one message"),
        ({"messages": []}, r"roles none"),
    ],
)
def test_wrong_types(row: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        convert(row)


def test_half_a_surrogate_pair_is_refused_by_row_and_field() -> None:
    with pytest.raises(
        DataError, match=r"row 7: field 'completion' holds '\\ud800' at character 1"
    ):
        convert({"prompt": "a", "completion": "b\ud800c"})
    with pytest.raises(DataError, match="row 7: field 'messages' holds"):
        convert({"messages": [{"role": "user", "content": "\udc00"}, ANSWER]})
