"""The student's loss against a slow float64 truth, on value and gradient, and its invariants."""

import math

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F

from pipeline.errors import ConfigError
from pipeline.student.kl_settings import TAILS, KlSettings
from pipeline.student.losses import LossSums, sum_losses
from pipeline.student.support import TeacherRows, cut_support
from storage_schema.errors import RowError

# Allowed on top of the error of plain dense torch in the same dtype, relative to the largest.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
SETTINGS = [
    KlSettings(),
    KlSettings(temperature=2.0),
    KlSettings(temperature=0.5, top_k=3),
    KlSettings(top_k=4, min_prob=0.05),
    KlSettings(tail="ghost"),
    KlSettings(tail="ghost", top_k=3),
    KlSettings(tail="label"),
    KlSettings(tail="label", min_prob=0.1),
]
IDS = [f"{s.tail}-T{s.temperature}-k{s.top_k}-p{s.min_prob}" for s in SETTINGS]


def make_batch(num_rows=13, vocabulary=37, width=7, dtype=torch.float64):
    """At least six awkward rows: planted extremes, one entry, missing entries, fp16 rounding."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (num_rows, vocabulary))
    logits[1, 5], logits[2, :] = 80.0, 0.0
    logits[3, 7] = -200.0
    teacher = rng.normal(0, 3, (num_rows, vocabulary))
    teacher_logprobs = np.asarray([reference.log_softmax(row) for row in teacher])
    ids = np.argsort(-teacher_logprobs, axis=1)[:, :width].copy()
    logprobs = np.take_along_axis(teacher_logprobs, ids, 1).astype(np.float16).astype(np.float64)
    for row in range(0, num_rows, 3):
        num_kept = 1 if row == 0 else int(rng.integers(1, width))
        logprobs[row, num_kept:] = -np.inf
        ids[row, num_kept:] = ids[row, 0]  # any valid id, even one that is in the support
    # A row whose whole mass is stored; a float16 rounding error leaves it above 1.
    logprobs[4] = np.log(np.full(width, (1 + 1e-3) / width))
    mass = np.exp(logprobs).sum(1)
    with np.errstate(divide="ignore"):
        log_tail = np.log(np.maximum(1 - mass, 0))
    labels = rng.integers(0, vocabulary, num_rows)
    labels[5] = ids[5, 2]  # inside the support
    rows = TeacherRows(
        torch.tensor(ids), torch.tensor(logprobs, dtype=dtype), torch.tensor(log_tail, dtype=dtype)
    )
    return torch.tensor(logits, dtype=dtype, requires_grad=True), torch.tensor(labels), rows


def truth(logits, labels, rows, alpha, settings):
    """Value and gradient of ce + alpha * kl from tests/reference.py."""
    ce, kl, gradient = reference.loss_and_gradient(
        logits.detach().numpy(),
        labels.numpy(),
        rows.entry_token_ids_NK.numpy(),
        rows.entry_logprobs_NK.double().numpy(),
        rows.log_tail_mass_N.double().numpy(),
        alpha=alpha,
        tail=settings.tail,
        temperature=settings.temperature,
        top_k=settings.top_k,
        min_prob=settings.min_prob,
    )
    return ce + alpha * kl, gradient


def plain(logits, labels, rows, alpha, settings):
    """The same by dense torch operations, each the obvious one, in the dtype of the logits."""
    rows = cut_support(rows, settings.top_k, settings.min_prob)
    num_rows, vocabulary = logits.shape
    temperature = settings.temperature
    probs = (rows.entry_logprobs_NK / temperature).exp()
    dense = torch.zeros_like(logits).scatter_add_(1, rows.entry_token_ids_NK, probs)
    tail = rows.log_tail_mass_N.exp()
    log_q = (logits / temperature).log_softmax(1)
    ghost = 0.0
    if settings.tail == "renormalize":
        dense = dense / dense.sum(1, keepdim=True)
    elif settings.tail == "label":
        dense = dense + tail[:, None] * F.one_hot(labels, vocabulary)
    else:
        student_tail = (log_q.exp() * (dense == 0)).sum(1)
        ghost = (torch.xlogy(tail, tail) - torch.xlogy(tail, student_tail)).sum()
    kl = F.kl_div(log_q, dense, reduction="sum") + ghost
    return F.cross_entropy(logits, labels, reduction="sum") + alpha * temperature**2 * kl


def value_and_gradient(function, logits, *rest):
    logits = logits.detach().clone().requires_grad_(True)
    value = function(logits, *rest)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.item(), gradient.double().numpy()


def ours(logits, labels, rows, alpha, settings):
    return sum_losses(logits, labels, rows, alpha, settings).total(alpha)


def assert_no_worse_than_plain(dtype, batch, alpha, settings):
    logits, labels, rows = batch
    true_value, true_gradient = truth(logits, labels, rows, alpha, settings)
    ours_value, ours_gradient = value_and_gradient(ours, logits, labels, rows, alpha, settings)
    plain_value, plain_gradient = value_and_gradient(plain, logits, labels, rows, alpha, settings)
    tolerance = TOLERANCE[dtype]
    limit = abs(true_value - plain_value) + tolerance * abs(true_value)
    assert abs(true_value - ours_value) <= limit
    # With the whole vocabulary in the support, plain ghost divides 0 by 0: no excuse for ours.
    plain_error = np.nan_to_num(np.abs(true_gradient - plain_gradient))
    limit = plain_error + tolerance * np.abs(true_gradient).max()
    worst = np.unravel_index((np.abs(true_gradient - ours_gradient) - limit).argmax(), limit.shape)
    assert np.abs(true_gradient - ours_gradient)[worst] <= limit[worst], (
        f"at {worst}: truth {true_gradient[worst]}, ours {ours_gradient[worst]}, "
        f"plain {plain_gradient[worst]}"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_value_and_gradient_three_ways(settings, alpha, dtype):
    assert_no_worse_than_plain(dtype, make_batch(dtype=dtype), alpha, settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
@pytest.mark.parametrize(("num_rows", "vocabulary", "width"), [(1, 2, 1), (5, 8, 8), (3, 129, 64)])
def test_awkward_sizes(num_rows, vocabulary, width, settings):
    rng = np.random.default_rng(num_rows)
    logits = torch.tensor(rng.normal(0, 2, (num_rows, vocabulary)), requires_grad=True)
    labels = torch.tensor(rng.integers(0, vocabulary, num_rows))
    teacher = torch.tensor(rng.normal(0, 2, (num_rows, vocabulary))).log_softmax(1)
    logprobs, ids = teacher.topk(width, dim=1)
    log_tail = torch.log((1 - logprobs.exp().sum(1)).clamp(min=0))
    if width == vocabulary:
        log_tail.fill_(-torch.inf)
    rows = TeacherRows(ids, logprobs, log_tail)
    assert_no_worse_than_plain(torch.float64, (logits, labels, rows), 1.0, settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_gradcheck(settings):
    logits, labels, rows = make_batch(num_rows=6, vocabulary=11, width=4)
    logits = (logits.detach() / 10).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: ours(z, labels, rows, 0.7, settings), (logits,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_computed_in_float32(dtype):
    logits, labels, rows = make_batch(num_rows=301, dtype=torch.float32)
    logits = logits.detach().to(dtype)
    low = sum_losses(logits, labels, rows, 1.0, KlSettings())
    assert low.ce.dtype == low.kl.dtype == torch.float32
    exact, _ = truth(logits.double(), labels, rows, 1.0, KlSettings())
    assert low.total(1.0).item() == pytest.approx(exact, rel=1e-5)


def test_alpha_zero_is_cross_entropy_bit_for_bit():
    for dtype in (torch.float32, torch.bfloat16):
        logits, labels, rows = make_batch(dtype=torch.float32)
        logits = logits.detach().to(dtype).requires_grad_(True)
        sums = sum_losses(logits, labels, rows, 0.0, KlSettings(tail="ghost"))
        expected = F.cross_entropy(logits.float(), labels, reduction="sum")
        assert torch.equal(sums.total(0.0), expected)
        ours_gradient = torch.autograd.grad(sums.total(0.0), logits)[0]
        assert torch.equal(ours_gradient, torch.autograd.grad(expected, logits)[0])
        assert sums == LossSums(sums.ce)


def test_alpha_zero_never_touches_the_teacher():
    logits, labels, _ = make_batch()
    assert sum_losses(logits, labels, None, 0.0, KlSettings()).kl is None


@pytest.mark.parametrize("tail", TAILS)
def test_full_support_equals_dense_kl_div(tail):
    rng = np.random.default_rng(3)
    logits = torch.tensor(rng.normal(0, 2, (6, 20)))
    teacher = torch.tensor(rng.normal(0, 2, (6, 20))).log_softmax(1)
    logprobs, ids = teacher.sort(dim=1, descending=True)
    rows = TeacherRows(ids, logprobs, torch.full((6,), -torch.inf, dtype=torch.float64))
    sums = sum_losses(logits, torch.zeros(6, dtype=torch.long), rows, 1.0, KlSettings(tail=tail))
    dense = F.kl_div(logits.log_softmax(1), teacher, log_target=True, reduction="sum")
    assert sums.kl.item() == pytest.approx(dense.item(), rel=1e-12)
    assert sums.student_mass.item() == pytest.approx(6.0)


@pytest.mark.parametrize("tail", TAILS)
def test_kl_of_a_distribution_to_itself_is_zero(tail):
    logits, labels, _ = make_batch(num_rows=9)
    logprobs, ids = logits.detach().log_softmax(1).topk(37, dim=1)
    rows = TeacherRows(ids, logprobs, torch.full((9,), -torch.inf, dtype=torch.float64))
    settings = KlSettings(tail=tail)
    assert sum_losses(logits, labels, rows, 1.0, settings).kl.item() == pytest.approx(0, abs=1e-9)


def test_ghost_of_a_distribution_to_itself_is_zero_on_a_short_support():
    logits, labels, _ = make_batch(num_rows=9)
    logprobs, ids = logits.detach().log_softmax(1).topk(4, dim=1)
    log_tail = torch.log1p(-logprobs.exp().sum(1))
    log_tail = log_tail.masked_fill(log_tail.isnan(), -torch.inf)
    sums = sum_losses(
        logits, labels, TeacherRows(ids, logprobs, log_tail), 1.0, KlSettings(tail="ghost")
    )
    assert sums.kl.item() == pytest.approx(0, abs=1e-9)


def test_ghost_keeps_its_gradient_when_the_student_holds_all_mass_inside():
    """1 - Q is 0 in float32 here; the clamped subtraction would lose the push outwards."""
    logits = torch.zeros(1, 50)
    logits[0, 0] = 40.0
    logits.requires_grad_(True)
    rows = TeacherRows(
        torch.tensor([[0]]), torch.tensor([[math.log(0.5)]]), torch.tensor([math.log(0.5)])
    )
    sums = sum_losses(logits, torch.tensor([0]), rows, 1.0, KlSettings(tail="ghost"))
    (gradient,) = torch.autograd.grad(sums.kl, logits)
    assert gradient[0, 0].item() == pytest.approx(0.5, rel=1e-5)
    assert gradient[0, 1:].sum().item() == pytest.approx(-0.5, rel=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_entry_order_does_not_matter(settings):
    logits, labels, rows = make_batch()
    order = torch.tensor(np.random.default_rng(5).permutation(7))
    shuffled = TeacherRows(
        rows.entry_token_ids_NK[:, order], rows.entry_logprobs_NK[:, order], rows.log_tail_mass_N
    )
    if settings.top_k is not None:  # equal probabilities are cut by position: make them distinct
        keep = [n for n in range(13) if n != 4]
        logits, labels = logits[keep], labels[keep]
        rows = TeacherRows(*(tensor[keep] for tensor in rows))
        shuffled = TeacherRows(*(tensor[keep] for tensor in shuffled))
    first = value_and_gradient(ours, logits, labels, rows, 1.0, settings)
    second = value_and_gradient(ours, logits, labels, shuffled, 1.0, settings)
    assert first[0] == pytest.approx(second[0], rel=1e-12)
    np.testing.assert_allclose(first[1], second[1], atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_splitting_the_batch_does_not_matter(settings):
    logits, labels, rows = make_batch()
    whole = ours(logits, labels, rows, 2.0, settings)
    parts = sum(
        ours(logits[cut], labels[cut], TeacherRows(*(t[cut] for t in rows)), 2.0, settings)
        for cut in (slice(0, 1), slice(1, 1), slice(1, 13))
    )
    assert whole.item() == pytest.approx(parts.item(), rel=1e-12)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_no_rows_give_zero_with_a_graph(tail, alpha):
    logits = torch.randn(4, 10, requires_grad=True)
    none = torch.zeros(4, dtype=torch.bool)
    rows = TeacherRows(torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3), torch.zeros(0))
    labels = torch.zeros(0, dtype=torch.long)
    sums = sum_losses(logits[none], labels, rows, alpha, KlSettings(tail=tail))
    assert sums.total(alpha).item() == 0
    (gradient,) = torch.autograd.grad(sums.total(alpha), logits)
    assert torch.equal(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_rows_without_any_entry_stay_finite(settings):
    logits, labels, rows = make_batch(num_rows=6)
    rows = rows._replace(entry_logprobs_NK=torch.full((6, 7), -torch.inf, dtype=torch.float64))
    sums = sum_losses(logits, labels, rows, 1.0, settings)
    (gradient,) = torch.autograd.grad(sums.total(1.0), logits)
    assert math.isfinite(sums.kl.item())
    assert gradient.isfinite().all()


def test_missing_entry_at_an_impossible_token_is_no_nan():
    """The classic 0 * -inf: the id of a missing entry has a student log-probability of -inf."""
    logits = torch.zeros(1, 5)
    logits[0, 4] = -torch.inf
    logits.requires_grad_(True)
    rows = TeacherRows(
        torch.tensor([[1, 4]]),
        torch.tensor([[math.log(0.9), -math.inf]]),
        torch.tensor([math.log(0.1)]),
    )
    for tail in TAILS:
        sums = sum_losses(logits, torch.tensor([1]), rows, 1.0, KlSettings(tail=tail))
        (gradient,) = torch.autograd.grad(sums.total(1.0), logits)
        assert math.isfinite(sums.total(1.0).item())
        assert gradient.isfinite().all()


def test_metrics_are_sums_over_rows_after_the_cut():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]))
    rows = TeacherRows(
        torch.tensor([[0, 1], [1, 2]]),
        torch.log(torch.tensor([[0.6, 0.3], [0.5, 0.4]])),
        torch.log(torch.tensor([0.1, 0.1])),
    )
    labels = torch.tensor([0, 2])
    sums = sum_losses(logits, labels, rows, 1.0, KlSettings())
    assert sums.teacher_mass.item() == pytest.approx(1.8)
    assert sums.student_mass.item() == pytest.approx(1.8)
    assert (sums.agreement.item(), sums.teacher_correct.item()) == (1, 1)
    sums = sum_losses(logits, labels, rows, 1.0, KlSettings(top_k=1))
    assert sums.teacher_mass.item() == pytest.approx(1.1)
    assert sums.student_mass.item() == pytest.approx(0.9)


def test_cut_moves_dropped_mass_into_the_tail():
    _, _, rows = make_batch()
    for top_k, min_prob in ((2, 0.0), (None, 0.2), (3, 0.1), (1, 0.999)):
        kept = cut_support(rows, top_k, min_prob)
        before = rows.entry_logprobs_NK.exp().sum(1) + rows.log_tail_mass_N.exp()
        after = kept.entry_logprobs_NK.exp().sum(1) + kept.log_tail_mass_N.exp()
        torch.testing.assert_close(before, after)
        assert (kept.entry_logprobs_NK > -torch.inf).any(dim=1).all()
    assert cut_support(rows, 7, 0.0) is rows


def test_cut_takes_the_first_of_equal_entries():
    rows = TeacherRows(
        torch.tensor([[3, 5, 9]]), torch.log(torch.tensor([[0.3, 0.3, 0.3]])), torch.zeros(1)
    )
    assert cut_support(rows, 2, 0.0).entry_token_ids_NK.tolist() == [[3, 5]]


# Mutations: each is a mistake made in some released distillation code, and must be noticed.


def drop_the_tail_term(z, y, rows):
    none = torch.full_like(rows.log_tail_mass_N, -torch.inf)
    return ours(z, y, rows._replace(log_tail_mass_N=none), 1.0, KlSettings(tail="ghost"))


def drop_the_temperature_square(z, y, rows):
    sums = sum_losses(z, y, rows, 1.0, KlSettings(temperature=2.0))
    return sums.ce + sums.kl / 4


def shift_by_one(z, y, rows):
    return ours(z, y, TeacherRows(*(t.roll(1, 0) for t in rows)), 1.0, KlSettings())


def skip_the_renormalisation(z, y, rows):
    log_q = z.log_softmax(1).gather(1, rows.entry_token_ids_NK)
    probs = rows.entry_logprobs_NK.exp()
    kl = (torch.xlogy(probs, probs) - probs * log_q).sum()
    return F.cross_entropy(z, y, reduction="sum") + kl


def forget_the_cross_entropy(z, y, rows):
    return sum_losses(z, y, rows, 1.0, KlSettings()).kl


@pytest.mark.parametrize(
    ("mutant", "settings"),
    [
        (drop_the_tail_term, KlSettings(tail="ghost")),
        (drop_the_temperature_square, KlSettings(temperature=2.0)),
        (shift_by_one, KlSettings()),
        (skip_the_renormalisation, KlSettings()),
        (forget_the_cross_entropy, KlSettings()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_mutations_are_noticed(mutant, settings):
    logits, labels, rows = make_batch()
    true_value, true_gradient = truth(logits, labels, rows, 1.0, settings)
    value, gradient = value_and_gradient(mutant, logits, labels, rows)
    assert abs(value - true_value) > 1e-3 * abs(true_value)
    assert np.abs(gradient - true_gradient).max() > 1e-2


@pytest.mark.parametrize("alpha", [-0.5, math.inf, math.nan])
def test_bad_alpha_is_refused(alpha):
    logits, labels, rows = make_batch()
    with pytest.raises(ConfigError, match=f"--alpha {alpha}"):
        sum_losses(logits, labels, rows, alpha, KlSettings())


def test_alpha_without_a_teacher_is_refused():
    logits, labels, _ = make_batch()
    with pytest.raises(ConfigError, match="--alpha 0.5 needs teacher rows"):
        sum_losses(logits, labels, None, 0.5, KlSettings())


def test_a_row_too_few_is_refused():
    logits, labels, rows = make_batch()
    short = TeacherRows(*(tensor[:-1] for tensor in rows))
    with pytest.raises(RowError, match="12 teacher rows for 13 response tokens"):
        sum_losses(logits, labels, short, 1.0, KlSettings())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tail": "drop"}, "--tail 'drop' is unknown: one of renormalize, ghost, label"),
        ({"temperature": 0.0}, "--temperature 0.0 must be above 0"),
        ({"tail": "ghost", "temperature": 2.0}, "--tail ghost with --temperature 2.0"),
        ({"tail": "label", "temperature": 0.5}, "--tail label with --temperature 0.5"),
        ({"top_k": 0}, "--top-k 0 must be at least 1"),
        ({"min_prob": 1.0}, r"--min-prob 1.0 must be in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        KlSettings(**settings)
