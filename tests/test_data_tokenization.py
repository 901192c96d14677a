"""Token positions by hand, special tokens per tokenizer, limits and their counts."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizer_factory import ids, make_tokenizer, special

from pipeline.data.config import DataSettings
from pipeline.data.prompts import tokenize_prompts
from pipeline.data.special_tokens import adds_leading_space, end_id, opening_ids
from pipeline.data.tokenization import TokenizedDataset, tokenize_dataset
from pipeline.errors import ConfigError, DataError, ModelError
from storage_schema.response import example_id

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '#' + m.role + '#\n\n' + m.content | trim + "
    "'<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '#assistant#\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '#' + ('model' if m.role == 'assistant' else "
    "m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '#model\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '#' + m.content + '#' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
BARE = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"


def tokenize(
    tmp_path: Path, rows: list[tuple[str, str]], tokenizer: object = None, **settings: object
) -> TokenizedDataset:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in rows]
    path.write_text("\n".join(lines))
    chosen = DataSettings(**{"data": str(path), "template": "plain", **settings})
    return tokenize_dataset(chosen, tokenizer or make_tokenizer())


def test_positions(tmp_path: Path) -> None:
    dataset = tokenize(tmp_path, [("ab", "cd"), ("x", "y")])
    first, second = dataset.examples
    assert first.input_ids.tolist() == [*ids("abcd"), special("<eos>")]
    assert first.input_ids.dtype == np.int32
    assert (first.response_start, first.num_response_tokens) == (2, 3)
    assert second.input_ids.tolist() == [*ids("xy"), special("<eos>")]
    assert first.example_id == example_id(first.input_ids, 2)
    assert dataset.end_token_id == special("<eos>")
    assert dataset.num_response_tokens == 5
    digest = hashlib.sha256(first.example_id + second.example_id).hexdigest()
    assert dataset.fingerprint == digest
    assert [record.response for record in dataset.records] == ["cd", "y"]


def test_no_merge_crosses_the_border(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(merges=[("a", "b")])
    merged = tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert len(merged) == 1
    (example,) = tokenize(tmp_path, [("a", "b")], tokenizer).examples
    assert example.input_ids.tolist() == [*ids("ab"), special("<eos>")]
    assert example.response_start == 1


def test_bos_where_the_tokenizer_adds_it(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(adds_bos=True)
    (example,) = tokenize(tmp_path, [("ab", "c")], tokenizer).examples
    assert example.input_ids.tolist() == [special("<bos>"), *ids("abc"), special("<eos>")]
    assert example.response_start == 3
    assert opening_ids("plain", tokenizer) == [special("<bos>")]
    assert opening_ids("plain", make_tokenizer()) == []


def test_chat_writes_its_own_bos_once(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat_template=LLAMA_3, adds_bos=True)
    (example,) = tokenize(tmp_path, [("a", "c")], tokenizer, template="chat").examples
    prompt = [
        special("<bos>"),
        *ids("#user#\n\na"),
        special("<|eot_id|>"),
        *ids("#assistant#\n\n"),
    ]
    assert example.input_ids.tolist() == [*prompt, *ids("c"), special("<|eot_id|>")]
    assert example.response_start == len(prompt)


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (CHATML, "<|im_end|>"),
        (LLAMA_3, "<|eot_id|>"),
        (GEMMA, "<end_of_turn>"),
        (LLAMA_2, "<eos>"),
        (BARE, "<eos>"),
    ],
)
def test_end_of_a_chat_response(template: str, token: str) -> None:
    tokenizer = make_tokenizer(chat_template=template)
    assert end_id("chat", tokenizer) == special(token)
    assert end_id("alpaca", tokenizer) == special("<eos>")


def test_no_end_token() -> None:
    with pytest.raises(ModelError, match=r"has eos_token None"):
        end_id("plain", make_tokenizer(eos=None))
    assert end_id("chat", make_tokenizer(eos=None, chat_template=CHATML)) == special("<|im_end|>")


def test_a_tokenizer_that_adds_a_space_gets_no_second_one(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(leading_space=True)
    assert adds_leading_space(tokenizer)
    assert not adds_leading_space(make_tokenizer())
    (example,) = tokenize(tmp_path, [("a", " b")], tokenizer).examples
    assert example.input_ids.tolist() == [*ids("▁a▁b"), special("<eos>")]
    (example,) = tokenize(tmp_path, [("a", " b")]).examples
    assert example.input_ids.tolist() == [*ids("a b"), special("<eos>")]


def test_text_without_prompt(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "abc"}')
    settings = DataSettings(data=str(path), template="plain")
    (example,) = tokenize_dataset(settings, make_tokenizer()).examples
    assert example.input_ids.tolist() == [*ids("abc"), special("<eos>")]
    assert example.response_start == 1
    (example,) = tokenize_dataset(settings, make_tokenizer(adds_bos=True)).examples
    assert example.input_ids.tolist() == [special("<bos>"), *ids("abc"), special("<eos>")]
    assert example.response_start == 1


def test_drops_and_cuts_are_counted(tmp_path: Path) -> None:
    rows = [
        ("abcd", "xyz"),  # 4 + 3 + end = 8: fits exactly
        ("abcde", "x"),  # prompt one too long
        ("abcd", "wxyz"),  # one over: loses its end token
        ("abcd", "123456"),  # three over
        ("ab", " \n"),  # empty
        ("ab", ""),  # empty
        (" \n", "x"),  # no prompt
        ("", ""),  # no prompt either
        ("abcd", "xyz"),  # as the first
        ("abcd", "wxyz!"),  # the same as the third once cut
    ]
    dataset = tokenize(tmp_path, rows, max_prompt_tokens=4, max_sequence_tokens=8)
    assert dataset.counts == {
        "rows": 10,
        "kept": 3,
        "dropped_prompt_too_long": 1,
        "dropped_without_prompt": 2,
        "dropped_empty_response": 2,
        "dropped_duplicate": 2,
        "cut_responses": 2,
        "cut_tokens": 4,
    }
    kept = [example.input_ids.tolist() for example in dataset.examples]
    assert kept == [[*ids("abcdxyz"), special("<eos>")], ids("abcdwxyz"), ids("abcd1234")]
    assert [record.response for record in dataset.records] == ["xyz", "wxyz", "123456"]
    text = dataset.describe()
    assert "3 of 10 rows kept, 12 response tokens" in text
    assert "1 with a prompt over 4 tokens, 2 without a prompt, 2 with an empty" in text
    assert "with an empty response, 2 duplicates" in text
    assert "cut at 8 tokens: 2 responses, by 4 tokens" in text


def test_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"none of 2 rows is left; dropped: 1 .* over 2 tokens, 0 .*t, 1 w"
    ):
        tokenize(tmp_path, [("abc", "x"), ("a", "")], max_prompt_tokens=2)


def test_a_row_that_does_not_fit_the_template_is_named_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl, row 1: --template summarize needs a doc"):
        tokenize(tmp_path, [("a", "b")], template="summarize")


def test_an_empty_user_turn_is_dropped(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat_template=CHATML)
    dataset = tokenize(tmp_path, [(" ", "b"), ("a", "b")], tokenizer, template="chat")
    assert (dataset.counts["kept"], dataset.counts["dropped_without_prompt"]) == (1, 1)
    prompts = tokenize_prompts(dataset.settings, tokenizer)
    assert prompts.rows == [2]
    assert prompts.counts["dropped_without_prompt"] == 1


@pytest.mark.parametrize("template", ["summarize", "alpaca"])
def test_a_summary_of_no_document_is_dropped(tmp_path: Path, template: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"document": " ", "summary": "b"}\n{"document": "a", "summary": "b"}\n')
    settings = DataSettings(data=str(path), template=template)
    dataset = tokenize_dataset(settings, make_tokenizer())
    assert (dataset.counts["kept"], dataset.counts["dropped_without_prompt"]) == (1, 1)
    assert tokenize_prompts(settings, make_tokenizer()).rows == [2]


def test_settings_and_order_move_the_fingerprint(tmp_path: Path) -> None:
    rows = [("a", "b"), ("c", "d")]
    dataset = tokenize(tmp_path, rows)
    assert tokenize(tmp_path, rows).fingerprint == dataset.fingerprint
    assert tokenize(tmp_path, rows[::-1]).fingerprint != dataset.fingerprint
    assert tokenize(tmp_path, rows, max_examples=1).counts["rows"] == 1


def test_more_rows_than_one_batch(tmp_path: Path) -> None:
    rows = [("a", str(number)) for number in range(1100)]
    dataset = tokenize(tmp_path, rows)
    assert dataset.examples[1099].input_ids.tolist() == [*ids("a1099"), special("<eos>")]


def test_chat_without_a_template_fails_before_the_data_is_read() -> None:
    with pytest.raises(ConfigError, match="has no chat template"):
        tokenize_dataset(DataSettings(data="missing.jsonl"), make_tokenizer())


@pytest.mark.slow
@pytest.mark.parametrize("template", ["chat", "alpaca", "summarize", "plain"])
def test_real_tokenizer_round_trip(demo_model: Path, template: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    settings = DataSettings(data="demo:docstrings", template=template, max_examples=50)
    dataset = tokenize_dataset(settings, tokenizer)
    assert dataset.end_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert dataset.counts["kept"] == 50
    for example, record in zip(dataset.examples, dataset.records, strict=True):
        *response_ids, end = example.input_ids[example.response_start :].tolist()
        assert end == dataset.end_token_id
        space = " " if template == "summarize" else ""
        assert tokenizer.decode(response_ids) == space + record.response
        prompt = tokenizer.decode(example.input_ids[: example.response_start])
        assert record.context in prompt
