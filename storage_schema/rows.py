"""Turn a teacher's padded rows into one storable response; pure numpy.

Legend: N response tokens, K entries.
"""

import numpy as np
import numpy.typing as npt

from storage_schema.bfloat16 import nearest_bfloat16, snap_logprobs
from storage_schema.errors import RowError
from storage_schema.layout import MAX_MASS_EXCESS, MIN_LOGPROB
from storage_schema.response import Float32Array, Int32Array, Response


def round_logprobs(logprobs: npt.NDArray[np.floating]) -> Float32Array:
    """Return log-probabilities as float32 holding float16-rounded values.

    The result lies in [MIN_LOGPROB, 0] or is -inf where the input is; values above 0, which are
    rounding noise of an engine's log-softmax, become 0. The rounding changes a value in
    [-2^(e+1), -2^e) by at most 2^(e-11): 0.002 nats at -4, 0.0005 at -1.
    """
    finite = np.clip(logprobs, MIN_LOGPROB, 0.0).astype(np.float16).astype(np.float32)
    finite += np.float32(0.0)  # -0.0 becomes 0.0
    return np.where(np.isneginf(logprobs), np.float32(-np.inf), finite)


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
    entropies_N: npt.NDArray[np.floating] | None = None,
    log_normalizers_N: npt.NDArray[np.floating] | None = None,
    draws_NK: npt.NDArray[np.integer] | None = None,
) -> Response:
    """Return the response whose rows keep at most k entries of at least min_prob, one at least.

    The tail mass is 1 minus the kept probabilities, summed in float64 before rounding. Ids from
    `vocabulary_size` on are padding rows of the teacher's matrix: their probability joins the
    tail. Among equal candidates at the cut to k the lower ids stay. Entries come out in canonical
    order, after rounding: to float16, or to bfloat16 logits where the normalisers are given.

    Args:
        input_ids: int [T], prompt and response.
        response_start: first response position; N = T - response_start.
        token_ids_NK: candidate ids of each row, in any order; -1 or a logprob of -inf pads.
        logprobs_NK: their natural logs under the full vocabulary, in nats.
        label_logprobs_N: the same for each response token.
        k: most entries of a row, 1 or more.
        min_prob: least probability of an entry beyond the first, in [0, 1).
        vocabulary_size: ids must be below it.
        entropies_N: exact entropies in nats, for a plan that stores them.
        log_normalizers_N: log-sum-exp of the raw bfloat16 logits, for the codec
            bfloat16-logits.
        draws_NK: how often each candidate was drawn, for a sampled support; k is then the number
            of draws and min_prob 0.

    Raises:
        RowError: shapes contradict each other; a row holds NaN or no usable entry, its
            probabilities sum to more than 1, or its draws not to k; an entropy is negative or
            not finite; or logits are not bfloat16.
    """
    num_rows = len(input_ids) - response_start
    _check_rows(num_rows, token_ids_NK, logprobs_NK, label_logprobs_N)
    usable_NK = (token_ids_NK >= 0) & (token_ids_NK < vocabulary_size) & ~np.isneginf(logprobs_NK)
    if not usable_NK.any(1).all():
        bad = int(np.argmin(usable_NK.any(1)))
        raise RowError(f"row {bad} has no finite entry in the vocabulary")
    order_NK = np.argsort(_sort_keys(token_ids_NK, logprobs_NK, usable_NK), axis=1)[:, :k]
    ids_NK = np.take_along_axis(token_ids_NK, order_NK, 1)
    logprobs_NK = np.take_along_axis(logprobs_NK, order_NK, 1).astype(np.float64)
    keep_NK = np.take_along_axis(usable_NK, order_NK, 1)
    if min_prob > 0:
        keep_NK[:, 1:] &= logprobs_NK[:, 1:] >= np.log(min_prob)
    num_entries = keep_NK.sum(1)
    log_tail_mass = round_logprobs(_log_tail_mass(logprobs_NK, keep_NK))
    normalizers = None
    if log_normalizers_N is None:
        stored_NK = round_logprobs(logprobs_NK)
    else:
        normalizers, stored_NK = _snap(log_normalizers_N, logprobs_NK, keep_NK)
    # Rounding makes ties: sort once more. What is not kept sorts behind the rest of its row.
    keys_NK = _sort_keys(ids_NK, stored_NK, keep_NK)
    entry_draws = None
    if draws_NK is not None:
        draws_NK = np.take_along_axis(draws_NK, order_NK, 1)
        entry_draws = _entry_draws(draws_NK, keys_NK, keep_NK, k)
    keys_NK = np.sort(keys_NK, axis=1)
    keys = keys_NK[np.arange(keys_NK.shape[1]) < num_entries[:, None]]
    return Response(
        input_ids=np.asarray(input_ids, np.int32),
        response_start=int(response_start),
        num_entries=num_entries.astype(np.int32),
        entry_token_ids=keys.astype(np.int32),
        entry_logprobs=np.float32(0.0) - (keys >> 32).astype(np.int32).view(np.float32),
        label_logprobs=round_logprobs(np.maximum(label_logprobs_N, MIN_LOGPROB)),
        log_tail_mass=log_tail_mass,
        entropies=None if entropies_N is None else _round_entropies(entropies_N, num_rows),
        log_normalizers=normalizers,
        entry_draws=entry_draws,
    )


