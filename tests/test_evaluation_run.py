"""The whole stage on tiny models: what is stored, what a rerun does, what is refused."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pipeline.evaluation.evaluate as evaluate
import pipeline.evaluation.model_in_use as model_in_use
from pipeline.cli.evaluate_student import main
from pipeline.errors import ConfigError, DataError, ModelError, OutputExistsError
from pipeline.evaluation.comparisons import compare_models, pair_seeds, read_scored
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.scores import aggregate, read_rows
from pipeline.evaluation.table import format_table
from pipeline.locking import locked

ROWS = [
    {"instruction": "Add the two numbers.", "context": "1 and 2", "response": "the sum"},
    {"instruction": "Name the fox.", "response": "The quick brown fox", "references": ["a fox"]},
    {"instruction": "Is it raining?", "response": "it is raining outside"},
]
AGGREGATES = {
    "num_documents",
    "num_distinct_documents",
    "num_empty",
    "num_refused",
    "num_hit_token_limit",
    "num_without_source",
    "num_lower_case",
    "max_references",
    "unscored_letter_share",
    "num_tokens",
    "ece_floor",
    "intervals",
    "rescaled",
    "reliability",
    "entropy_deciles",
}
FIGURES = {
    "rouge1_f1",
    "rouge2_f1",
    "rougeL_f1",
    "rougeLsum_f1",
    "rougeLsum_f1_sentences",
    "rouge1_f1_stemmed",
    "rouge2_f1_stemmed",
    "rougeL_f1_stemmed",
    "rougeLsum_f1_stemmed",
    "rouge1_f1_mean_over_references",
    "rouge2_f1_mean_over_references",
    "rougeL_f1_mean_over_references",
    "rougeLsum_f1_mean_over_references",
    "rougeLsum_f1_sentences_mean_over_references",
    "rouge1_f1_stemmed_mean_over_references",
    "rouge2_f1_stemmed_mean_over_references",
    "rougeL_f1_stemmed_mean_over_references",
    "rougeLsum_f1_stemmed_mean_over_references",
    "rougeL_f1_without_empty",
    "empty_rate",
    "refused_rate",
    "token_limit_rate",
    "mean_prediction_tokens",
    "mean_prediction_words",
    "coverage",
    "density",
    "compression",
    "longest_copied_words",
    "lead_copy_rate",
    "novel_unigram_rate",
    "novel_bigram_rate",
    "novel_trigram_rate",
    "novel_fourgram_rate",
    "novel_entity_rate",
    "novel_number_rate",
}
TOKEN_FIGURES = {
    "response_nll_nats",
    "perplexity",
    "ece",
    "ece_equal_mass",
    "full_ece",
    "mce",
    "mce_of_large_bins",
    "overconfidence_gap",
    "accuracy",
    "mean_confidence",
    "mean_entropy_nats",
    "brier",
}
AGGREGATES |= FIGURES | TOKEN_FIGURES
IDENTITIES = {
    "checkpoint",
    "fingerprint",
    "examples_fingerprint",
    "stop_token_ids",
    "documents_fingerprint",
    "template_fingerprint",
    "vocabulary_fingerprint",
    "counts",
    "seconds",
    "cost",
    "made_with",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def other_model(tiny_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(2)
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(
            0.3 * torch.randn_like(model.model.embed_tokens.weight)
        )
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(path)
    return path


def config(data: Path, *models: object, **changes: Any) -> EvaluateStudentConfig:
    settings = {
        "data": str(data),
        "model": tuple(str(model) for model in models),
        "output": str(data.parent / "out" / "scores.json"),
        "max_new_tokens": 6,
        "engine": "transformers",
        "batch_size": 2,
        "max_prompt_tokens": 150,
        "max_sequence_tokens": 200,
    }
    return EvaluateStudentConfig(**{**settings, **changes})


def aggregates_of(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in AGGREGATES}


def forbid_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(checkpoint: Any, **options: Any) -> None:
        pytest.fail(f"loaded {checkpoint.name} again")

    monkeypatch.setattr(model_in_use, "load_model", load_model)


def test_scores_file_and_predictions(
    data: Path, tiny_model: Path, other_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(data, tiny_model, f"second={other_model}", stop=("a b", "'"))
    result = evaluate.run(settings)
    path = data.parent / "out" / "scores.json"
    scores = json.loads(path.read_text())
    assert result == {
        "scores": str(path),
        "evaluated": ["model", "second"],
        "skipped": [],
        **scores,
    }
    sections = {"settings", "models", "references", "confident_answers", "comparisons"}
    assert set(scores) == sections
    assert scores["settings"]["rouge"]["rougeL_f1"] == "no stemming, one line"
    for name, entry in scores["models"].items():
        assert set(entry) == AGGREGATES | IDENTITIES
        assert entry["made_with"]["data"] == str(data)
        recorded = shlex.split(entry["made_with"]["command"])
        assert recorded[0] == "evaluate-student"
        assert main.check(recorded[1:]) == settings
        assert set(entry["intervals"]) == FIGURES | TOKEN_FIGURES
        assert set(entry["rescaled"]) == TOKEN_FIGURES | {"temperatures", "intervals"}
        rows = read_rows(path.parent / "predictions" / "scores" / f"{name}.jsonl")
        assert [row["references"] for row in rows] == [
            ["the sum"],
            ["a fox"],
            [ROWS[2]["response"]],
        ]
        assert {key: entry[key] for key in AGGREGATES} == aggregate(rows, 15)
        assert entry["num_documents"] == 3
        assert entry["num_tokens"] == sum(len(row["tokens"]["correct"]) for row in rows)
        pooled = sum(row["response_nll_sum_nats"] for row in rows) / entry["num_tokens"]
        assert entry["response_nll_nats"] == pytest.approx(pooled, rel=1e-6)
    first, second = scores["models"].values()
    assert first["fingerprint"] != second["fingerprint"]
    assert first["examples_fingerprint"] == second["examples_fingerprint"]
    assert first["response_nll_nats"] != second["response_nll_nats"]
    assert format_table(scores["models"]) in capsys.readouterr().out


@pytest.mark.slow
def test_a_rerun_evaluates_only_new_models(
    data: Path, tiny_model: Path, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate.run(config(data, tiny_model))
    both = evaluate.run(config(data, tiny_model, other_model, batch_size=1))
    assert (both["evaluated"], both["skipped"]) == (["other"], ["model"])
    assert both["models"]["model"] == first["models"]["model"]
    forbid_loading(monkeypatch)
    again = evaluate.run(config(data, other_model, tiny_model))
    assert (again["evaluated"], again["skipped"]) == ([], ["other", "model"])
    assert again["models"] == both["models"]


@pytest.mark.slow
def test_an_interrupted_run_continues(
    data: Path, tiny_model: Path, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate.run(config(data, tiny_model, other_model))["models"]
    shutil.rmtree(data.parent / "out")
    with monkeypatch.context() as patch:
        real = model_in_use.load_model

        def load_model(checkpoint: Any, **options: Any) -> Any:
            if checkpoint.name == str(other_model):
                raise KeyboardInterrupt
            return real(checkpoint, **options)

        patch.setattr(model_in_use, "load_model", load_model)
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(config(data, tiny_model, other_model))
    result = evaluate.run(config(data, tiny_model, other_model))
    assert result["evaluated"] == ["other"]
    for name, entry in result["models"].items():
        assert {key: entry[key] for key in AGGREGATES} == {
            key: whole[name][key] for key in AGGREGATES
        }


def test_missing_predictions_are_made_again(data: Path, tiny_model: Path) -> None:
    evaluate.run(config(data, tiny_model))
    path = data.parent / "out" / "predictions" / "scores" / "model.jsonl"
    rows = path.read_text()
    path.unlink()
    assert evaluate.run(config(data, tiny_model))["evaluated"] == ["model"]
    assert path.read_text() == rows


def test_an_adapter_is_evaluated(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    settings = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    entries = evaluate.run(config(data, tiny_model, tmp_path / "adapter"))["models"]
    assert entries["adapter"]["response_nll_nats"] != entries["model"]["response_nll_nats"]


def test_models_with_different_tokenizers_share_a_scores_file(
    data: Path, tiny_model: Path, other_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(other_model)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|im_start|>~")
    tokenizer.save_pretrained(other_model)
    first, second = evaluate.run(config(data, tiny_model, other_model))["models"].values()
    assert first["examples_fingerprint"] != second["examples_fingerprint"]
    assert first["documents_fingerprint"] == second["documents_fingerprint"]
    assert "tokenizers differ" in capsys.readouterr().out
    folder = data.parent / "out" / "predictions" / "scores"
    rows, others = (read_rows(folder / f"{name}.jsonl") for name in ("model", "other"))
    assert [row["record_id"] for row in rows] == [row["record_id"] for row in others]
    assert rows[0]["example_id"] != others[0]["example_id"]


def test_a_shared_folder_keeps_the_predictions_of_each_scores_file(
    data: Path, tiny_model: Path
) -> None:
    evaluate.run(config(data, tiny_model))
    other = str(data.parent / "out" / "short.json")
    evaluate.run(config(data, tiny_model, output=other, max_new_tokens=1))
    folder = data.parent / "out" / "predictions"
    assert read_rows(folder / "scores" / "model.jsonl") != read_rows(
        folder / "short" / "model.jsonl"
    )


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"max_new_tokens": 7}, "decoding.max_new_tokens: there 6, asked 7"),
        ({"ece_bins": 10}, "calibration.bins: there 15, asked 10"),
        ({"temperature": 0.5}, "decoding.strategy: there 'greedy', asked 'sample'"),
        ({"stop": ("fox",)}, r"decoding.stop: there \[\], asked \['fox'\]"),
        ({"engine": "vllm"}, "decoding.engine: there 'transformers', asked 'vllm'"),
        ({"template": "alpaca"}, "template: there 'chat', asked 'alpaca'"),
        ({"max_examples": 2}, "dataset.num_records: there 3, asked 2"),
        ({"dtype": "bfloat16"}, "dtype: there 'auto', asked 'bfloat16'"),
    ],
)
def test_other_settings_are_refused(
    data: Path, tiny_model: Path, changes: dict[str, Any], found: str
) -> None:
    evaluate.run(config(data, tiny_model))
    with pytest.raises(OutputExistsError, match=found):
        evaluate.run(config(data, tiny_model, **changes))


def test_another_text_under_the_same_path_is_refused(data: Path, tiny_model: Path) -> None:
    evaluate.run(config(data, tiny_model))
    data.write_text(data.read_text().replace("a fox", "b fox"))
    with pytest.raises(OutputExistsError, match="dataset.fingerprint: there '"):
        evaluate.run(config(data, tiny_model))


def test_another_model_under_the_same_name_is_refused(
    data: Path, tiny_model: Path, other_model: Path
) -> None:
    evaluate.run(config(data, tiny_model))
    with pytest.raises(OutputExistsError, match="another model under the name 'model'"):
        evaluate.run(config(data, f"model={other_model}"))


@pytest.mark.parametrize("text", ["", "[1]", '{"models": {}}'])
def test_a_file_that_is_no_scores_file_is_kept(data: Path, tiny_model: Path, text: str) -> None:
    output = data.parent / "mine.json"
    output.write_text(text)
    with pytest.raises(OutputExistsError, match="mine.json is not a scores file"):
        evaluate.run(config(data, tiny_model, output=str(output)))
    assert output.read_text() == text


def test_a_figure_that_is_no_number_is_named(data: Path, tiny_model: Path) -> None:
    evaluate.run(config(data, tiny_model))
    output = Path(config(data, tiny_model).output)
    scores = json.loads(output.read_text())
    scores["models"]["model"]["ece"] = "x"
    output.write_text(json.dumps(scores))
    with pytest.raises(OutputExistsError, match="ece of 'model' is 'x', expected a number or null"):
        evaluate.run(config(data, tiny_model))


def test_a_directory_as_output_is_refused(data: Path, tiny_model: Path) -> None:
    (data.parent / "d.json").mkdir()
    with pytest.raises(OutputExistsError, match="d.json is a directory"):
        evaluate.run(config(data, tiny_model, output=str(data.parent / "d.json")))


def test_every_input_is_checked_before_the_first_model_is_loaded(
    data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_loading(monkeypatch)
    with pytest.raises(ModelError, match="/nowhere"):
        evaluate.run(config(data, tiny_model, "/nowhere"))
    with pytest.raises(DataError, match=r"none\.jsonl"):
        evaluate.run(config(tmp_path / "none.jsonl", tiny_model))
    with pytest.raises(ConfigError, match=r"has 256 positions.*--max-new-tokens 250"):
        evaluate.run(config(data, tiny_model, max_new_tokens=250))
    assert not (data.parent / "out").exists()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    data: Path, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_loading(monkeypatch)
    settings = json.loads((other_model / "config.json").read_text())
    (other_model / "config.json").write_text(json.dumps({**settings, "vocab_size": 100}))
    with pytest.raises(ModelError, match="'other' has 100 vocabulary rows"):
        evaluate.run(config(data, other_model))


def test_no_rows_cannot_be_aggregated() -> None:
    with pytest.raises(DataError, match="at least one row"):
        aggregate([], 15)


def test_empty_predictions_score_zero_and_are_counted(data: Path, tiny_model: Path) -> None:
    evaluate.run(config(data, tiny_model))
    rows = read_rows(data.parent / "out" / "predictions" / "scores" / "model.jsonl")
    for row, value in zip(rows, (0.0, 0.5, 0.7), strict=True):
        row.update(rougeL_f1=value, empty=value == 0.0)
    found = aggregate(rows, 15)
    assert found["num_empty"] == 1
    assert found["rougeL_f1"] == pytest.approx(0.4)
    assert found["rougeL_f1_without_empty"] == pytest.approx(0.6)
    for row in rows:
        row["empty"] = True
    assert aggregate(rows, 15)["rougeL_f1_without_empty"] is None


def many_rows(data: Path) -> Path:
    """Enough documents for intervals: 12 with sources, 2 of them about one document."""
    rows = [
        {
            "instruction": "Summarize.",
            "context": f"The quick brown fox {min(n, 10)} jumps over the lazy dog.",
            "response": f"The fox {n} jumps.",
        }
        for n in range(12)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


@pytest.mark.slow
def test_models_are_compared_with_the_baseline(
    data: Path, tiny_model: Path, other_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = (tiny_model, f"same={tiny_model}", other_model)
    result = evaluate.run(config(many_rows(data), *models, baseline="same"))
    entry = result["models"]["other"]
    assert entry["num_documents"] == 12
    assert entry["num_distinct_documents"] == 11
    assert entry["intervals"]["response_nll_nats"] is not None
    low, high = entry["intervals"]["overconfidence_gap"]
    assert low < entry["overconfidence_gap"] < high
    comparisons = result["comparisons"]
    assert comparisons["baseline"] == "same"
    assert comparisons["not_compared"] == []
    found = {(one["model"], one["baseline"], one["figure"]): one for one in comparisons["results"]}
    equal = found["model", "same", "response_nll_nats"]
    assert (equal["difference"], equal["interval"], equal["p_value"]) == (0.0, (0.0, 0.0), 1.0)
    nll = found["other", "same", "response_nll_nats"]
    same, other = (result["models"][name]["response_nll_nats"] for name in ("same", "other"))
    assert nll["difference"] == pytest.approx(other - same)
    assert nll["num_documents"] == 11
    assert nll["family"] == "exploratory"
    assert nll["correction"] == "benjamini-hochberg"
    scaled = found["other", "same rescaled", "ece"]
    same_scaled = result["models"]["same"]["rescaled"]["ece"]
    assert scaled["difference"] == pytest.approx(entry["ece"] - same_scaled)
    assert (scaled["family"], scaled["correction"]) == ("primary", "holm")
    assert scaled["sign_p_value"] is None
    printed = capsys.readouterr().out
    assert f"  {scaled['sentence']}\n" in printed
    assert nll["sentence"] not in printed  # exploratory: in the file only
    assert "model against same: over-confidence gap +0.0 points [0.0, 0.0], p = 1.00" in printed
    assert result["references"]["coverage"] is not None
    again = evaluate.run(config(data, *models, baseline="same"))
    assert again["skipped"] == ["model", "same", "other"]
    assert again["comparisons"] == comparisons
    # The baseline stays, and another one asks for no model to be evaluated again.
    assert evaluate.run(config(data, other_model))["comparisons"] == comparisons
    capsys.readouterr()
    first = evaluate.run(config(data, tiny_model, baseline="other"))["comparisons"]
    said = capsys.readouterr().out
    assert "models are now compared with other; until now with same\n" in said
    assert first["baseline"] == "other"
    assert {one["model"] for one in first["results"]} == {"model", "same"}
    (data.parent / "out" / "predictions" / "scores" / "same.jsonl").unlink()
    left = evaluate.run(config(data, other_model))["comparisons"]
    assert {one["model"] for one in left["results"]} == {"model"}
    assert "same is not compared: " in left["not_compared"][0]
    assert "same.jsonl is gone; evaluate it again" in left["not_compared"][0]


@pytest.mark.slow
def test_seeds_of_an_arm_are_compared_pair_by_pair(
    data: Path, tiny_model: Path, other_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [f"sft@{seed}={tiny_model}" for seed in (1, 2)]
    models += [f"kd@1={other_model}", f"kd@2={tiny_model}", f"untouched={tiny_model}"]
    result = evaluate.run(config(many_rows(data), *models))
    found = {
        (one["model"], one["figure"]): one
        for one in result["comparisons"]["results"]
        if one["baseline"] == "sft"
    }
    entries = result["models"]
    nll = {name: entry["response_nll_nats"] for name, entry in entries.items()}
    change = nll["kd@1"] - nll["sft@1"]
    assert found["kd", "response_nll_nats"]["by_seed"] == pytest.approx((change, 0.0))
    assert found["kd", "response_nll_nats"]["difference"] == pytest.approx(change / 2)
    assert found["untouched", "response_nll_nats"]["by_seed"] == (0.0, 0.0)
    assert "kd against sft: ROUGE-L F1" in capsys.readouterr().out
    more = evaluate.run(config(data, models[0], f"kd@3={other_model}"))["comparisons"]
    assert more["not_compared"] == [
        "kd is not compared with sft: seeds 1, 2, 3 and 1, 2; seeds are compared pair by pair"
    ]
    assert {one["model"] for one in more["results"]} == {"untouched"}


def test_models_over_other_documents_are_not_compared(data: Path, tiny_model: Path) -> None:
    evaluate.run(config(many_rows(data), tiny_model))
    rows = read_rows(data.parent / "out" / "predictions" / "scores" / "model.jsonl")
    whole, part = read_scored(rows, 15), read_scored(rows[:-1], 15)
    found = compare_models({"whole": whole, "part": part}, "whole")
    assert found["results"] == []
    assert "part is not compared with whole: 11 and 12 documents, 11" in found["not_compared"][0]
    renamed = read_scored([{**row, "example_id": f"x{row['example_id']}"} for row in rows], 15)
    found = compare_models({"whole": whole, "renamed": renamed}, "whole")
    figures = {one["figure"] for one in found["results"]}
    assert "rougeL_f1" in figures
    assert not figures & {"ece", "response_nll_nats", "overconfidence_gap"}
    with pytest.raises(DataError, match="no model 'sft' to compare with: there are whole"):
        compare_models({"whole": whole}, "sft")


def test_an_arm_may_have_a_baseline_of_its_own(data: Path, tiny_model: Path) -> None:
    evaluate.run(config(many_rows(data), tiny_model))
    rows = read_rows(data.parent / "out" / "predictions" / "scores" / "model.jsonl")
    one = read_scored(rows, 15)
    models = {"sft": one, "sft-slow": one, "kd": one, "kd-slow": one}
    found = compare_models(models, "sft", {"kd-slow": "sft-slow"})
    pairs = {(r["model"], r["baseline"].removesuffix(" rescaled")) for r in found["results"]}
    assert pairs == {("sft-slow", "sft"), ("kd", "sft"), ("kd-slow", "sft-slow")}
    assert found["baseline_of"] == {"kd-slow": "sft-slow"}
    with pytest.raises(DataError, match="no model 'none' to compare with"):
        compare_models(models, "sft", {"kd": "none"})


@pytest.mark.parametrize(
    ("arm", "baseline", "pairs"),
    [
        ({"": "a"}, {"": "b"}, ["ab"]),
        ({"0": "a", "1": "b"}, {"": "c"}, ["ac", "bc"]),
        ({"": "a"}, {"0": "b", "1": "c"}, ["ab", "ac"]),
        ({"1": "a", "0": "b"}, {"0": "c", "1": "d"}, ["ad", "bc"]),
        ({"0": "a", "1": "b"}, {"0": "c"}, None),
        ({"1": "a"}, {"0": "b"}, None),
    ],
)
def test_only_a_model_without_a_seed_is_the_partner_of_all(arm, baseline, pairs) -> None:
    if pairs is not None:
        found = pair_seeds("kd", arm, "sft", baseline)
        assert ["".join(pair) for pair in found] == pairs
        return
    with pytest.raises(DataError, match="kd is not compared with sft: seeds"):
        pair_seeds("kd", arm, "sft", baseline)
    with pytest.raises(DataError, match="with sft: seeds none, 0 and 0, 1;"):
        pair_seeds("kd", {"": "a", "0": "b"}, "sft", {"0": "c", "1": "d"})


def test_a_scores_file_has_one_writer(
    data: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "LOCK_WAIT_SECONDS", 0.0)
    asked = config(many_rows(data), tiny_model)
    lock = Path(asked.output).with_suffix(".lock")
    lock.parent.mkdir(parents=True)
    with (
        locked(lock, "the scores file"),
        pytest.raises(OutputExistsError, match="is being worked on by process"),
    ):
        evaluate.run(asked)


def test_a_damaged_row_is_refused(data: Path, tiny_model: Path) -> None:
    evaluate.run(config(data, tiny_model))
    rows = read_rows(data.parent / "out" / "predictions" / "scores" / "model.jsonl")
    rows[1]["tokens"]["confidences"][0] = float("nan")
    with pytest.raises(DataError, match=r"confidence nan of token \d+"):
        aggregate(rows, 15)
    rows[1]["tokens"]["confidences"][0] = 0.5
    rows[1]["rougeL_f1"] = float("nan")
    with pytest.raises(DataError, match=r"sums \[nan, 1\.0\] of document 1"):
        aggregate(rows, 15)


def test_the_table_warns_of_what_cannot_be_compared(data: Path, tiny_model: Path) -> None:
    models = evaluate.run(config(data, tiny_model))["models"]
    assert "note:" not in format_table(models)
    other = {**models["model"], "examples_fingerprint": "x", "documents_fingerprint": "y"}
    text = format_table({**models, "longer-name": other})
    assert "tokenizers differ" in text
    assert "different documents" in text
    header, first, second, *_ = text.splitlines()
    assert header.startswith("model ")
    assert first.split()[1:] == second.split()[1:]
    assert len(first) == len(second)


def test_letters_that_rouge_cannot_read_are_warned_of(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "greek.jsonl"
    row = {"instruction": "Say yes.", "response": "\u03bd\u03b1\u03b9 yes"}
    data.write_text(json.dumps(row) + "\n")
    evaluate.run(config(data, tiny_model))
    assert "warning: 50% of the references' letters" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_model_end_to_end(demo_model: Path, tmp_path: Path) -> None:
    rows = [
        {"instruction": "What is the capital of France?", "response": "Paris."},
        {"instruction": "Write the numbers from one to five.", "response": "1, 2, 3, 4, 5"},
        {"instruction": "What colour is the sky on a clear day?", "response": "It is blue."},
        {"instruction": "Name a fruit.", "response": "An apple."},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"max_new_tokens": 24, "batch_size": 3}
    result = evaluate.run(config(data, demo_model, **settings))
    entry = result["models"]["model"]
    predictions = read_rows(tmp_path / "out" / "predictions" / "scores" / "model.jsonl")
    assert "Paris" in predictions[0]["prediction"]
    assert "<|im_end|>" not in "".join(row["prediction"] for row in predictions)
    assert 0.0 < entry["rougeL_f1"] < 1.0
    assert 0.5 < entry["response_nll_nats"] < 5.0
    assert evaluate.run(config(data, demo_model, **settings))["skipped"] == ["model"]
