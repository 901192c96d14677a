"""Generation in batches through transformers: what a model answers to each prompt.

Deterministic given model, number type, device and seeds; a checkpoint's own sampling settings
(temperature, repetition penalty, forced tokens ...) play no part. In low precision another
batch size can break a near tie between two tokens differently.

Shapes: B batch, T positions.
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pipeline.generation.draws import SeededDraws, SoundLogits
from pipeline.generation.requests import Decoding, Prediction, Request, to_prediction

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def generate_batches(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    requests: Sequence[Request],
    decoding: Decoding,
    batch_size: int,
    done: AbstractSet[int] = frozenset(),
) -> Iterator[tuple[int, Prediction]]:
    """Yield the place of each request that is not `done`, and its answer, as batches finish.

    Prompts of like length share a batch, the longest first, so that a batch too large for the
    memory fails at once. Batches are formed as if nothing were done, so that a run which goes
    on after a break computes what an unbroken one would have.

    Raises:
        ModelError: the model gives logits that are not finite.
    """
    order = sorted(range(len(requests)), key=lambda index: -len(requests[index].prompt_ids))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if done >= set(batch):
            continue
        answers = _answer(model, tokenizer, [requests[index] for index in batch], decoding)
        for index, prediction in zip(batch, answers, strict=True):
            if index not in done:
                yield index, prediction


@torch.inference_mode()
def _answer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    requests: Sequence[Request],
    decoding: Decoding,
) -> list[Prediction]:
    settings = _settings(decoding, max(request.max_new_tokens for request in requests))
    input_ids_BT, mask_BT = _pad_left(
        [request.prompt_ids for request in requests], decoding.stop_ids[0], model.device
    )
    options: dict[str, Any] = {"tokenizer": tokenizer} if decoding.stop_strings else {}
    options["logits_processor"] = [SoundLogits(_describe(model))]
    if decoding.temperature > 0:
        seeds = [request.seed for request in requests]
        draws = SeededDraws(seeds, decoding.temperature, decoding.top_p)
        options["logits_processor"].append(draws)
    with _own_settings(model, settings):
        output = model.generate(
            input_ids=input_ids_BT, attention_mask=mask_BT, generation_config=settings, **options
        )
    answers = output[:, input_ids_BT.shape[1] :].tolist()
    return [
        to_prediction(answer, request, decoding, tokenizer)
        for answer, request in zip(answers, requests, strict=True)
    ]


def _describe(model: "PreTrainedModel") -> str:
    adapter = "the adapter on " if hasattr(model, "get_base_model") else ""
    return f"{adapter}{model.name_or_path} in {str(model.dtype).removeprefix('torch.')}"


def _settings(decoding: Decoding, max_new_tokens: int) -> "GenerationConfig":
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,  # draws are made before, by SeededDraws
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(decoding.stop_ids),
        stop_strings=list(decoding.stop_strings) or None,
        # Only ever seen under a zero mask or behind the end of an answer, so any stop id serves.
        pad_token_id=decoding.stop_ids[0],
    )


@contextmanager
def _own_settings(model: "PreTrainedModel", settings: "GenerationConfig") -> Iterator[None]:
    """Put `settings` in the place of the model's own for a while, and give them back.

    Trap: generate() fills what a passed GenerationConfig leaves open from the model's own, so
    a repetition penalty of the checkpoint would survive do_sample=False.
    """
    owners = [model]
    if hasattr(model, "get_base_model"):  # peft keeps a second reference
        owners.append(model.get_base_model())
    before = [owner.generation_config for owner in owners]
    for owner in owners:
        owner.generation_config = settings
    try:
        yield
    finally:
        for owner, original in zip(owners, before, strict=True):
            owner.generation_config = original


def _pad_left(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(sequence) for sequence in sequences)
    input_ids_BT = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask_BT = torch.zeros_like(input_ids_BT)
    for row, sequence in enumerate(sequences):
        input_ids_BT[row, width - len(sequence) :] = torch.as_tensor(sequence, dtype=torch.long)
        mask_BT[row, width - len(sequence) :] = 1
    return input_ids_BT.to(device), mask_BT.to(device)