def _check_rows(
    num_rows: int,
    token_ids_NK: npt.NDArray[np.integer],
    logprobs_NK: npt.NDArray[np.floating],
    label_logprobs_N: npt.NDArray[np.floating],
) -> None:
    """Raise RowError unless there is a row a response token and every log-probability a number."""
    if token_ids_NK.shape != logprobs_NK.shape or not (
        len(token_ids_NK) == len(label_logprobs_N) == num_rows
    ):
        raise RowError(
            f"the teacher returned token ids {token_ids_NK.shape}, log-probabilities "
            f"{logprobs_NK.shape} and {len(label_logprobs_N)} label log-probabilities for "
            f"{num_rows} response tokens"
        )
    if np.isnan(logprobs_NK).any() or np.isnan(label_logprobs_N).any():
        raise RowError("the teacher returned NaN log-probabilities")


def _snap(
    log_normalizers_N: npt.NDArray[np.floating],
    logprobs_NK: npt.NDArray[np.floating],
    keep_NK: npt.NDArray[np.bool_],
) -> tuple[Float32Array, Float32Array]:
    """Return the normalisers as stored and the log-probabilities that belong to them."""
    normalizers_N = np.asarray(log_normalizers_N, np.float32)
    if normalizers_N.shape != (len(logprobs_NK),) or not np.isfinite(normalizers_N).all():
        raise RowError(
            f"the teacher returned log-normalisers {normalizers_N.shape} for {len(logprobs_NK)} "
            "rows, or one that is not finite"
        )
    stored_NK = _snapped(normalizers_N, logprobs_NK, keep_NK)
    if (stored_NK > 0).any():  # of a certain token the sum may lie a rounding below its own logit
        logits_N = nearest_bfloat16(logprobs_NK[:, 0] + normalizers_N)
        normalizers_N = np.maximum(normalizers_N, logits_N)
        stored_NK = _snapped(normalizers_N, logprobs_NK, keep_NK)
    return normalizers_N, stored_NK


def _snapped(
    normalizers_N: Float32Array,
    logprobs_NK: npt.NDArray[np.floating],
    keep_NK: npt.NDArray[np.bool_],
) -> Float32Array:
    each_NK = np.broadcast_to(normalizers_N[:, None], logprobs_NK.shape)
    stored_NK = np.zeros(logprobs_NK.shape, np.float32)
    stored_NK[keep_NK] = snap_logprobs(logprobs_NK[keep_NK], each_NK[keep_NK])
    return stored_NK


def _entry_draws(
    draws_NK: npt.NDArray[np.integer],
    keys_NK: npt.NDArray[np.int64],
    keep_NK: npt.NDArray[np.bool_],
    num_samples: int,
) -> Int32Array:
    """Return the kept draws of all rows in the order of their keys."""
    kept_NK = np.where(keep_NK, draws_NK, 0)
    wrong = (kept_NK.sum(1) != num_samples) | (keep_NK & (draws_NK < 1)).any(1)
    if wrong.any():
        bad = int(np.argmax(wrong))
        raise RowError(
            f"row {bad}: the draws of its entries are {kept_NK[bad][keep_NK[bad]].tolist()}, "
            f"expected at least 1 each and a sum of {num_samples}; only ids of the vocabulary "
            "may be drawn"
        )
    order_NK = np.argsort(keys_NK, axis=1)
    sorted_NK = np.take_along_axis(kept_NK, order_NK, 1)
    present_NK = np.arange(sorted_NK.shape[1]) < keep_NK.sum(1)[:, None]
    return np.asarray(sorted_NK[present_NK], np.int32)


def _round_entropies(entropies_N: npt.NDArray[np.floating], num_rows: int) -> Float32Array:
    if len(entropies_N) != num_rows or not (np.asarray(entropies_N) > -1e-3).all():
        raise RowError(
            f"the teacher returned {len(entropies_N)} entropies for {num_rows} response tokens, "
            "or one that is negative or NaN"
        )
    # Noise below 0 becomes 0.
    rounded = np.maximum(entropies_N, 0.0).astype(np.float16).astype(np.float32)
    return np.asarray(rounded + np.float32(0.0))


def _sort_keys(
    token_ids_NK: npt.NDArray[np.integer],
    logprobs_NK: npt.NDArray[np.floating],
    usable_NK: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int64]:
    """Return keys that sort by log-probability descending, then id ascending, unusable last.

    A key is the bits of the float32 -logprob above the id: sorting it is several times faster
    than np.lexsort, and a sorted key gives its id and float32 log-probability back.
    """
    bits_NK = (np.float32(0.0) - np.minimum(logprobs_NK, 0.0).astype(np.float32)).view(np.int32)
    keys_NK = bits_NK.astype(np.int64) << 32 | token_ids_NK.astype(np.int64)
    return np.where(usable_NK, keys_NK, np.iinfo(np.int64).max)


def _log_tail_mass(
    logprobs_NK: npt.NDArray[np.floating], keep_NK: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore", over="ignore"):
        mass_N = np.exp(logprobs_NK, where=keep_NK, out=np.zeros_like(logprobs_NK)).sum(1)
        if (mass_N > 1.0 + MAX_MASS_EXCESS).any():
            bad = int(np.argmax(mass_N > 1.0 + MAX_MASS_EXCESS))
            raise RowError(
                f"row {bad}: the probabilities of its entries sum to {mass_N[bad]:.5f}, expected "
                "at most 1: log-probabilities are needed, not logits, and each id once"
            )
        return np.asarray(np.log(np.maximum(1.0 - mass_N, 0.0)))
