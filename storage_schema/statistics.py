"""What a cache says of its teacher, summed up in one pass; numpy only, memory independent of size.

Log-probabilities are float16-rounded, so a histogram over the 31,745 values from 0 down to -inf
loses nothing: percentiles and calibration from it are exact. Entries of the codec bfloat16-logits
are rounded for this purpose. Entries of a sampled support are a random choice: what a smaller k
or renormalizing would keep of them is no property of the teacher, and not given.

Shape suffixes: N response tokens of the responses just added, E their entries, M bins.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from storage_schema.response import Response

PERCENTILES = (1, 5, 25, 50, 75)
ECE_BINS = 15
FLOOR_DRAWS = 200
FLOOR_SEED = 0
# Below this mean stored mass, renormalizing raises probabilities by more than 5 % on average.
LOW_STORED_MASS = 0.95

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# The float16 bit patterns of +0 to +inf; all values here are their negatives.
_NUM_VALUES = 0x7C01
_VALUES: Floats = -np.arange(_NUM_VALUES, dtype=np.uint16).view(np.float16).astype(np.float64)


class CacheStatistics:
    """Sums and histograms over the responses added so far."""

    def __init__(self) -> None:
        self.num_examples = self.num_response_tokens = self.num_entries = 0
        self._rank_rows: Counts = np.zeros(0, np.int64)  # rows that have an entry of this rank
        self._rank_mass: Floats = np.zeros(0)  # their probabilities
        self._tails: Counts = np.zeros(_NUM_VALUES, np.int64)
        self._bests: Counts = np.zeros(_NUM_VALUES, np.int64)  # log-probability of the first entry
        self._correct: Counts = np.zeros(_NUM_VALUES, np.int64)  # ... where it is the label
        self._label_logprobs = 0.0
        self._labels_in_support = 0
        self._log_entry_mass = 0.0
        self._renormalized_confidence = 0.0
        self._renormalized_errors: Floats = np.zeros(ECE_BINS)
        self._entropies: float | None = None  # sums over rows; None where none are stored
        self._drawn_entropies: float | None = None

    def add(self, responses: Sequence[Response]) -> None:
        """Add responses that obey the rules of the format (`check_response`)."""
        if not responses:
            return
        labels_N = np.concatenate([r.input_ids[r.response_start :] for r in responses])
        counts_N = np.concatenate([r.num_entries for r in responses])
        ids_E = np.concatenate([r.entry_token_ids for r in responses])
        logprobs_E = np.concatenate([r.entry_logprobs for r in responses]).astype(np.float64)
        self.num_examples += len(responses)
        self.num_response_tokens += len(labels_N)
        self.num_entries += len(ids_E)
        first_N = np.cumsum(counts_N) - counts_N
        rows_E = np.repeat(np.arange(len(counts_N)), counts_N)
        self._add_ranks(np.arange(len(ids_E)) - first_N[rows_E], np.exp(logprobs_E))
        tails_N = np.concatenate([r.log_tail_mass for r in responses])
        self._tails += _histogram(tails_N)
        correct_N = ids_E[first_N] == labels_N
        self._bests += _histogram(logprobs_E[first_N])
        self._correct += _histogram(logprobs_E[first_N][correct_N])
        for response in responses:
            self._label_logprobs += float(response.label_logprobs.sum(dtype=np.float64))
        self._labels_in_support += int((ids_E == labels_N[rows_E]).sum())
        self._add_renormalized(logprobs_E, rows_E, first_N, correct_N)
        for response in responses:
            self._add_entropy(response)

    def _add_entropy(self, response: Response) -> None:
        if response.entropies is not None:
            total = float(response.entropies.sum(dtype=np.float64))
            self._entropies = total + (self._entropies or 0.0)
        if response.entry_draws is not None:
            draws_E, counts_N = response.entry_draws, response.num_entries
            num_samples = int(draws_E[: counts_N[0]].sum())
            surprise = -float(draws_E @ response.entry_logprobs.astype(np.float64)) / num_samples
            self._drawn_entropies = surprise + (self._drawn_entropies or 0.0)

    def _add_ranks(self, ranks_E: npt.NDArray[np.intp], probs_E: Floats) -> None:
        rows, mass = np.bincount(ranks_E), np.bincount(ranks_E, probs_E)
        missing = max(0, len(rows) - len(self._rank_rows))
        self._rank_rows = np.pad(self._rank_rows, (0, missing))
        self._rank_mass = np.pad(self._rank_mass, (0, missing))
        self._rank_rows[: len(rows)] += rows
        self._rank_mass[: len(rows)] += mass

    def _add_renormalized(
        self,
        logprobs_E: Floats,
        rows_E: npt.NDArray[np.intp],
        first_N: npt.NDArray[np.intp],
        correct_N: npt.NDArray[np.bool_],
    ) -> None:
        best_N = logprobs_E[first_N]
        # Relative to the first entry, so that no row underflows to a mass of 0.
        relative_N = np.bincount(rows_E, np.exp(logprobs_E - best_N[rows_E]))
        self._log_entry_mass += float((best_N + np.log(relative_N)).sum())
        confidences_N = 1.0 / relative_N
        self._renormalized_confidence += float(confidences_N.sum())
        self._renormalized_errors += np.bincount(
            _bins(confidences_N), correct_N - confidences_N, ECE_BINS
        )

    def summary(self) -> dict[str, Any]:
        """Return every statistic, ready for JSON; at least one response must have been added.

        Keys (docs/verify-cache.md defines them): counts, entries_per_response_token,
        stored_mass, kept_at, teacher, renormalized, entropy. Of a sampled support kept_at and
        renormalized are None.
        """
        sampled = self._drawn_entropies is not None
        return {
            "num_examples": self.num_examples,
            "num_response_tokens": self.num_response_tokens,
            "num_entries": self.num_entries,
            "entries_per_response_token": self.num_entries / self.num_response_tokens,
            "stored_mass": self._stored_mass(),
            "kept_at": None if sampled else self._kept_at(),
            "teacher": self._teacher(),
            "renormalized": None if sampled else self._renormalized(),
            "entropy": self._entropy(),
        }

    def _entropy(self) -> dict[str, float | None]:
        """Return the teacher's mean entropy in nats, as stored and as its draws estimate it.

        Of ids drawn from the teacher, -ln p is the entropy on average.
        """
        total = self.num_response_tokens
        stored, drawn = self._entropies, self._drawn_entropies
        return {
            "mean_nats": None if stored is None else stored / total,
            "mean_nats_from_draws": None if drawn is None else drawn / total,
        }

    def _stored_mass(self) -> dict[str, float]:
        """Return mean and percentiles of 1 - tail; p-th: the least value with p % at or below."""
        mass, total = -np.expm1(_VALUES), self.num_response_tokens
        # _VALUES descend, so the stored mass ascends: cumulated counts give the ranks.
        places = np.searchsorted(
            np.cumsum(self._tails), [-(-percent * total // 100) for percent in PERCENTILES]
        )
        found = {f"p{p}": float(mass[place]) for p, place in zip(PERCENTILES, places, strict=True)}
        return {"mean": float(self._tails @ mass) / total, **found}

    def _kept_at(self) -> list[dict[str, float | int]]:
        """Return, for k' = 1, 2, 4 ... and the most entries of a row, what k' would keep a row."""
        most, total = len(self._rank_rows), self.num_response_tokens
        sizes = [1 << power for power in range(most.bit_length()) if 1 << power < most]
        mean_mass = self._stored_mass()["mean"]
        return [
            {
                "k": size,
                # The mass of dropped entries joins the tail, as when training with --top-k.
                "mass": mean_mass - float(self._rank_mass[size:].sum()) / total,
                "entries": int(self._rank_rows[:size].sum()) / total,
            }
            for size in [*sizes, most]
        ]

    def _teacher(self) -> dict[str, float]:
        total, confidences = self.num_response_tokens, np.exp(_VALUES)
        errors = np.bincount(_bins(confidences), self._correct - self._bests * confidences)
        accuracy = int(self._correct.sum()) / total
        confidence = float(self._bests @ confidences) / total
        return {
            "nll_nats": 0.0 - self._label_logprobs / total,
            "accuracy": accuracy,
            "mean_confidence": confidence,
            "overconfidence_gap": confidence - accuracy,
            "ece": float(np.abs(errors).sum()) / total,
            "ece_floor": self._ece_floor(),
            "label_in_support": self._labels_in_support / total,
        }

    def _ece_floor(self) -> float:
        """Return the mean ECE of 200 draws in which correct ~ Bernoulli(confidence)."""
        used = np.flatnonzero(self._bests)
        counts, confidences = self._bests[used], np.exp(_VALUES[used])
        bins, generator = _bins(confidences), np.random.default_rng(FLOOR_SEED)
        total = 0.0
        for _ in range(FLOOR_DRAWS):
            correct = generator.binomial(counts, confidences)
            total += np.abs(np.bincount(bins, correct - counts * confidences)).sum()
        return float(total / FLOOR_DRAWS / self.num_response_tokens)

    def _renormalized(self) -> dict[str, float]:
        """Return what dividing each row by its stored mass P does; KL(p/P || p) is -ln P."""
        total, mean_mass = self.num_response_tokens, self._stored_mass()["mean"]
        return {
            "factor": 1.0 / max(mean_mass, float(np.finfo(np.float64).tiny)),
            "kl_nats": max(0.0, -self._log_entry_mass / total),
            "mean_confidence": self._renormalized_confidence / total,
            "ece": float(np.abs(self._renormalized_errors).sum()) / total,
        }


def _histogram(values: npt.NDArray[np.floating]) -> Counts:
    """Return how often each of _VALUES occurs among float16-rounded values of at most 0."""
    places = values.astype(np.float16).view(np.uint16) & 0x7FFF
    return np.bincount(places, minlength=_NUM_VALUES)


def _bins(confidences: Floats) -> npt.NDArray[np.int64]:
    """Return the bin of each confidence, the rule of docs/evaluation.md."""
    return np.minimum((confidences * ECE_BINS).astype(np.int64), ECE_BINS - 1)
