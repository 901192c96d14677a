"""Turn cached responses into one training batch: padded tokens and padded teacher rows.

The data set itself is the cache: `LogitCache`, or anything else with `__len__` and
`__getitem__` that returns a Response. The student reads nothing but the cache.

Shapes: B batch, T positions, N response tokens in the batch, K entries.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.student.support import TeacherRows
from pipeline.training.collation import collate_sequences, count_needed_logits
from storage_schema.response import Response


def collate_labels(responses: Sequence[Response]) -> dict[str, Any]:
    """Return a batch without the teacher, all that alpha 0 needs.

    It holds the padded sequences of collate_sequences and `logits_to_keep`, an int: how many
    last positions there are from the first one on that predicts a response token. No earlier
    logits are needed.
    """
    return {**collate_sequences(responses), "logits_to_keep": count_needed_logits(responses)}


def collate_teacher_rows(responses: Sequence[Response]) -> dict[str, Any]:
    """Return the batch of collate_labels with the fields of TeacherRows.

    The N teacher rows come in the order of `labels[:, 1:] != IGNORED_LABEL`, flattened:
    response after response, each from its first token to its last.
    """
    return {**collate_labels(responses), **pad_entries(responses)._asdict()}


def pad_entries(responses: Sequence[Response]) -> TeacherRows:
    """Return the teacher rows of all responses: int64 ids and float32 logs [N, K], tails [N].

    K is the largest entry count among them; missing entries have id 0 and log-probability -inf.
    """
    num_entries_N = np.concatenate([response.num_entries for response in responses])
    shape = (len(num_entries_N), int(num_entries_N.max(initial=0)))
    present_NK = np.arange(shape[1]) < num_entries_N[:, None]
    ids_NK = np.zeros(shape, np.int64)
    logprobs_NK = np.full(shape, -np.inf, np.float32)
    ids_NK[present_NK] = np.concatenate([response.entry_token_ids for response in responses])
    logprobs_NK[present_NK] = np.concatenate([response.entry_logprobs for response in responses])
    log_tail_mass_N = np.concatenate([response.log_tail_mass for response in responses])
    return TeacherRows(
        torch.from_numpy(ids_NK),
        torch.from_numpy(logprobs_NK),
        torch.from_numpy(log_tail_mass_N.astype(np.float32)),
    )
