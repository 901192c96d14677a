"""General ability by lm-evaluation-harness on local tasks: figures, items, reruns, refusals."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_evaluation_run import config, many_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import pipeline.evaluation.evaluate as evaluate
from pipeline.errors import ConfigError, DataError, MissingPackageError, OutputExistsError
from pipeline.evaluation.ability import find_tasks, read_items
from pipeline.evaluation.ability_figures import compare_tasks, items_path, summarize, task_figures
from pipeline.evaluation.scores import read_rows, write_rows

pytest.importorskip("lm_eval")

TASK = """
task: mine
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices.label.index(answerKey)}}}}"
doc_to_choice: "{{{{choices.text}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve questions in ARC's fields, in a file of the user's."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {
            "question": f"What is {n}?",
            "choices": {"text": ["the fox", "a lazy dog or two"], "label": ["A", "B"]},
            "answerKey": "AB"[n % 2],
        }
        for n in range(12)
    ]
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "mine.yaml"
    path.write_text(TASK.format(data=data))
    return path


def test_acc_norm_divides_by_characters() -> None:
    items = [
        {
            "metrics": {"acc": 1.0, "acc_norm": 0.0},
            "options": {"loglikelihoods": [-2.0, -6.0], "characters": [1, 6], "gold": 0},
        }
    ]
    found = {name: figure.estimate for name, figure in task_figures(items, 15).items()}
    # -2 and -1 a character: the second option, with confidence 1 / (1 + exp(-1)).
    confidence = 1 / (1 + np.exp(-1))
    assert found == {
        "acc": 1.0,
        "acc_norm": 0.0,
        "mean_confidence": pytest.approx(confidence),
        "overconfidence_gap": pytest.approx(confidence),
        "ece": pytest.approx(confidence),
        "brier": pytest.approx(2 * confidence**2),
    }
    plain = [{**items[0], "options": None}]
    assert set(summarize(plain, 15)) == {"num_items", "acc", "acc_norm", "intervals"}


def sample(doc_id: int, filter: str = "none", **metrics: object) -> dict[str, object]:
    place = {"doc_id": doc_id, "doc_hash": "x", "filter": filter, "doc": {}, "target": 0}
    responses = [(-1.0, False), (-2.0, False)]
    return {**place, "metrics": [*metrics], "filtered_resps": responses, **metrics}


def harness_task(**config: object) -> SimpleNamespace:
    return SimpleNamespace(
        task_name="t",
        OUTPUT_TYPE="multiple_choice",
        config=SimpleNamespace(process_results=None, **config)
        if "process_results" not in config
        else SimpleNamespace(**config),
        doc_to_choice=lambda _: ["a", "b"],
    )


def test_an_item_is_a_document_whatever_the_filters() -> None:
    samples = [sample(n, f, exact_match=float(f == "b")) for n in range(2) for f in "ab"]
    items = read_items(harness_task(), samples)
    assert [item["metrics"] for item in items] == [{"exact_match": 0.0, "exact_match,b": 1.0}] * 2
    assert items[0]["options"] == {"loglikelihoods": [-1.0, -2.0], "characters": [1, 1], "gold": 0}


def test_options_of_tasks_that_score_in_their_own_way_are_no_calibration() -> None:
    (item,) = read_items(harness_task(process_results=min), [sample(0, acc=0.3)])
    assert item["options"] is None


def test_a_task_without_a_number_an_item_is_refused() -> None:
    with pytest.raises(DataError, match="--task t: it gives no number for each item"):
        read_items(harness_task(), [sample(0, word_perplexity=(-3.0, 5))])


