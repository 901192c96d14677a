"""Generation equals a loop by hand, whatever the batch and the checkpoint's own settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.errors import ModelError
from pipeline.generation.draws import draw
from pipeline.generation.requests import Decoding, Prediction, Request, derive_seed
from pipeline.generation.transformers_generator import generate_batches

PROMPTS = [[9, 40, 41], [17], [30, 31, 32, 33, 34, 35, 36, 37, 38], [100, 7], [60, 61, 62, 63]]
NEVER = 0  # <|endoftext|>: the tiny model does not write it in these continuations
LENGTH = 12


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@torch.no_grad()
def greedy_by_hand(model: Any, prompt: list[int], stop_ids: list[int], limit: int) -> list[int]:
    ids = list(prompt)
    for _ in range(limit):
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in stop_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


def generate(
    model: Any,
    tokenizer: Any,
    stop_ids: tuple[int, ...] = (NEVER,),
    max_new_tokens: int = LENGTH,
    batch_size: int = 2,
) -> list[Prediction]:
    requests = [Request(prompt, max_new_tokens) for prompt in PROMPTS]
    found = dict(generate_batches(model, tokenizer, requests, Decoding(stop_ids), batch_size))
    return [found[index] for index in range(len(PROMPTS))]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_equals_the_loop_by_hand_in_any_batch(model: Any, tokenizer: Any, batch_size: int) -> None:
    found = generate(model, tokenizer, batch_size=batch_size)
    expected = [greedy_by_hand(model, prompt, [NEVER], LENGTH) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS)  # the prompts do matter
    assert [prediction.token_ids for prediction in found] == expected
    assert all(prediction.hit_token_limit for prediction in found)
    assert found[0].text == tokenizer.decode(expected[0], skip_special_tokens=True)


def test_any_stop_token_ends_an_answer_and_is_cut_off(model: Any, tokenizer: Any) -> None:
    free = [greedy_by_hand(model, prompt, [], LENGTH) for prompt in PROMPTS]
    stop_ids = [free[0][3], free[2][0]]
    found = generate(model, tokenizer, stop_ids=tuple(stop_ids))
    expected = [greedy_by_hand(model, prompt, stop_ids, LENGTH) for prompt in PROMPTS]
    assert [prediction.token_ids for prediction in found] == expected
    assert not found[0].hit_token_limit
    assert found[2] == Prediction("", [], hit_token_limit=False)
    assert found[2].empty


def test_a_stop_token_in_the_last_place_is_no_limit(model: Any, tokenizer: Any) -> None:
    stop = greedy_by_hand(model, PROMPTS[0], [], 1)[0]
    assert not generate(model, tokenizer, stop_ids=(stop,), max_new_tokens=1)[0].hit_token_limit


def test_the_checkpoints_own_settings_play_no_part(model: Any, tokenizer: Any) -> None:
    expected = generate(model, tokenizer)
    own = model.generation_config
    own.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, no_repeat_ngram_size=1)
    own.update(suppress_tokens=expected[0].token_ids, min_new_tokens=5, num_beams=3)
    assert generate(model, tokenizer) == expected
    assert model.generation_config is own
    assert own.repetition_penalty == 9.0


def test_an_adapter_generates_too(model: Any, tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    plain = generate(model, tokenizer)
    torch.manual_seed(1)
    settings = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, settings).eval()
    adapted.generation_config.repetition_penalty = 9.0
    found = generate(adapted, tokenizer)
    expected = [greedy_by_hand(adapted, prompt, [NEVER], LENGTH) for prompt in PROMPTS]
    assert [prediction.token_ids for prediction in found] == expected
    assert found != plain


def test_white_space_is_empty() -> None:
    assert Prediction(" \n", [5], hit_token_limit=False).empty
    assert not Prediction("a", [5], hit_token_limit=False).empty


def ask(model: Any, tokenizer: Any, decoding: Decoding, batch_size: int, **options: Any) -> Any:
    requests = [Request(prompt, LENGTH, seed) for seed, prompt in enumerate(PROMPTS)]
    return dict(generate_batches(model, tokenizer, requests, decoding, batch_size, **options))


@pytest.mark.slow
def test_draws_depend_on_the_requests_own_seed_only(model: Any, tokenizer: Any) -> None:
    decoding = Decoding((NEVER,), temperature=1.0)
    found = ask(model, tokenizer, decoding, 2)
    assert ask(model, tokenizer, decoding, 5) == found
    assert found != ask(model, tokenizer, Decoding((NEVER,)), 2)
    again = [Request(PROMPTS[0], LENGTH, seed) for seed in (0, 1)]
    same, other = (p for _, p in generate_batches(model, tokenizer, again, decoding, 2))
    assert same == found[0] != other


def test_what_is_done_is_not_made_again_and_batches_stay(model: Any, tokenizer: Any) -> None:
    decoding = Decoding((NEVER,))
    everything = ask(model, tokenizer, decoding, 2)
    rest = ask(model, tokenizer, decoding, 2, done=frozenset({0, 2}))
    assert rest == {index: everything[index] for index in (1, 3, 4)}
    assert ask(model, tokenizer, decoding, 2, done=frozenset(range(5))) == {}


def test_a_stop_string_ends_an_answer_and_is_cut_off(model: Any, tokenizer: Any) -> None:
    free = ask(model, tokenizer, Decoding((NEVER,)), 5)
    stop = free[0].text[3:5]
    found = ask(model, tokenizer, Decoding((NEVER,), stop_strings=(stop, "never there")), 5)
    for index, prediction in free.items():
        at = prediction.text.find(stop)
        assert found[index].text == (prediction.text[:at] if at >= 0 else prediction.text)
        assert found[index].finish_reason == ("stop" if at >= 0 else "length")
    assert found[0].finish_reason == "stop"


def test_each_answer_has_its_own_limit(model: Any, tokenizer: Any) -> None:
    limits = [3, 12, 1, 7, 2]
    requests = [Request(prompt, limit) for prompt, limit in zip(PROMPTS, limits, strict=True)]
    found = dict(generate_batches(model, tokenizer, requests, Decoding((NEVER,)), 5))
    assert [len(found[index].token_ids) for index in range(5)] == limits
    assert all(found[index].hit_token_limit for index in range(5))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_without_a_largest_are_refused(
    model: Any, tokenizer: Any, tiny_model: Path, temperature: float, value: float
) -> None:
    from peft import LoraConfig, get_peft_model

    torch.nn.init.constant_(model.model.norm.weight, value)
    said = rf"{tiny_model} in float32 gives logits of which the largest is .*try --dtype float32"
    with pytest.raises(ModelError, match=said):
        ask(model, tokenizer, Decoding((NEVER,), temperature=temperature), 2)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match=f"the adapter on {tiny_model} in float32"):
        ask(adapted, tokenizer, Decoding((NEVER,), temperature=temperature), 2)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]])
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    drawn = draw(logits.expand(10_000, -1), uniform, temperature=0.7, top_p=1.0)
    share = torch.bincount(drawn, minlength=4) / 10_000
    torch.testing.assert_close(share, torch.softmax(logits[0] / 0.7, 0), atol=2e-4, rtol=0)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    uniform = torch.linspace(0, 1, 1001)  # both ends
    for top_p, kept in ((0.4, 1), (0.6, 2), (0.9, 3), (1.0, 4)):
        drawn = draw(logits.expand(1001, -1), uniform, temperature=1.0, top_p=top_p)
        assert set(drawn.tolist()) == set(range(kept))
        share = (drawn == 0).double().mean()
        assert share == pytest.approx(0.5 / [0.5, 0.8, 0.95, 1.0][kept - 1], abs=2e-3)


def test_seeds_of_answers_differ_and_know_no_place() -> None:
    seeds = {derive_seed(s, p, n) for s in (0, 1) for p in ([1, 23], [12, 3]) for n in (0, 1)}
    assert len(seeds) == 8
    assert derive_seed(0, [1, 23], 0) == derive_seed(0, (1, 23), 0)
    assert all(0 <= seed < 2**63 for seed in seeds)
