"""The token view: single examples, the teacher's uncertainty, and every model's top tokens.

It is stored as NAME-token_view.json beside the report, so that the page can be built again without
models. The teacher's part comes from the cache, the students' from one forward pass each.

Which examples: N evenly spaced ones in the cache's order, number floor((i + 1/2) n / N) of n for
i = 0 to N - 1, so nobody picked them; or those named with --example.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import DataError, ModelError
from pipeline.models.checkpoint import find_checkpoint
from pipeline.report.arms import first_model
from pipeline.report.charts import spread
from pipeline.report.config import BuildReportConfig
from pipeline.report.documents import Document, read_document
from pipeline.report.inputs import Cell, Evaluation, Inputs
from pipeline.report.token_students import (
    TOP_TOKENS,
    Position,
    Student,
    check_student,
    load_cache_tokenizer,
    score_student,
)
from pipeline.report.token_text import token_texts, visible
from storage_schema import LogitCache, Response
from storage_schema.publish import publish, writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
# A page with more columns of bars than that is not read, and grows beyond its size.
MAX_STUDENTS = 8
# Response tokens shown of all examples together: keeps a page of many examples small.
MAX_SHOWN_TOKENS = 12_000
MAX_TOKENS_OF_EXAMPLE = 400
MIN_PROBABILITY = 0.005


def find_students(evaluation: Evaluation, cells: Sequence[Cell]) -> list[tuple[str, str, str]]:
    """Return (name, label, place) of the students to show: one seed an arm, at most MAX_STUDENTS.

    The untouched student and SFT come first, then distilled arms evenly over alpha.
    """
    places = {cell.name: str(cell.path) for cell in cells if cell.record is not None}
    arms = [arm for arm in evaluation.arms if arm.role != "teacher"]
    kd = [arm for arm in arms if arm.role == "kd"]
    others = [arm for arm in arms if arm.role != "kd"][: MAX_STUDENTS - min(len(kd), 2)]
    chosen = others + spread(kd, MAX_STUDENTS - len(others))
    students = []
    for arm in chosen:
        name = first_model(arm)
        place = str(places.get(name, evaluation.models[name]["checkpoint"]))
        students.append((name, arm.label, place))
    return students


def view_path(config: BuildReportConfig) -> Path:
    """Return where the token view of a report is stored."""
    output = Path(config.output).expanduser()
    return output.with_name(f"{output.stem}-token_view.json")


def token_view(config: BuildReportConfig, inputs: Inputs, cache: LogitCache) -> Document:
    """Return the token view, read from beside the report or made now and stored there.

    Raises:
        CacheError: the cache is damaged.
        DataError: an --example is not in the cache, or the stored view is damaged.
        ModelError: a student is not found, does not load, or is not the one evaluated.
    """
    evaluation = inputs.evaluations[0]
    places = find_students(evaluation, inputs.cells)
    if not places:
        raise DataError(
            f"{evaluation.path} holds no student to show tokens of, only a teacher: evaluate one, "
            "or give --token-examples 0"
        )
    numbers = choose_examples(cache, config.token_examples, config.example)
    identity = {
        "version": VERSION,
        "cache_fingerprint": cache.fingerprint,
        "examples": numbers,
        "students": {name: evaluation.models[name]["fingerprint"] for name, _, _ in places},
    }
    path = view_path(config)
    if path.exists():
        stored = read_document(path, {"identity": dict, "examples": list}, "build-report")
        if stored["identity"] == identity:
            return stored
    students = [
        Student(name, label, _find(name, place), evaluation.models[name]["fingerprint"])
        for name, label, place in places
    ]
    for student in students:
        check_student(student)
    view = {"identity": identity, **_make(cache, numbers, students)}
    text = json.dumps(view, ensure_ascii=True, separators=(",", ":"), allow_nan=False)

    def write(temporary: Path) -> None:
        with writing(path):
            temporary.write_text(text + "\n", encoding="utf-8")

    publish(path, write)
    return view


def _find(name: str, place: str) -> Any:
    try:
        return find_checkpoint(place)
    except ModelError as error:
        raise ModelError(
            f"{name} is not found for the token view: {error}; call from the folder that the "
            "scores file's paths start from, or give --token-examples 0"
        ) from error


def choose_examples(cache: LogitCache, count: int, named: Sequence[str]) -> list[int]:
    """Return the numbers of the examples to show.

    Args:
        cache: where they lie.
        count: how many evenly spaced ones, where none is named.
        named: first hex digits of example ids.

    Raises:
        DataError: a name fits no example, or several.
    """
    if not named:
        count = min(count, len(cache))
        return [int((number + 0.5) * len(cache) / count) for number in range(count)]
    found: dict[str, list[int]] = {name: [] for name in named}
    for number, response in enumerate(cache):
        identifier = response.example_id.hex()
        for name in named:
            if identifier.startswith(name):
                found[name].append(number)
    for name, numbers in found.items():
        if len(numbers) != 1:
            raise DataError(
                f"--example {name}: {len(numbers)} of the {len(cache)} examples of {cache.path} "
                "have an id that begins so, expected one"
            )
    return [numbers[0] for numbers in found.values()]


def _make(cache: LogitCache, numbers: list[int], students: Sequence[Student]) -> Document:
    responses = [cache[number] for number in numbers]
    shown = min(MAX_TOKENS_OF_EXAMPLE, MAX_SHOWN_TOKENS // max(1, len(responses)))
    tokenizer = load_cache_tokenizer(students[0], cache.plan)
    tables = [[teacher_positions(response, shown) for response in responses]]
    tables += [score_student(student, responses, shown) for student in students]
    texts = _Texts(tokenizer)
    examples = [
        _example(number, response, [table[place] for table in tables], texts)
        for place, (number, response) in enumerate(zip(numbers, responses, strict=True))
    ]
    return {
        "models": ["teacher", *(student.label for student in students)],
        "names": ["teacher", *(student.name for student in students)],
        "exact_entropy": all(response.entropies is not None for response in responses),
        "tokens": texts.texts(),
        "examples": examples,
    }


class _Texts:
    """Numbers the tokens in the order they are met; a page stores each text once."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.numbers: dict[int, int] = {}

    def number(self, token_id: int) -> int:
        return self.numbers.setdefault(token_id, len(self.numbers))

    def texts(self) -> list[str]:
        return token_texts(self.tokenizer, list(self.numbers))


