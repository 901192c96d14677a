"""Pad token sequences into one batch, with labels on the response only.

Shapes: B batch, T positions.
"""

from collections.abc import Sequence
from typing import Protocol

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
