"""train-student's held-out part, best checkpoint, early stopping, batching, merge, from scratch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_factory import ResponsesInMemory, make_cache, random_response
from safetensors.torch import load_file
from test_student_train import make_config
from test_student_trainer import losses, make_trainer, weights, worst_difference

from pipeline.errors import ConfigError, DataError, OutputExistsError
from pipeline.evaluation.calibration import TokenScores, measure_calibration
from pipeline.models.checkpoint import find_checkpoint
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.models.vocabulary import fingerprint_vocabulary, vocabulary_size
from pipeline.student.confidence import NUM_BINS
from pipeline.student.train import run
from pipeline.student.train_model import hold_out
from storage_schema import open_cache


@pytest.fixture(scope="module")
def responses(tiny_model) -> ResponsesInMemory:
    """Thirty responses to ten prompts of three each."""
    rng = np.random.default_rng(2)
    size = vocabulary_size(load_tokenizer(find_checkpoint(str(tiny_model))))
    found = []
    for number in range(30):
        response = random_response(rng, vocabulary_size=size, k=6, prompt=5)
        response.input_ids[:5] = 10 + number // 3
        found.append(response)
    return ResponsesInMemory(found)


@pytest.fixture(scope="module")
def cache(tiny_model, responses, tmp_path_factory) -> Path:
    tokenizer = load_tokenizer(find_checkpoint(str(tiny_model)))
    return make_cache(
        tmp_path_factory.mktemp("cache") / "cache",
        responses,
        vocabulary_size=vocabulary_size(tokenizer),
        vocabulary_fingerprint=fingerprint_vocabulary(tokenizer),
        k=6,
        examples_per_shard=7,
    )


def prompts(found) -> set[bytes]:
    return {response.input_ids[:5].tobytes() for response in found}


def test_no_prompt_is_on_both_sides(cache):
    loaded = open_cache(cache)
    trained_on, held_out = hold_out(loaded, 0.25, seed=0)
    assert len(held_out) == 9  # three whole prompts
    assert trained_on.sum() == 21
    kept = [loaded[int(i)] for i in np.flatnonzero(trained_on)]
    assert not prompts(kept) & prompts(held_out)
    for response in held_out:  # copies: a view would keep its whole row group in memory
        assert response.entry_logprobs.base is None
    assert hold_out(loaded, 0.0, seed=0) == (None, [])
    with pytest.raises(DataError, match=r"--eval-share 0.95 of 30 examples with 10 different"):
        hold_out(loaded, 0.95, seed=0)


def scores_of(model, responses) -> TokenScores:
    """What the model says of each gold token, one response after another, in float64."""
    logprobs, confidences, correct = [], [], []
    for response in responses:
        ids = torch.from_numpy(response.input_ids.astype(np.int64))
        with torch.no_grad():
            rows = model(ids[None]).logits[0, response.response_start - 1 : -1].double()
        rows, labels = rows.log_softmax(-1), ids[response.response_start :]
        logprobs += rows.gather(1, labels[:, None]).squeeze(1).tolist()
        confidences += rows.amax(1).exp().tolist()
        correct += (rows.argmax(1) == labels).tolist()
    zeros = np.zeros(len(logprobs))
    return TokenScores(np.array(logprobs), np.array(confidences), np.array(correct), zeros, zeros)


@pytest.mark.parametrize("batching", ["padded", "padding-free"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_held_out_figures_are_those_of_evaluate_student(
    tiny_model, tmp_path, responses, batching, temperature
):
    """CE and ECE by another road, one response at a time; and no alpha changes them."""
    found = {}
    for alpha in (0.0, 1.0):
        trainer = make_trainer(
            tiny_model,
            tmp_path / f"{alpha}",
            responses,
            alpha,
            batch_tokens=60,
            temperature=temperature,
        )
        trainer.batching = batching
        found[alpha] = trainer.evaluate()
    scores = scores_of(trainer.model.eval(), responses)
    measured = measure_calibration(scores, NUM_BINS)
    for metrics in found.values():
        assert metrics["eval_response_tokens"] == len(scores.confidences)
        assert metrics["eval_ce"] == pytest.approx(-scores.label_logprobs.mean(), rel=1e-5)
        assert metrics["eval_ece"] == pytest.approx(measured["ece"], abs=1e-5)
        assert metrics["eval_kl"] == pytest.approx(found[1.0]["eval_kl"])
    assert measured["ece"] > 0.01
    assert found[0.0]["eval_loss"] == pytest.approx(found[0.0]["eval_ce"])
    total = found[1.0]["eval_ce"] + found[1.0]["eval_kl"]
    assert found[1.0]["eval_loss"] == pytest.approx(total)


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_the_run_stops_early(tiny_model, cache, tmp_path, capsys):
    """A rate at which the random labels are learnt by heart, so that the held-out CE rises."""
    output = tmp_path / "student"
    result = run(
        make_config(
            tiny_model,
            cache,
            output,
            alpha=0.0,
            max_steps=60,
            learning_rate=3e-2,
            save_every_steps=3,
            eval_share=0.25,
            early_stopping_patience=2,
        )
    )
    evaluations = {entry["step"]: entry for entry in result["evaluations"]}
    values = [entry["eval_loss"] for entry in evaluations.values()]
    assert result["best_eval_loss"] == min(values) == evaluations[result["best_step"]]["eval_loss"]
    assert result["steps"] < 60
    assert values.index(min(values)) == len(values) - 3
    assert {"eval_ce", "eval_kl", "eval_ece"} <= set(evaluations[result["best_step"]])
    assert result["counts"] == {"trained_on": 21, "held_out": 9}
    assert f"held out, at step {result['best_step']}, which is kept: CE " in capsys.readouterr().out
    # The weights on disk are those of the best step.
    student = load_model(find_checkpoint(str(output)), dtype="float32")
    _, held_out = hold_out(open_cache(cache), 0.25, seed=0)
    scores = scores_of(student, held_out)
    assert -scores.label_logprobs.mean() == pytest.approx(min(values), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"max_steps": 5}, {"max_steps": 5, "eval_share": 0.25}])
def test_killed_after_its_last_step_it_trains_no_further(
    tiny_model, cache, tmp_path, monkeypatch, options
):
    options = {**options, "save_every_steps": 2, "learning_rate": 3e-2}
    whole = run(make_config(tiny_model, cache, tmp_path / "whole", **options))
    monkeypatch.setattr("pipeline.student.train_model.write_result", None)
    with pytest.raises(TypeError):
        run(make_config(tiny_model, cache, tmp_path / "killed", **options))
    monkeypatch.undo()
    resumed = run(make_config(tiny_model, cache, tmp_path / "killed", **options))
    assert resumed["resumed_from_step"] == resumed["steps"] == whole["steps"] == 5
    assert [entry["loss"] for entry in resumed["history"]] == [e["loss"] for e in whole["history"]]
    expected = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    for key, value in load_file(tmp_path / "killed" / "adapter_model.safetensors").items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_budgets_and_padding_change_nothing(tiny_model, tmp_path, responses, alpha):
    """Eight responses a step: in one pass, in passes of 40 tokens, in one row each."""
    whole = make_trainer(tiny_model, tmp_path / "a", responses, alpha)
    before = weights(whole)
    whole.args.optim = "sgd"  # leaves a rounding error as small as it is
    whole.train()
    assert max((before[k] - v).abs().max() for k, v in weights(whole).items()) > 1e-3
    for batching, tokens in (("padded", 40), ("padding-free", 40), ("padding-free", None)):
        cut = make_trainer(tiny_model, tmp_path / "b", responses, alpha, batch_tokens=tokens)
        cut.batching, cut.args.optim = batching, "sgd"
        cut.train()
        assert cut.responses_per_step == 8
        assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)
        assert losses(cut, "ce") == pytest.approx(losses(whole, "ce"), rel=1e-5)
        assert cut.state.num_input_tokens_seen == whole.state.num_input_tokens_seen
        assert worst_difference(whole, cut) < 1e-6


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_response_in_a_row_is_scored_as_it_is_alone(tiny_model, tmp_path, responses, attention):
    """No response attends to the one before it, in its loss and in every gradient."""
    trainer = make_trainer(tiny_model, tmp_path, responses, 1.0)
    trainer.model.set_attn_implementation(attention)
    trainer.batching = "padding-free"
    collate = trainer._collate(with_teacher=True)

    def measure(batches):
        trainer.model.zero_grad()
        loss = sum(trainer.compute_loss(trainer.model, b, num_items_in_batch=1) for b in batches)
        loss.backward()
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        return loss.item(), [p.grad.clone() for p in trained]

    together = measure([collate(responses[:4])])
    alone = measure([collate([response]) for response in responses[:4]])
    assert together[0] == pytest.approx(alone[0], rel=1e-6)
    for one, other in zip(together[1], alone[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    mixed = collate(responses[:4])
    mixed["position_ids"] = torch.arange(mixed["input_ids"].shape[1])[None]  # one long document
    assert abs(measure([mixed])[0] - together[0]) > 1e-3 * together[0]


def test_a_run_says_how_it_was_made_and_how_long_it_waited(tiny_model, cache, tmp_path, capsys):
    result = run(
        make_config(
            tiny_model,
            cache,
            tmp_path / "s",
            max_steps=2,
            batching="padding-free",
            batch_tokens=50,
            gradient_accumulation_steps=2,
        )
    )
    assert result["made_with"] == {
        "batching": "padding-free",
        "attention": "sdpa",
        "processes": 1,
        "responses_per_step": 8,
    }
    assert 0 < result["input_share"] < 1
    printed = capsys.readouterr().out
    assert "padding-free batches, sdpa attention, 8 responses a step" in printed
    assert f"{result['input_share']:.1%} of the time waiting for input" in printed


def test_another_number_of_processes_is_another_run(tiny_model, cache, tmp_path, monkeypatch):
    config = make_config(tiny_model, cache, tmp_path / "s", max_steps=1)
    run(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OutputExistsError, match="responses_per_step: there 4, asked 8"):
        run(config)


def test_merge_writes_the_adapted_model_whole(tiny_model, cache, tmp_path):
    options = {"max_steps": 3, "learning_rate": 1e-2}
    run(make_config(tiny_model, cache, tmp_path / "adapter", **options))
    run(make_config(tiny_model, cache, tmp_path / "merged", merge=True, **options))
    merged = find_checkpoint(str(tmp_path / "merged"))
    assert merged.adapter_path is None
    assert not list((tmp_path / "merged").glob("*adapter*"))
    ids = torch.tensor([[5, 6, 7, 8]])
    adapted = load_model(find_checkpoint(str(tmp_path / "adapter")), dtype="float32")(ids).logits
    torch.testing.assert_close(load_model(merged, dtype="float32")(ids).logits, adapted)


@pytest.mark.slow
def test_from_scratch_takes_the_shape_and_no_weight(tiny_model, cache, tmp_path):
    """The first weights depend on the seed alone; a folder without any weights does."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    options = {"tuning": "full", "from_scratch": True, "max_steps": 12}
    first = run(make_config(tiny_model, cache, tmp_path / "a", **options))
    again = run(make_config(bare, cache, tmp_path / "b", **options))
    other = run(make_config(bare, cache, tmp_path / "c", **options, seed=1))
    assert first["history"] == again["history"] != other["history"]
    # Random weights know nothing: the first loss is that of a uniform guess, about log V.
    size = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    assert first["history"][0]["ce"] == pytest.approx(np.log(size), rel=0.05)
    assert first["history"][0]["learning_rate"] <= 6e-4
    assert first["last"]["ce"] < first["first"]["ce"]
    pretrained, random = (load_file(p / "model.safetensors") for p in (tiny_model, tmp_path / "a"))
    assert set(pretrained) == set(random)
    assert find_checkpoint(str(tmp_path / "a")).adapter_path is None


