"""CE + alpha * KL from hidden rows and the head's weight, without a [N, V] tensor kept.

Every loss here has the same gradient for one row of logits z: a multiple of softmax(z) and a few
tokens more. So one matrix product, one softmax and a scatter over a chunk of rows give values and
gradients, made in the forward pass while the chunk's logits are at hand; backward multiplies them
by what comes in. With a frozen head there is no [V, H] gradient, neither memory nor work. Row
arithmetic is in float32 whatever the inputs' type (float64 stays float64). No step waits for the
GPU. Formulas and sources: docs/losses.md.

Shapes: N response tokens, K entries, V vocabulary, H hidden.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.student.confidence import ConfidenceBins
from pipeline.student.divergences import DIVERGENCES_BY_NAME
from pipeline.student.kl_settings import KlSettings
from pipeline.student.row_pass import PortableRowPass, RowGradient, RowPass, hide_support
from pipeline.student.support import TeacherRows
from pipeline.student.targets import SparseTarget, build_target
from storage_schema.errors import RowError

# Bytes of logits of one chunk. Chunks of a few rows would read all of the head twice per chunk.
CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """What the N rows of a batch are compared with, and how much each counts.

    Attributes:
        labels_N: int64, the gold tokens; every row counts, so none is -100.
        teacher: the teacher's rows in the same order; None leaves the KL out.
        alphas_N: weight of each row's KL beside its CE, 0 or more; None with no teacher.
        weights_N: what each row's loss is multiplied by; None is 1.
        settings: cut, temperatures, tail and divergence.
        label_smoothing: share in [0, 1) of the CE's target that is spread evenly over the head's
            rows; LossSums.ce stays the cross-entropy of the labels themselves.
        softcap: c where the model's logits are c * tanh(z / c); None where they are z.
        chunk_rows: rows of logits made at a time; None takes what fits CHUNK_BYTES.
        row_pass: the passes over a chunk; None takes the Triton kernel on CUDA.
        confidence: counts how sure and how right the model is of each label; None does not.
    """

    labels_N: Tensor
    teacher: TeacherRows | None = None
    alphas_N: Tensor | None = None
    weights_N: Tensor | None = None
    settings: KlSettings = KlSettings()
    label_smoothing: float = 0.0
    softcap: float | None = None
    chunk_rows: int | None = None
    row_pass: RowPass | None = None
    confidence: ConfidenceBins | None = None

    def __post_init__(self) -> None:
        if self.teacher is None:
            return
        if self.alphas_N is None:
            raise ConfigError("teacher rows without alphas_N: give each row's weight of the KL")
        num_rows = len(self.teacher.log_tail_mass_N)
        if num_rows != len(self.labels_N):  # gather would accept fewer in silence
            raise RowError(
                f"{num_rows} teacher rows for {len(self.labels_N)} response tokens: expected one "
                "each; was the batch cut after the teacher's columns were made?"
            )


class LossSums(NamedTuple):
    """Sums over the N response tokens of a batch; scalars, all but the first detached.

    Attributes:
        loss: weighted (smoothed) CE + alpha * KL, with the graph.
        ce: cross-entropy of the labels, in nats.
        kl: the divergence in nats, times T^2.
        alpha: weight of the KL beside the CE.
        teacher_mass: teacher probability on the support used, after the cut.
        student_mass: student probability on the same support.
        agreement: rows in which no token is likelier to the student than the teacher's best.
        teacher_correct: rows in which the teacher's most likely token is the label.
    """

    loss: Tensor
    ce: Tensor
    kl: Tensor | None = None
    alpha: Tensor | None = None
    teacher_mass: Tensor | None = None
    student_mass: Tensor | None = None
    agreement: Tensor | None = None
    teacher_correct: Tensor | None = None


def sum_losses(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, inputs: LossInputs
) -> LossSums:
    """Return the sums over the rows; the first has the gradients of hidden rows and head.

    No rows give 0 with a graph and zero gradients. With no teacher it is the cross-entropy.

    Args:
        hidden_NH: row n goes through the head to score label n; float64, 32, 16 or bfloat16.
        weight_VH: the head's weight in the same type; its gradient is made only if required.
        bias_V: the head's bias, or None.
        inputs: labels, teacher rows, weights and settings.
    """
    apply: Any = _FusedLoss.apply  # torch leaves it untyped
    loss, sums = apply(hidden_NH, weight_VH, bias_V, inputs, torch.is_grad_enabled())
    return LossSums(loss, *sums.unbind())


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        inputs: LossInputs,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        math_dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
        sum_dtypes = (hidden_NH.dtype, math_dtype, math_dtype)
        tensors = (hidden_NH, weight_VH, bias_V)
        gradients = [
            torch.zeros_like(tensor, dtype=dtype)
            if tensor is not None and needs_gradient and with_gradient
            else None
            for tensor, dtype, needs_gradient in zip(
                tensors, sum_dtypes, ctx.needs_input_grad, strict=False
            )
        ]
        totals = _run_chunks(hidden_NH, weight_VH, bias_V, inputs, gradients)
        ctx.save_for_backward(*(None if g is None else g.to(hidden_NH.dtype) for g in gradients))
        loss, sums = totals[0].clone(), totals[1:].clone()
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # Never `if grad_loss == 1`: that would wait for the GPU.
        gradients = [None if g is None else g * grad_loss.to(g.dtype) for g in ctx.saved_tensors]
        return (*gradients, None, None)


def _run_chunks(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    inputs: LossInputs,
    gradients: list[Tensor | None],
) -> Tensor:
    """Add up gradients in place and return the sums, in the order of LossSums."""
    hidden_gradient_NH, weight_gradient_VH, bias_gradient_V = gradients
    row_pass = inputs.row_pass or _pick_row_pass(hidden_NH)
    low_precision = not isinstance(row_pass, PortableRowPass)
    math_dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
    num_sums = len(LossSums._fields) if inputs.teacher is not None else 2
    totals = torch.zeros(num_sums, dtype=math_dtype, device=hidden_NH.device)
    step = inputs.chunk_rows or _chunk_rows(hidden_NH, len(weight_VH))
    for start in range(0, len(hidden_NH), step):
        rows = slice(start, start + step)
        logits_NV = torch.nn.functional.linear(hidden_NH[rows], weight_VH, bias_V)
        logits_NV = logits_NV if low_precision else logits_NV.to(math_dtype)
        totals += _score_chunk(logits_NV, inputs, rows, row_pass, math_dtype)
        gradient_NV = logits_NV.to(hidden_NH.dtype)  # it lies where the logits were
        if hidden_gradient_NH is not None:
            torch.mm(gradient_NV, weight_VH, out=hidden_gradient_NH[rows])
        if weight_gradient_VH is not None:
            _add_product(weight_gradient_VH, gradient_NV, hidden_NH[rows])
        if bias_gradient_V is not None:
            bias_gradient_V += logits_NV.sum(dim=0, dtype=math_dtype)
    return totals


def _add_product(total_VH: Tensor, gradient_NV: Tensor, hidden_NH: Tensor) -> None:
    if total_VH.dtype == hidden_NH.dtype:
        total_VH.addmm_(gradient_NV.t(), hidden_NH)
    else:  # summed in float32 over the chunks
        total_VH += gradient_NV.t() @ hidden_NH


def _pick_row_pass(hidden_NH: Tensor) -> RowPass:
    if hidden_NH.is_cuda and hidden_NH.dtype != torch.float64 and find_spec("triton"):
        from pipeline.student.row_kernel import TritonRowPass

        return TritonRowPass()
    return PortableRowPass()


def _chunk_rows(hidden_NH: Tensor, vocabulary_size: int) -> int:
    limit = CHUNK_BYTES.get(hidden_NH.device.type, CHUNK_BYTES["cpu"])
    size = max(4, hidden_NH.element_size())
    return max(1, limit // (vocabulary_size * size))


def _score_chunk(
    logits_NV: Tensor, inputs: LossInputs, rows: slice, row_pass: RowPass, dtype: torch.dtype
) -> Tensor:
    """Overwrite the logits of a chunk by their gradient and return the chunk's sums."""
    slopes_NV = None if inputs.softcap is None else _cap(logits_NV, inputs.softcap)
    labels_N = inputs.labels_N[rows]
    weights_N = torch.ones(len(labels_N), dtype=dtype, device=logits_NV.device)
    if inputs.weights_N is not None:
        weights_N = inputs.weights_N[rows].to(dtype)
    above_mean_N = _above_mean(logits_NV, labels_N, dtype) if inputs.label_smoothing else None
    if inputs.teacher is None:
        ce_N, log_sums_N, top_N = _label_pass(logits_NV, labels_N, weights_N, row_pass)
        sums = torch.stack([(weights_N * ce_N).sum(), ce_N.sum()])
    else:
        teacher = TeacherRows(*(None if t is None else t[rows] for t in inputs.teacher))  # type: ignore[arg-type]
        target = build_target(teacher, labels_N, inputs.settings, logits_NV.shape[1], dtype)
        alphas_N = inputs.alphas_N[rows].to(dtype)  # type: ignore[index]
        sums, ce_N, log_sums_N, top_N = _teacher_passes(
            logits_NV, labels_N, target, alphas_N, weights_N, inputs.settings, row_pass
        )
    if inputs.confidence is not None:
        inputs.confidence.add(ce_N, log_sums_N, top_N)
    if above_mean_N is not None:
        smoothed_N = inputs.label_smoothing * weights_N
        sums[0] += (smoothed_N * above_mean_N).sum()
        _smooth(logits_NV, labels_N, smoothed_N)
    if slopes_NV is not None:
        logits_NV.mul_(slopes_NV)
    return sums


