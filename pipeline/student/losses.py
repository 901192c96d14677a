"""The student's loss, CE + alpha * KL(teacher || student), in plain torch.

This is the readable truth a faster version is held against. It returns SUMS over response
tokens; the caller divides by the number of tokens of the whole batch. All arithmetic is in
float32 whatever the logits' type (float64 stays float64). Values of missing entries are zeroed
before any exp, log or product, because a mask after 0 * inf leaves NaN in the gradient.
Formulas and sources: docs/losses.md.

Shapes: N response tokens, K entries, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.student.kl_settings import KlSettings
from pipeline.student.support import TeacherRows, cut_support
from storage_schema.errors import RowError


class LossSums(NamedTuple):
    """Sums over the N response tokens of a batch; scalars, all but the first two detached.

    Attributes:
        ce: cross-entropy of the labels, in nats.
        kl: KL(teacher || student) in nats, times T^2; None when alpha is 0.
        teacher_mass: teacher probability on the support used, after the cut.
        student_mass: student probability on the same support.
        agreement: rows in which teacher and student have the same most likely token.
        teacher_correct: rows in which the teacher's most likely token is the label.
    """

    ce: Tensor
    kl: Tensor | None = None
    teacher_mass: Tensor | None = None
    student_mass: Tensor | None = None
    agreement: Tensor | None = None
    teacher_correct: Tensor | None = None

    def total(self, alpha: float) -> Tensor:
        """Return ce + alpha * kl, still a sum over rows."""
        return self.ce if self.kl is None else self.ce + alpha * self.kl


def sum_losses(
    student_logits_NV: Tensor,
    labels_N: Tensor,
    teacher: TeacherRows | None,
    alpha: float,
    settings: KlSettings,
) -> LossSums:
    """Return the sums of cross-entropy and KL over the rows, with what is worth watching.

    With alpha 0 the teacher is not looked at (it may be None) and the result is exactly
    `F.cross_entropy(student_logits_NV.float(), labels_N, reduction="sum")`. No rows give 0
    with a graph and zero gradients.

    Args:
        student_logits_NV: float, row n is the student's distribution for label n.
        labels_N: int64, the gold tokens; every row counts, so none is -100.
        teacher: the teacher's rows, in the same order.
        alpha: weight of the KL, 0 or more.
        settings: tail treatment, temperature, k' and minimum probability.

    Raises:
        ConfigError: alpha is negative or not finite, or above 0 without teacher rows.
        RowError: there are more or fewer teacher rows than labels.
    """
    if not 0 <= alpha < float("inf"):
        raise ConfigError(f"--alpha {alpha} must be 0 or more and finite")
    math_dtype = torch.promote_types(student_logits_NV.dtype, torch.float32)
    logits_NV = student_logits_NV.to(math_dtype)
    ce = F.cross_entropy(logits_NV, labels_N, reduction="sum")
    if alpha == 0:
        return LossSums(ce)
    if teacher is None:
        raise ConfigError(f"--alpha {alpha} needs teacher rows, and this batch has none")
    if len(teacher.log_tail_mass_N) != len(labels_N):  # gather would accept fewer in silence
        raise RowError(
            f"{len(teacher.log_tail_mass_N)} teacher rows for {len(labels_N)} response tokens: "
            "expected one each; was the batch cut after the teacher's columns were made?"
        )
    rows = TeacherRows(
        teacher.entry_token_ids_NK,
        teacher.entry_logprobs_NK.to(math_dtype),
        teacher.log_tail_mass_N.to(math_dtype),
    )
    rows = cut_support(rows, settings.top_k, settings.min_prob)
    kl_N = _kl_of_rows(logits_NV, labels_N, rows, settings)
    return LossSums(ce, kl_N.sum(), *_metric_sums(logits_NV.detach(), labels_N, rows))


def _kl_of_rows(
    logits_NV: Tensor, labels_N: Tensor, rows: TeacherRows, settings: KlSettings
) -> Tensor:
    if settings.tail == "ghost":
        return _kl_ghost(logits_NV, rows)
    if settings.tail == "label":
        return _kl_label(logits_NV, labels_N, rows)
    return _kl_renormalized(logits_NV, rows, settings.temperature)


def _kl_renormalized(logits_NV: Tensor, rows: TeacherRows, temperature: float) -> Tensor:
    """T^2 * sum_S p~ (log p~ - log q), p~ = p^(1/T) / sum_S p^(1/T), q = softmax(z/T)."""
    ids_NK, logprobs_NK, _ = rows
    present_NK = logprobs_NK > -torch.inf
    tempered_NK = logprobs_NK / temperature
    # The mass of the entries used, not 1 - tail: rounding and cuts make the two differ.
    target_NK = tempered_NK - tempered_NK.logsumexp(dim=1, keepdim=True)
    student_NK = (logits_NV / temperature).log_softmax(dim=1).gather(1, ids_NK)
    return temperature**2 * _expected_difference(target_NK, student_NK, present_NK)


def _kl_ghost(logits_NV: Tensor, rows: TeacherRows) -> Tensor:
    """sum_S p (log p - log q) + t (log t - log(1 - Q)), Q the student's mass on S."""
    ids_NK, logprobs_NK, log_tail_N = rows
    present_NK = logprobs_NK > -torch.inf
    student_NK = logits_NV.log_softmax(dim=1).gather(1, ids_NK)
    kl_N = _expected_difference(logprobs_NK, student_NK, present_NK)
    # log(1 - Q) from the logits outside S: 1 - Q itself loses every digit when Q is near 1.
    inside_NV = torch.zeros_like(logits_NV).scatter_add_(1, ids_NK, present_NK.to(logits_NV.dtype))
    inside_NV = inside_NV > 0
    # Without a tail, or with S the whole vocabulary, there is no ghost class to match.
    used_N = (log_tail_N > -torch.inf) & ~inside_NV.all(dim=1)
    outside_NV = logits_NV.masked_fill(inside_NV & used_N[:, None], -torch.inf)
    student_tail_N = outside_NV.logsumexp(dim=1) - logits_NV.logsumexp(dim=1)
    log_tail_N = log_tail_N.where(used_N, 0.0)
    return kl_N + used_N * log_tail_N.exp() * (log_tail_N - student_tail_N)