def test_the_longest_sequence_must_fit_a_pass(tiny_model, cache, tmp_path, responses):
    longest = int(responses.sequence_lengths.max())
    with pytest.raises(ConfigError, match=rf"--batch-tokens {longest - 1}: .* at least {longest}"):
        run(make_config(tiny_model, cache, tmp_path / "s", batch_tokens=longest - 1))
    assert not (tmp_path / "s").exists()
    run(make_config(tiny_model, cache, tmp_path / "s", batch_tokens=longest, max_steps=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 0}, "--batch-tokens 0 must be at least 1"),
        ({"from_scratch": True}, "--from-scratch with --tuning lora: random weights must all"),
        ({"fsdp": True}, "--fsdp shards over several processes and there is one"),
        ({"merge": True, "tuning": "full"}, "--merge with --tuning full: there is no adapter"),
        ({"eval_share": 1.0}, r"--eval-share 1.0 must be in \[0, 1\)"),
        ({"early_stopping_patience": 2}, "--early-stopping-patience 2 needs an evaluation"),
    ],
)
def test_bad_settings_are_refused(tiny_model, cache, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(tiny_model, cache, tmp_path, **changes)


def test_four_bits_are_not_sharded(tiny_model, cache, tmp_path):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(ConfigError, match="--fsdp with --tuning qlora: 4-bit weights are not"):
        make_config(tiny_model, cache, tmp_path, fsdp=True, tuning="qlora")


def test_qlora_trains_a_student_and_merges_into_all_its_weights(tiny_model, cache, tmp_path):
    pytest.importorskip("bitsandbytes")
    options = {"tuning": "qlora", "max_steps": 10, "learning_rate": 1e-2, "merge": True}
    result = run(make_config(tiny_model, cache, tmp_path / "merged", **options))
    assert result["last"]["loss"] < result["first"]["loss"]
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    base = load_file(tiny_model / "model.safetensors")
    assert {k: v.dtype for k, v in merged.items()} == {k: v.dtype for k, v in base.items()}