def _cap(logits_NV: Tensor, cap: float) -> Tensor:
    """Overwrite z by c tanh(z / c) and return the derivative, 1 - tanh^2."""
    logits_NV.div_(cap).tanh_()
    slopes_NV = 1 - logits_NV * logits_NV
    logits_NV.mul_(cap)
    return slopes_NV


def _above_mean(logits_NV: Tensor, labels_N: Tensor, dtype: torch.dtype) -> Tensor:
    """Return z_label - mean(z), the uniform target's cross-entropy minus the label's."""
    label_logits_N = logits_NV.gather(1, labels_N[:, None]).squeeze(1).to(dtype)
    return label_logits_N - logits_NV.mean(dim=1, dtype=dtype)


def _smooth(gradient_NV: Tensor, labels_N: Tensor, smoothed_N: Tensor) -> None:
    """Move the share smoothed_N of each row's target from the label to all of the row, evenly."""
    smoothed_N1 = smoothed_N[:, None].to(gradient_NV.dtype)
    gradient_NV.sub_(smoothed_N1 / gradient_NV.shape[1])
    gradient_NV.scatter_add_(1, labels_N[:, None], smoothed_N1)


def _label_pass(
    logits_NV: Tensor, labels_N: Tensor, weights_N: Tensor, row_pass: RowPass
) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite the logits by weight * (q - onehot(label)).

    Returns:
        Of each row the cross-entropy, the log-sum-exp and the largest logit.
    """
    label_logits_N = logits_NV.gather(1, labels_N[:, None]).squeeze(1).to(weights_N.dtype)
    log_sums_N, top_N = row_pass.reduce(logits_NV)
    none_N0 = labels_N.new_zeros(len(labels_N), 0)
    gradient = RowGradient(weights_N, none_N0, none_N0.to(weights_N.dtype), labels_N, -weights_N)
    row_pass.fill(logits_NV, log_sums_N, gradient)
    return log_sums_N - label_logits_N, log_sums_N, top_N


def _teacher_passes(
    logits_NV: Tensor,
    labels_N: Tensor,
    target: SparseTarget,
    alphas_N: Tensor,
    weights_N: Tensor,
    settings: KlSettings,
    row_pass: RowPass,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Overwrite the logits by the gradient of both terms.

    Returns:
        The sums of LossSums; of each row the cross-entropy, log-sum-exp and largest logit.
    """
    logits_NK = logits_NV.gather(1, target.ids_NK).to(weights_N.dtype)
    best_N = logits_NV.gather(1, target.best_ids_N[:, None]).squeeze(1).to(weights_N.dtype)
    kl_weights_N = alphas_N * weights_N
    temperature = settings.temperature
    if temperature == 1:
        both = _divergence_pass(
            logits_NV, logits_NK, labels_N, target, weights_N, kl_weights_N, settings, row_pass
        )
        ce_N, kl_N, log_sums_N, top_N = both
    else:  # a second softmax over the same chunk, no second matrix product
        tempered_NV = logits_NV / temperature
        ce_N, log_sums_N, top_N = _label_pass(logits_NV, labels_N, weights_N, row_pass)
        _, kl_N, _, _ = _divergence_pass(
            tempered_NV,
            logits_NK / temperature,
            labels_N,
            target,
            torch.zeros_like(weights_N),
            kl_weights_N * temperature,
            settings,
            row_pass,
        )
        kl_N = kl_N * temperature**2
        logits_NV.add_(tempered_NV)
    student_NK = (logits_NK - log_sums_N[:, None]).exp() * target.present_NK
    sums = (
        weights_N * ce_N + kl_weights_N * kl_N,
        ce_N,
        kl_N,
        alphas_N,
        target.stored_mass_N,
        student_NK,
        (best_N >= top_N).to(ce_N.dtype),
        (target.best_ids_N == labels_N).to(ce_N.dtype),
    )
    return torch.stack([values.sum() for values in sums]), ce_N, log_sums_N, top_N


