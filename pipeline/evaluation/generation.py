"""Greedy generation in batches: what a model answers to each prompt.

Deterministic given model, number type and device; a checkpoint's own sampling settings
(temperature, repetition penalty, forced tokens ...) play no part. In low precision another
batch size can break a near tie between two tokens differently.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.progress import Progress

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer.

    Attributes:
        text: decoded without special tokens, otherwise as written.
        token_ids: the generated tokens before the stop token.
        hit_token_limit: generation ended because of the limit, not by a stop token.
    """

    text: str
    token_ids: list[int]
    hit_token_limit: bool

    @property
    def empty(self) -> bool:
        """Whether there is no text besides white space."""
        return not self.text.strip()


def generate_greedy(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    label: str,
) -> list[Prediction]:
    """Return the greedy continuation of each prompt, in the order of `prompts`.

    Prompts of like length share a batch, the longest first, so that a batch too large for the
    memory fails at once.

    Args:
        model: in evaluation mode, on the device to use; an adapter may be around it.
        tokenizer: decodes the answers.
        prompts: token ids of each prompt, at least one token.
        stop_ids: tokens that end an answer; they are cut off it.
        max_new_tokens: longest answer, stop token included.
        batch_size: prompts in one batch.
        label: names the model in the progress display.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    predictions: dict[int, Prediction] = {}
    with (
        torch.inference_mode(),
        _generation_settings(model, _greedy(stop_ids, max_new_tokens)) as settings,
        Progress(f"{label}: generate", len(prompts), "documents") as progress,
    ):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            input_ids, mask = _pad_left([prompts[i] for i in batch], stop_ids[0], model.device)
            output = model.generate(
                input_ids=input_ids, attention_mask=mask, generation_config=settings
            )
            answers = output[:, input_ids.shape[1] :].tolist()
            for index, answer in zip(batch, answers, strict=True):
                predictions[index] = _cut(answer, stop_ids, tokenizer)
            progress.advance(len(batch))
    return [predictions[index] for index in range(len(prompts))]


def _greedy(stop_ids: Sequence[int], max_new_tokens: int) -> "GenerationConfig":
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        # Only ever seen under a zero mask or behind a stop token, so any valid id serves.
        pad_token_id=stop_ids[0],
    )


@contextmanager
def _generation_settings(
    model: "PreTrainedModel", settings: "GenerationConfig"
) -> Iterator["GenerationConfig"]:
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
        yield settings
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


def _cut(
    answer: list[int], stop_ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase"
) -> Prediction:
    end = next((at for at, token in enumerate(answer) if token in stop_ids), len(answer))
    token_ids = answer[:end]
    text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Prediction(str(text), token_ids, hit_token_limit=end == len(answer))
