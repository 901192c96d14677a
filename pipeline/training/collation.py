"""Pad token sequences into one batch, with labels on the response only.

Shapes: B batch, T positions.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

IGNORED_LABEL = -100
# Any valid id does: padding stands on the right, is masked, and carries no label.
PADDING_TOKEN_ID = 0


class TokenSequence(Protocol):
    """Prompt and response as one sequence of token ids."""

    @property
    def input_ids(self) -> npt.NDArray[np.int32]:
        """int32 [T], prompt then response."""

    @property
    def response_start(self) -> int:
        """Index of the first response token, 1 <= response_start < T."""


def collate_sequences(sequences: Sequence[TokenSequence]) -> dict[str, torch.Tensor]:
    """Return input_ids, attention_mask and labels, each int64 [B, T], padded on the right.

    Labels are IGNORED_LABEL on prompt and padding. Position t of the logits predicts the label
    at t + 1; as a response never starts at 0, no label is lost by that shift.
    """
    shape = (len(sequences), max(len(sequence.input_ids) for sequence in sequences))
    input_ids = np.full(shape, PADDING_TOKEN_ID, np.int64)
    attention_mask = np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORED_LABEL, np.int64)
    for row, sequence in enumerate(sequences):
        length, start = len(sequence.input_ids), sequence.response_start
        input_ids[row, :length] = sequence.input_ids
        attention_mask[row, :length] = 1
        labels[row, start:length] = sequence.input_ids[start:]
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask),
        "labels": torch.from_numpy(labels),
    }


def count_needed_logits(sequences: Sequence[TokenSequence]) -> int:
    """Return how many last positions of the padded batch there are from the first scoring one on.

    No earlier logits are needed: position response_start - 1 scores the first response token.
    """
    longest = max(len(sequence.input_ids) for sequence in sequences)
    return longest - min(sequence.response_start for sequence in sequences) + 1


def collate_for_model_loss(sequences: Sequence[TokenSequence]) -> dict[str, Any]:
    """Return the batch from which a causal model computes its own loss without prompt logits.

    The labels of collate_sequences are cut to the positions that `logits_to_keep` (an int)
    leaves, and given shifted too, because the model would shift them against all positions.
    """
    batch = collate_sequences(sequences)
    num_kept = count_needed_logits(sequences)
    labels = batch["labels"][:, -num_kept:]
    shift_labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    return {**batch, "labels": labels, "shift_labels": shift_labels, "logits_to_keep": num_kept}


def can_keep_logits(model: Any) -> bool:
    """Whether the model, or the one inside a peft wrapper, takes `logits_to_keep`."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(inner.forward).parameters
