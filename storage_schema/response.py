"""One response with its teacher rows, as flat numpy arrays: what the cache stores and returns.

Position rule (fixed): row t of the response is the teacher's distribution FOR the token
`input_ids[response_start + t]`, given every token before it. There is one row for each
response token, so N = len(input_ids) - response_start.
"""

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


def example_id(input_ids: npt.NDArray[np.integer], response_start: int) -> bytes:
    """Return the 32-byte key of an example: SHA-256 over its token ids and response start.

    The digest covers the little-endian int32 response start followed by the little-endian
    int32 token ids, so anyone can recompute it from a row.
    """
    start = int(response_start).to_bytes(4, "little", signed=True)
    return hashlib.sha256(start + np.asarray(input_ids, dtype="<i4").tobytes()).digest()


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """One response and the teacher's log-probabilities for each of its tokens.

    Attributes:
        input_ids: int32 [T], prompt then response, exactly what teacher and student read.
        response_start: index of the first response token, 1 <= response_start < T.
        num_entries: int32 [N], how many entries each row has, at least 1.
        entry_token_ids: int32 [sum of num_entries], all rows one after the other; within a row
            by log-probability descending, then by id ascending (the canonical order).
        entry_logprobs: float32, parallel to entry_token_ids; natural logs under the teacher's
            full vocabulary, never renormalised.
        label_logprobs: float32 [N], the same for the gold token, inside the support or not.
        log_tail_mass: float32 [N], log(1 - sum of the stored entries' probabilities);
            -inf when nothing is left out.
        entropies: float32 [N], the teacher's exact entropy in nats, over all rows of its output
            matrix; None where the cache stores none.
        log_normalizers: float32 [N], log-sum-exp of the teacher's raw logits, so that
            entry_logprobs + log_normalizers are bfloat16 logits; None in any other codec.
        entry_draws: int32, parallel to entry_token_ids, how often each id was drawn; each row
            sums to the plan's num_samples; None where the support was not sampled.
    """

    input_ids: Int32Array
    response_start: int
    num_entries: Int32Array
    entry_token_ids: Int32Array
    entry_logprobs: Float32Array
    label_logprobs: Float32Array
    log_tail_mass: Float32Array
    entropies: Float32Array | None = None
    log_normalizers: Float32Array | None = None
    entry_draws: Int32Array | None = None

    @property
    def num_response_tokens(self) -> int:
        """N, the number of response tokens and of teacher rows."""
        return len(self.input_ids) - self.response_start

    def copy(self) -> "Response":
        """Return the response in memory of its own, free of the row group it was decoded with."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        copies: dict[str, Any] = {
            name: value.copy() for name, value in values.items() if isinstance(value, np.ndarray)
        }
        return replace(self, **copies)

    @property
    def example_id(self) -> bytes:
        """The 32-byte key of the example."""
        return example_id(self.input_ids, self.response_start)
