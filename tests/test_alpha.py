"""The weight of the KL over tokens and steps: formulas, bounds, batches and the Trainer."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from cache_factory import random_responses
from test_student_trainer import losses, make_trainer, worst_difference

from pipeline.errors import ConfigError
from pipeline.student.alpha import AlphaSettings, entropies, token_weights
from pipeline.student.batches import collate_teacher_rows
from storage_schema import response_from_rows


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2, 2, 2, 2, 2]),
        ("linear", [0, 0.5, 1, 1.5, 2]),
        ("cosine", [0, 1 - 0.5**0.5, 1, 1 + 0.5**0.5, 2]),
    ],
)
def test_schedules_go_from_nothing_to_alpha(schedule, expected):
    settings = AlphaSettings(alpha=2.0, schedule=schedule)
    assert [settings.at_step(step, 5) for step in range(5)] == pytest.approx(expected)
    assert settings.at_step(0, 1) == 2  # one step has no way to grow
    assert settings.at_step(9, 5) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -0.5}, "--alpha -0.5 must be 0 or more"),
        ({"alpha": math.inf}, "--alpha inf must be"),
        ({"alpha": math.nan}, "--alpha nan must be"),
        ({"mode": "auto"}, "--alpha-mode 'auto' is unknown: one of constant, entropy, surprise"),
        ({"schedule": "step"}, "--alpha-schedule 'step' is unknown: one of constant, linear, cos"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        AlphaSettings(**{"alpha": 1.0, **changes})


def teacher(num_rows=6, vocabulary=200, seed=0, sharpness=3.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, sharpness, (num_rows, vocabulary))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def stored(logprobs, k, **changes):
    """The response of a teacher with these log-probabilities, label 0 throughout."""
    top = np.argsort(-logprobs, axis=1)[:, :k]
    return replace(
        response_from_rows(
            np.zeros(len(logprobs) + 1, np.int32),
            1,
            top,
            np.take_along_axis(logprobs, top, 1),
            logprobs[:, 0],
            k=k,
            min_prob=0.0,
            vocabulary_size=logprobs.shape[1],
        ),
        **changes,
    )


def test_entropy_is_exact_with_everything_stored_and_a_lower_bound_else():
    logprobs = teacher()
    exact = -(np.exp(logprobs) * logprobs).sum(1)
    np.testing.assert_allclose(entropies(stored(logprobs, 200)), exact, rtol=1e-3)
    before = np.zeros(6)
    for k in (1, 4, 16, 64):
        bound = entropies(stored(logprobs, k))
        assert (bound <= exact + 1e-3).all()
        assert (bound >= before - 1e-3).all()  # more entries, a better bound
        before = bound
    assert (before > 0.9 * exact).all()


def test_entropy_of_a_tail_larger_than_the_least_entry():
    """0.5 stored, 0.5 left: at least one more token of 0.5, so at least ln 2, which this is."""
    logprobs = np.log([[0.5, 0.5]])
    assert entropies(stored(logprobs, 1)).item() == pytest.approx(math.log(2), rel=1e-3)
    logprobs = np.log([[0.4, 0.3, 0.3]])
    # The tail of 0.6 holds tokens of 0.4 at most: 0.4 ln(1/0.4) + 0.6 ln(1/0.4).
    assert entropies(stored(logprobs, 1)).item() == pytest.approx(-math.log(0.4), rel=1e-3)


def test_stored_entropies_are_taken_as_they_are():
    exact = np.arange(6, dtype=np.float32)
    assert entropies(stored(teacher(), 4, entropies=exact)) is exact


def test_entropy_from_draws_is_right_on_average():
    logprobs = teacher(1).repeat(2000, 0)
    rng = np.random.default_rng(4)
    draws = np.stack([rng.multinomial(20, np.exp(row)) for row in logprobs])
    num_entries = (draws > 0).sum(1).astype(np.int32)
    rows, ids = np.nonzero(draws)
    response = replace(
        stored(logprobs, 1),
        num_entries=num_entries,
        entry_token_ids=ids.astype(np.int32),
        entry_logprobs=logprobs[rows, ids].astype(np.float32),
        entry_draws=draws[rows, ids].astype(np.int32),
    )
    exact = -(np.exp(logprobs[0]) * logprobs[0]).sum()
    assert entropies(response).mean() == pytest.approx(exact, rel=0.01)


def test_weights_are_none_for_a_certain_teacher_and_near_one_for_a_lost_one():
    certain, lost = np.full((1, 50), -40.0), np.full((1, 50), -math.log(50))
    certain[0, 0] = 0.0
    for mode in ("entropy", "surprise"):
        assert token_weights(stored(certain, 50), mode).item() == pytest.approx(0, abs=1e-6)
        assert token_weights(stored(lost, 50), mode).item() == pytest.approx(0.98, abs=1e-4)
    half = stored(np.log([[0.25, 0.75]]), 2)
    assert token_weights(half, "surprise").item() == pytest.approx(0.75, rel=1e-3)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert token_weights(half, "entropy").item() == pytest.approx(1 - math.exp(-entropy), rel=1e-3)
    assert token_weights(half, "constant").tolist() == [1]


@pytest.mark.parametrize("mode", ["constant", "entropy", "surprise"])
def test_batches_carry_each_tokens_weight(mode):
    responses = random_responses(5)
    batch = collate_teacher_rows(responses, mode)
    each = [token_weights(response, mode) for response in responses]
    assert batch["alpha_weights_N"].tolist() == np.concatenate(each).tolist()


def test_draws_travel_in_the_batch():
    logprobs = teacher()
    response = stored(logprobs, 4, entry_draws=np.tile(np.int32([5, 2, 2, 1]), 6))
    batch = collate_teacher_rows([response, response])
    assert batch["entry_draws_NK"].shape == (12, 4)
    assert batch["entry_draws_NK"].sum(1).tolist() == [10] * 12


RUN = {"max_steps": 5, "learning_rate": 1e-3}


def test_a_schedule_starts_as_plain_training_and_ends_at_alpha(tiny_model, tmp_path):
    responses = random_responses(24, vocabulary_size=300)
    trainer = make_trainer(tiny_model, tmp_path, responses, 2.0, alpha_schedule="linear", **RUN)
    trainer.train()
    assert losses(trainer, "alpha") == pytest.approx([0, 0.5, 1, 1.5, 2])
    for entry in trainer.state.log_history[:-1]:
        assert entry["loss"] == pytest.approx(entry["ce"] + entry["alpha"] * entry["kl"], rel=1e-5)
    metrics = trainer.evaluate()  # on the whole alpha, whatever the step
    assert metrics["eval_alpha"] == 2
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_ce"] + 2 * metrics["eval_kl"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["entropy", "surprise"])
def test_modes_do_not_depend_on_how_the_batch_is_cut(tiny_model, tmp_path, mode):
    responses = random_responses(24, vocabulary_size=300)
    run = partial(make_trainer, tiny_model, data=responses, alpha=2.0, alpha_mode=mode, **RUN)
    whole = run(output=tmp_path / "a")
    parts = run(output=tmp_path / "b", batch_size=2, gradient_accumulation_steps=4)
    constant = make_trainer(tiny_model, tmp_path / "c", responses, 2.0, **RUN)
    for trainer in (whole, parts, constant):
        trainer.train()
    assert losses(whole) == pytest.approx(losses(parts), rel=1e-5)
    assert worst_difference(whole, parts) < 1e-4
    assert all(0 < alpha < 2 for alpha in losses(whole, "alpha"))
    assert losses(whole)[-1] != pytest.approx(losses(constant)[-1], rel=1e-3)


def test_normalised_loss_is_a_mean_of_both_terms(tiny_model, tmp_path):
    responses = random_responses(8, vocabulary_size=300)
    changes = {"max_steps": 1, "normalize_loss": True}
    trainer = make_trainer(tiny_model, tmp_path, responses, 3.0, **changes)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx((entry["ce"] + 3 * entry["kl"]) / 4, rel=1e-5)