def test_tasks_are_compared_over_seeds_and_what_is_not_is_named(tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    rows = np.random.default_rng(0).integers(0, 2, 40)
    models = {"sft@0": rows, "sft@1": rows, "kd@0": 1 - rows * 0, "kd@1": 1 - rows * 0, "x@7": rows}
    for name, values in models.items():
        write_rows(
            items_path(output, "t", name),
            [{"metrics": {"acc": float(v)}, "options": None} for v in values],
        )
    scores = {"models": {name: {"tasks": {"t": {}}} for name in models}}
    results, not_compared = compare_tasks(scores, output, "sft", {}, 15)
    (found,) = results
    assert (found["model"], found["baseline"], found["task"]) == ("kd", "sft", "t")
    assert found["by_seed"] == pytest.approx([1 - rows.mean()] * 2)
    assert found["resolved"]
    assert not_compared == [
        "t: x is not compared with sft: seeds 7 and 0, 1; seeds are compared pair by pair"
    ]
    del scores["models"]["sft@0"]["tasks"]["t"], scores["models"]["sft@1"]["tasks"]["t"]
    results, not_compared = compare_tasks(scores, output, "sft", {}, 15)
    assert results == []
    assert not_compared[0] == "t: kd is not compared with sft, which has no figures of it"


def test_calibration_on_a_task_is_compared(tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    # Both are right on half of the items; the second says so with more confidence.
    for name, sure in (("sft", 1.0), ("kd", 3.0)):
        rows = [
            {
                "metrics": {"acc": float(n % 2), "acc_norm": float(n % 2)},
                "options": {
                    "loglikelihoods": [0.0, -sure],
                    "characters": [1, 1],
                    "gold": 1 - n % 2,
                },
            }
            for n in range(40)
        ]
        write_rows(items_path(output, "t", name), rows)
    scores = {"models": {name: {"tasks": {"t": {}}} for name in ("sft", "kd")}}
    results, _ = compare_tasks(scores, output, "sft", {}, 15)
    metric, gap = results
    assert (metric["figure"], metric["difference"], metric["resolved"]) == ("acc_norm", 0.0, False)
    change = 1 / (1 + np.exp(-3.0)) - 1 / (1 + np.exp(-1.0))
    assert (gap["figure"], gap["difference"]) == ("overconfidence_gap", pytest.approx(change))
    assert gap["resolved"]


@pytest.mark.slow
def test_a_task_of_ones_own(
    task: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = many_rows(tmp_path / "data.jsonl")
    models = (tiny_model, f"same={tiny_model}")
    result = evaluate.run(config(data, *models, task=(str(task),)))
    entry = result["models"]["model"]["tasks"]["mine"]
    assert (entry["num_items"], entry["version"], entry["chat_template"]) == (12, "1.0", "none")
    path = tmp_path / "out" / "predictions" / "scores" / "model.mine.items.jsonl"
    items = read_rows(path)
    assert entry["acc"] == np.mean([item["metrics"]["acc"] for item in items])
    # Against the model asked directly.
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for number in (0, 7):
        prompt = tokenizer(f"Question: What is {number}?\nAnswer:")["input_ids"]
        for place, choice in enumerate(["the fox", "a lazy dog or two"]):
            text = f"Question: What is {number}?\nAnswer: {choice}"
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.inference_mode():
                logprobs = model(ids).logits[0].log_softmax(-1)
            taken = logprobs[:-1].gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
            stored = items[number]["options"]["loglikelihoods"][place]
            assert stored == pytest.approx(float(taken.sum()), rel=1e-4)
        assert items[number]["options"]["characters"] == [7, 17]
        assert items[number]["options"]["gold"] == number % 2
    found, gap = result["comparisons"]["tasks"]
    assert found["sentence"].startswith("same against model: mine acc_norm +0.0 points [0.0, 0.0]")
    assert gap["sentence"].startswith("same against model: mine over-confidence gap +0.0 points [0")
    assert (found["figure"], gap["figure"]) == ("acc_norm", "overconfidence_gap")
    assert f"model, mine (12 items): acc {100 * entry['acc']:.1f} [" in capsys.readouterr().out
    again = evaluate.run(config(data, *models, task=(str(task),)))
    assert again["models"]["model"] == json.loads(json.dumps(result["models"]["model"]))
    text = (tmp_path / "items.jsonl").read_text().replace("What is 3", "What was 3")
    (tmp_path / "items.jsonl").write_text(text)
    with pytest.raises(OutputExistsError, match="'model' has figures of another task 'mine'"):
        evaluate.run(config(data, *models, task=(str(task),)))


def test_the_packaged_task_reads_a_local_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [
        {"question": f"Is it {n}?", "choices": ["No.", f"It is {n}.", "Ask."], "label": n % 3}
        for n in range(6)
    ]
    (tmp_path / "truthfulqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    packaged = Path(evaluate.__file__).parents[1] / "recipes" / "tasks" / "truthfulqa-local.yaml"
    (task,) = find_tasks((str(packaged),)).values()
    document = task.eval_docs[4]
    assert task.doc_to_text(document) == "Q: Is it 4?\nA:"
    assert task.doc_to_choice(document) == ["No.", "It is 4.", "Ask."]
    assert task.doc_to_target(document) == 1


def test_wrong_tasks_are_named(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_tasks(()) == {}
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        find_tasks((str(tmp_path / "none.yaml"),))
    with pytest.raises(ConfigError, match="the task 'mine' is already there"):
        find_tasks((str(task), str(task)))
    task.write_text(TASK.format(data=tmp_path / "gone.jsonl"))
    with pytest.raises(DataError, match=r"mine\.yaml: its data cannot be read \(FileNotFoundError"):
        find_tasks((str(task),))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingPackageError, match='pip install "smoothkd'):
        find_tasks((str(task),))


@pytest.mark.slow
def test_the_tasks_of_the_paper_are_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their data is on the hub; offline, the name is known and the data is what is missing."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(ConfigError, match="'arc_foo': lm-evaluation-harness has no task"):
        find_tasks(("arc_foo",))
    from lm_eval.tasks import TaskManager

    known = TaskManager().all_tasks
    for name in ("arc_easy", "arc_challenge", "hellaswag", "openbookqa"):
        assert name in known