def _divergence_pass(
    logits_NV: Tensor,
    logits_NK: Tensor,
    labels_N: Tensor,
    target: SparseTarget,
    ce_weights_N: Tensor,
    kl_weights_N: Tensor,
    settings: KlSettings,
    row_pass: RowPass,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Overwrite the logits by ce_weight * dCE/dz + kl_weight * dKL/dz.

    Returns:
        Of each row the cross-entropy, the divergence, the log-sum-exp and the largest logit.
    """
    dtype = logits_NK.dtype
    label_logits_N = logits_NV.gather(1, labels_N[:, None]).squeeze(1).to(dtype)
    hidden_N = target.has_rest_N
    if settings.has_rest:
        hide_support(logits_NV, target.ids_NK, logits_NK, hidden_N)
    visible_log_sums_N, visible_top_N = row_pass.reduce(logits_NV)
    inside_NK = logits_NK.masked_fill(~target.present_NK, -torch.inf)
    log_sums_N, top_N = visible_log_sums_N, visible_top_N
    if settings.has_rest:
        whole_N = torch.logaddexp(visible_log_sums_N, inside_NK.logsumexp(dim=1))
        log_sums_N = whole_N.where(hidden_N, visible_log_sums_N)
        top_N = torch.maximum(visible_top_N, inside_NK.amax(dim=1)).where(hidden_N, visible_top_N)
    student_NK = (logits_NK - log_sums_N[:, None]).where(target.present_NK, -torch.inf)
    student_rest_N = (visible_log_sums_N - log_sums_N).where(hidden_N, -torch.inf)
    kl_N, derivatives_NK, rest_derivative_N = _diverge(target, student_NK, student_rest_N, settings)
    softmax_weights_N = ce_weights_N - kl_weights_N * (
        derivatives_NK.sum(dim=1) + rest_derivative_N
    )
    # Where the support was hidden, the softmax at hand is over the rest and 0 on the support.
    rest_weights_N = softmax_weights_N * student_rest_N.exp() + kl_weights_N * rest_derivative_N
    entries_NK = kl_weights_N[:, None] * derivatives_NK
    hidden_NK = softmax_weights_N[:, None] * student_NK.exp()
    gradient = RowGradient(
        rest_weights_N.where(hidden_N, softmax_weights_N),
        target.ids_NK,
        entries_NK + hidden_NK * hidden_N[:, None],
        labels_N,
        -ce_weights_N,
    )
    row_pass.fill(logits_NV, visible_log_sums_N, gradient)
    return log_sums_N - label_logits_N, kl_N, log_sums_N, top_N


def _diverge(
    target: SparseTarget, student_NK: Tensor, student_rest_N: Tensor, settings: KlSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the divergence of each row, and its derivatives for the entries and for the rest."""
    diverge = DIVERGENCES_BY_NAME[settings.divergence]
    present_NC = torch.cat([target.present_NK, target.has_rest_N[:, None]], dim=1)
    masses_NC = torch.cat([target.masses_NK, target.rest_mass_N[:, None]], dim=1)
    logs_NC = torch.cat([target.logs_NK, target.rest_log_N[:, None]], dim=1)
    student_NC = torch.cat([student_NK, student_rest_N[:, None]], dim=1)
    # Absent classes have no mass on either side; their logs must not meet as inf - inf.
    student_NC = student_NC.where(present_NC, -torch.inf)
    logs_NC = logs_NC.where(present_NC, 0.0)
    kl_N, derivatives_NC = diverge(masses_NC, logs_NC, student_NC)
    return kl_N, derivatives_NC[:, :-1], derivatives_NC[:, -1]