def _kl_label(logits_NV: Tensor, labels_N: Tensor, rows: TeacherRows) -> Tensor:
    """sum_j g_j (log g_j - log q_j), g = p on S with the tail mass t added to the label."""
    ids_NK, logprobs_NK, log_tail_N = rows
    present_NK = logprobs_NK > -torch.inf
    tail_N = log_tail_N.exp()
    is_label_NK = (ids_NK == labels_N[:, None]) & present_NK
    target_NK = logprobs_NK.exp() + tail_N[:, None] * is_label_NK
    outside_N = tail_N * ~is_label_NK.any(dim=1)  # goes to a label that is no entry
    target_NL = torch.cat([target_NK, outside_N[:, None]], dim=1)
    ids_NL = torch.cat([ids_NK, labels_N[:, None]], dim=1)
    student_NL = logits_NV.log_softmax(dim=1).gather(1, ids_NL)
    return _expected_difference(target_NL.log(), student_NL, target_NL > 0)


def _expected_difference(target_NK: Tensor, student_NK: Tensor, present_NK: Tensor) -> Tensor:
    """Sum over present entries of exp(target) * (target - student); log-probabilities."""
    target_NK = target_NK.where(present_NK, 0.0)
    student_NK = student_NK.where(present_NK, 0.0)
    return (target_NK.exp() * (target_NK - student_NK)).sum(dim=1)


@torch.no_grad()
def _metric_sums(
    logits_NV: Tensor, labels_N: Tensor, rows: TeacherRows
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids_NK, logprobs_NK, _ = rows
    present_NK = logprobs_NK > -torch.inf
    student_NK = (logits_NV.gather(1, ids_NK) - logits_NV.logsumexp(dim=1, keepdim=True)).exp()
    best_N = ids_NK.gather(1, logprobs_NK.argmax(dim=1, keepdim=True)).squeeze(1)
    return (
        logprobs_NK.exp().sum(),
        student_NK.where(present_NK, 0.0).sum(),
        (logits_NV.argmax(dim=1) == best_N).sum(),
        (best_N == labels_N).sum(),
    )