def _example(
    number: int, response: Response, models: Sequence[Sequence[Position]], texts: _Texts
) -> Document:
    """Return one example; `positions` holds, per token and model, a flat list for the page.

    Of a model: [gold probability x 1e4, entropy x 100, token, probability x 1e4, token, ...].
    """
    length = len(models[0])
    start = response.response_start
    gold = response.input_ids[start : start + length].tolist()
    prompt = texts.tokenizer.decode(response.input_ids[:start].tolist())
    return {
        "id": response.example_id.hex(),
        "number": number,
        "prompt": visible(str(prompt)),
        "gold": [texts.number(token) for token in gold],
        "num_tokens": response.num_response_tokens,
        "positions": [
            [_flat(model[position], texts) for model in models] for position in range(length)
        ],
    }


def _flat(position: Position, texts: _Texts) -> list[int]:
    top, gold, entropy = position
    row = [round(gold * 1e4), round(entropy * 100)]
    for place, (token, probability) in enumerate(top):
        if place == 0 or probability >= MIN_PROBABILITY:
            row += [texts.number(token), round(probability * 1e4)]
    return row


def teacher_positions(response: Response, num_shown: int) -> list[Position]:
    """Return what the cache holds of the teacher at each position.

    The entropy is exact where the cache stores it. Else it is the least that fits the entries:
    everything outside of them counted as one token.
    """
    ends = np.cumsum(response.num_entries)
    found: list[Position] = []
    for row in range(min(num_shown, response.num_response_tokens)):
        entries = slice(int(ends[row] - response.num_entries[row]), int(ends[row]))
        logprobs = response.entry_logprobs[entries].astype(np.float64)
        order = np.argsort(-logprobs, kind="stable")[:TOP_TOKENS]
        ids = response.entry_token_ids[entries][order].tolist()
        top = list(zip(ids, np.exp(logprobs[order]).tolist(), strict=True))
        if response.entropies is not None:
            entropy = float(response.entropies[row])
        else:
            parts = np.append(logprobs, float(response.log_tail_mass[row]))
            parts = parts[np.isfinite(parts)]
            entropy = float(-(np.exp(parts) * parts).sum())
        found.append((top, float(np.exp(response.label_logprobs[row])), entropy))
    return found
