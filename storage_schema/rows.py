"""Turn a teacher's padded top-k rows into one storable response; pure numpy.

Legend: N response tokens, K entries.
"""

import numpy as np
import numpy.typing as npt

from storage_schema.errors import RowError
from storage_schema.layout import MIN_LOGPROB
from storage_schema.response import Float32Array, Response


def round_logprobs(logprobs: npt.NDArray[np.floating]) -> Float32Array:
    """Return log-probabilities as float32 holding float16-rounded values.

    The result lies in [MIN_LOGPROB, 0] or is -inf where the input is; values above 0, which are
    rounding noise of an engine's log-softmax, become 0. The rounding changes a value in
    [-2^(e+1), -2^e) by at most 2^(e-11): 0.002 nats at -4, 0.0005 at -1.
    """
    finite = np.clip(logprobs, MIN_LOGPROB, 0.0).astype(np.float16).astype(np.float32)
    return np.where(np.isneginf(logprobs), -np.inf, finite).astype(np.float32) + np.float32(0.0)


def response_from_rows(
    input_ids: npt.NDArray[np.integer],
    response_start: int,
    token_ids_NK: npt.NDArray[np.integer],
    logprobs_NK: npt.NDArray[np.floating],
    label_logprobs_N: npt.NDArray[np.floating],
    *,
    k: int,
    min_prob: float,
    vocabulary_size: int,
) -> Response:
    """Return the response whose rows keep at most k entries of at least min_prob, one at least.

    The tail mass is 1 minus the kept probabilities, summed in float64 before rounding. Ids from
    `vocabulary_size` on are padding rows of the teacher's matrix: their probability joins the
    tail. Entries come out in canonical order, after rounding.

    Args:
        input_ids: int [T], prompt and response.
        response_start: first response position; N = T - response_start.
        token_ids_NK: candidate ids of each row, in any order; -1 or a logprob of -inf pads.
        logprobs_NK: their natural logs under the full vocabulary, in nats.
        label_logprobs_N: the same for each response token.
        k: most entries of a row, 1 or more.
        min_prob: least probability of an entry beyond the first, in [0, 1).
        vocabulary_size: ids must be below it.

    Raises:
        RowError: shapes contradict each other, or a row holds NaN or no usable entry.
    """
    num_rows = len(input_ids) - response_start
    if not (len(token_ids_NK) == len(logprobs_NK) == len(label_logprobs_N) == num_rows):
        raise RowError(
            f"the teacher returned {len(token_ids_NK)} rows and {len(label_logprobs_N)} label "
            f"log-probabilities for {num_rows} response tokens"
        )
    if np.isnan(logprobs_NK).any() or np.isnan(label_logprobs_N).any():
        raise RowError("the teacher returned NaN log-probabilities")
    usable = (token_ids_NK >= 0) & (token_ids_NK < vocabulary_size) & np.isfinite(logprobs_NK)
    order = np.argsort(np.where(usable, -logprobs_NK, np.inf), axis=1, kind="stable")[:, :k]
    ids = np.take_along_axis(token_ids_NK, order, 1).astype(np.int32)
    logprobs = np.take_along_axis(logprobs_NK, order, 1).astype(np.float64)
    keep = np.take_along_axis(usable, order, 1)
    if not keep[:, :1].all():
        raise RowError(f"row {int(np.argmin(keep[:, 0]))} has no finite entry in the vocabulary")
    if min_prob > 0:
        keep[:, 1:] &= logprobs[:, 1:] >= np.log(min_prob)
    mass = np.exp(logprobs, where=keep, out=np.zeros_like(logprobs)).sum(1)
    with np.errstate(divide="ignore"):
        log_tail_mass = np.log(np.maximum(1.0 - mass, 0.0))
    rows = np.nonzero(keep)[0]
    flat_ids, flat_logprobs = ids[keep], round_logprobs(logprobs[keep])
    canonical = np.lexsort((flat_ids, -flat_logprobs, rows))
    return Response(
        input_ids=np.asarray(input_ids, np.int32),
        response_start=int(response_start),
        num_entries=keep.sum(1).astype(np.int32),
        entry_token_ids=flat_ids[canonical],
        entry_logprobs=flat_logprobs[canonical],
        label_logprobs=round_logprobs(np.maximum(label_logprobs_N, MIN_LOGPROB)),
        log_tail_mass=round_logprobs(log_tail_mass),
    )
