"""The fused loss against a slow float64 truth, on value and gradients, and its invariants."""

import math
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.errors import ConfigError
from pipeline.student import fused_loss
from pipeline.student.fused_loss import LossInputs, sum_losses
from pipeline.student.kl_settings import DIVERGENCES, TAILS, KlSettings
from pipeline.student.support import TeacherRows
from storage_schema.errors import RowError

# Allowed on top of the error of plain dense torch in the same dtype, relative to the largest.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 2**-9,
    torch.bfloat16: 2**-7,
}
SETTINGS = [
    KlSettings(),
    KlSettings(temperature=2.0),
    KlSettings(temperature=0.5, top_k=3),
    KlSettings(teacher_temperature=0.5),
    KlSettings(teacher_temperature=3.0, temperature=2.0),
    KlSettings(top_k=4, min_prob=0.05),
    KlSettings(tail="ghost"),
    KlSettings(tail="ghost", top_k=3),
    KlSettings(tail="label"),
    KlSettings(tail="label", min_prob=0.1),
    KlSettings(tail="ghost", divergence="reverse-kl"),
    KlSettings(divergence="jsd"),
    KlSettings(divergence="jsd", temperature=2.0),
    KlSettings(tail="ghost", divergence="jsd"),
    KlSettings(tail="label", divergence="jsd", top_k=4),
    KlSettings(divergence="skewed-kl"),
    KlSettings(tail="ghost", divergence="skewed-kl", min_prob=0.1),
    KlSettings(tail="label", divergence="skewed-kl"),
]
# Of the whole support: no tail is left, so every tail is the same.
ONE_OF_EACH = [
    KlSettings(tail=tail, divergence=divergence)
    for divergence in DIVERGENCES
    for tail in TAILS
    if divergence != "reverse-kl" or tail == "ghost"
]


def name(settings) -> str:
    parts = [settings.divergence, settings.tail, f"T{settings.temperature:g}"]
    parts += [f"k{settings.top_k}", f"p{settings.min_prob}", f"t{settings.teacher_temperature:g}"]
    return "-".join(parts)


def every(settings):
    return pytest.mark.parametrize("settings", settings, ids=name)


def teacher_rows(rng, num_rows, num_tokens, width):
    """Rows in float64: random ones, short ones, one whose rounded mass is above 1."""
    scores = rng.normal(0, 3, (num_rows, num_tokens))
    logprobs_NV = np.asarray([reference.log_softmax(row) for row in scores])
    ids = np.argsort(-logprobs_NV, axis=1)[:, :width].copy()
    logprobs = np.take_along_axis(logprobs_NV, ids, 1).astype(np.float16).astype(np.float64)
    for row in range(0, num_rows, 3):
        num_kept = 1 if row == 0 else int(rng.integers(1, width + 1))
        logprobs[row, num_kept:] = -np.inf
        ids[row, num_kept:] = ids[row, 0]  # any valid id, even one that is in the support
    if num_rows > 4:
        logprobs[4] = np.log(np.full(width, (1 + 1e-3) / width))
    with np.errstate(divide="ignore"):
        log_tail = np.log(np.maximum(1 - np.exp(logprobs).sum(1), 0))
    return TeacherRows(torch.tensor(ids), torch.tensor(logprobs), torch.tensor(log_tail))


def make_batch(num_rows=13, num_tokens=37, width=7, hidden=5, dtype=torch.float64, seed=0):
    """Hidden rows, head and rows, with planted extremes; a fifth of the rows weigh 0."""
    rng = np.random.default_rng(seed)
    batch = {
        "hidden": torch.tensor(rng.normal(0, 1, (num_rows, hidden))).to(dtype),
        "weight": torch.tensor(rng.normal(0, 1.5, (num_tokens, hidden))).to(dtype),
        "bias": torch.tensor(rng.normal(0, 1, num_tokens)).to(dtype),
        "labels": torch.tensor(rng.integers(0, num_tokens, num_rows)),
        "rows": teacher_rows(rng, num_rows, num_tokens, width),
        "alphas": torch.tensor(rng.uniform(0, 2, num_rows)),
        "weights": torch.tensor(rng.uniform(0.2, 2, num_rows) * (np.arange(num_rows) % 5 != 2)),
    }
    if num_rows > 5:
        batch["hidden"][1] = 8 * batch["weight"][5]  # one token has it all
        batch["hidden"][2] = 0
        batch["bias"][7] = -200
        batch["labels"][5] = batch["rows"].entry_token_ids_NK[5, 2]  # inside the support
    return batch


def ours(batch, settings, softcap=None, **options):
    """The sums with every input of the batch in its own dtype."""
    inputs = LossInputs(
        labels_N=batch["labels"],
        teacher=batch["rows"],
        alphas_N=batch["alphas"],
        weights_N=batch["weights"],
        settings=settings,
        softcap=softcap,
        **options,
    )
    return sum_losses(batch["hidden"], batch["weight"], batch["bias"], inputs)


def plain(batch, settings, softcap=None, smoothing=0.0):
    return reference.plain(*batch.values(), settings, softcap, smoothing)


def differentiate(function, batch, settings, *rest):
    leaves = ("hidden", "weight", "bias")
    batch = {**batch, **{key: batch[key].detach().clone().requires_grad_() for key in leaves}}
    value = function(batch, settings, *rest)
    value = value if isinstance(value, torch.Tensor) else value.loss
    gradients = torch.autograd.grad(value, [batch[key] for key in leaves])
    return value.item(), [gradient.double().numpy() for gradient in gradients]


def assert_no_worse_than_plain(batch, settings, softcap=None, ours=ours, smoothing=0.0):
    dtype = batch["hidden"].dtype
    arrays = {key: v.double() if isinstance(v, torch.Tensor) else v for key, v in batch.items()}
    arrays["labels"] = batch["labels"].numpy()
    true_value, true_gradients = reference.truth(*arrays.values(), settings, softcap, smoothing)
    value, gradients = differentiate(ours, batch, settings, softcap)
    plain_value, plain_gradients = differentiate(plain, batch, settings, softcap, smoothing)
    tolerance = TOLERANCE[dtype]
    plain_error = np.nan_to_num(abs(true_value - plain_value))
    assert abs(true_value - value) <= plain_error + tolerance * abs(true_value)
    for kind, truth, found, beside in zip(
        ("hidden", "head", "bias"), true_gradients, gradients, plain_gradients, strict=True
    ):
        # Where plain divides 0 by 0, that is no excuse for ours.
        limit = np.nan_to_num(np.abs(truth - beside), posinf=0) + tolerance * np.abs(truth).max()
        worst = np.unravel_index((np.abs(truth - found) - limit).argmax(), limit.shape)
        assert np.abs(truth - found)[worst] <= limit[worst], (
            f"{kind} at {worst}: truth {truth[worst]}, ours {found[worst]}, plain {beside[worst]}"
        )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@every(SETTINGS)
def test_value_and_gradients_three_ways(settings, dtype):
    assert_no_worse_than_plain(make_batch(dtype=dtype), settings)


@every(SETTINGS)
@pytest.mark.parametrize(("num_rows", "num_tokens", "width"), [(1, 2, 1), (5, 8, 8), (3, 129, 64)])
def test_awkward_sizes(num_rows, num_tokens, width, settings):
    batch = make_batch(num_rows, num_tokens, width)
    if width == num_tokens:
        batch["rows"].log_tail_mass_N.fill_(-torch.inf)
    assert_no_worse_than_plain(batch, settings)


@pytest.mark.parametrize("softcap", [3.0, 30.0])
@every([KlSettings(temperature=2.0), KlSettings(tail="ghost"), KlSettings(divergence="jsd")])
def test_capped_logits_three_ways(settings, softcap):
    for dtype in (torch.float64, torch.float32):
        assert_no_worse_than_plain(make_batch(dtype=dtype), settings, softcap)


@every(SETTINGS)
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_gradcheck(settings, softcap):
    batch = make_batch(num_rows=6, num_tokens=11, width=4, hidden=3)
    leaves = [batch[key].div(4).requires_grad_() for key in ("hidden", "weight", "bias")]

    def loss(hidden, weight, bias):
        moved = {**batch, "hidden": hidden, "weight": weight, "bias": bias}
        return ours(moved, settings, softcap, chunk_rows=4).loss

    assert torch.autograd.gradcheck(loss, leaves)


def identity_head(logits):
    """Hidden rows and head whose product is the logits."""
    return logits, torch.eye(logits.shape[1], dtype=logits.dtype), None


def score(logits, labels, rows, settings, alpha=1.0, **options):
    alphas = torch.full((len(labels),), alpha, dtype=torch.float64)
    inputs = LossInputs(
        labels_N=labels, teacher=rows, alphas_N=alphas, settings=settings, **options
    )
    return sum_losses(*identity_head(logits), inputs)


@every(ONE_OF_EACH)
def test_full_support_equals_dense_torch(settings):
    """With the whole vocabulary stored there is no tail to treat, and nothing is sparse."""
    rng = np.random.default_rng(3)
    logits = torch.tensor(rng.normal(0, 2, (6, 20)), requires_grad=True)
    teacher = torch.tensor(rng.normal(0, 2, (6, 20))).log_softmax(1)
    logprobs, ids = teacher.sort(dim=1, descending=True)
    rows = TeacherRows(ids, logprobs, torch.full((6,), -torch.inf, dtype=torch.float64))
    sums = score(logits, torch.zeros(6, dtype=torch.long), rows, settings)
    log_q = logits.log_softmax(1)
    share = {"jsd": 0.5, "skewed-kl": 0.1}.get(settings.divergence, 0.0)
    log_m = (share * teacher.exp() + (1 - share) * log_q.exp()).log()
    forward = F.kl_div(log_m, teacher, log_target=True, reduction="sum")
    backward = F.kl_div(log_m, log_q, log_target=True, reduction="sum")
    dense = {
        "kl": forward,
        "skewed-kl": forward,
        "jsd": (forward + backward) / 2,
        "reverse-kl": F.kl_div(teacher, log_q, log_target=True, reduction="sum"),
    }[settings.divergence]
    assert sums.kl.item() == pytest.approx(dense.item(), rel=1e-12)
    assert sums.student_mass.item() == pytest.approx(6.0)
    expected = dense - log_q[:, 0].sum()
    (gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(sums.loss, logits)[0], gradient)


@every(ONE_OF_EACH)
@pytest.mark.parametrize("width", [4, 37])
def test_a_distribution_is_at_no_distance_from_itself(settings, width):
    if width == 4 and settings.tail != "ghost":
        pytest.skip("the other tails change the target where something is left out")
    batch = make_batch(num_rows=9, num_tokens=37)
    logits = F.linear(batch["hidden"], batch["weight"])
    logprobs, ids = logits.log_softmax(1).topk(width, dim=1)
    log_tail = torch.log1p(-logprobs.exp().sum(1)).nan_to_num(-torch.inf)
    if width == 37:
        log_tail.fill_(-torch.inf)
    kl = score(logits, batch["labels"], TeacherRows(ids, logprobs, log_tail), settings).kl
    # A tail lost to float64 counts as 2^-24 in the reverse KL.
    assert kl.item() == pytest.approx(0, abs=1e-9 if settings.divergence != "reverse-kl" else 1e-5)


def test_divergences_of_disjoint_teacher_and_student_are_bounded():
    """JSD at most ln 2, skewed KL at most -ln of the share: finite where KL is not."""
    logits = torch.tensor([[90.0, 0.0, 0.0]], dtype=torch.float64)
    rows = TeacherRows(torch.tensor([[1]]), torch.zeros(1, 1), torch.tensor([-torch.inf]))
    label = torch.tensor([1])
    jsd = score(logits, label, rows, KlSettings(divergence="jsd")).kl.item()
    assert jsd == pytest.approx(math.log(2))
    skewed = score(logits, label, rows, KlSettings(divergence="skewed-kl")).kl.item()
    assert skewed == pytest.approx(-math.log(0.1))
    assert score(logits, label, rows, KlSettings()).kl.item() == pytest.approx(90)


@every(SETTINGS)
@pytest.mark.parametrize("chunk_rows", [1, 4, 1000])
def test_chunk_size_does_not_matter(settings, chunk_rows):
    batch = make_batch()
    whole = differentiate(ours, batch, settings)
    parts = differentiate(lambda b, s: ours(b, s, chunk_rows=chunk_rows), batch, settings)
    assert whole[0] == pytest.approx(parts[0], rel=1e-12)
    for first, second in zip(whole[1], parts[1], strict=True):
        np.testing.assert_allclose(first, second, atol=1e-12)


@every(SETTINGS)
def test_entry_order_and_padding_do_not_matter(settings):
    batch = make_batch()
    keep = [n for n in range(13) if n != 4]  # equal probabilities are cut by position
    rows = TeacherRows(*(column[keep] for column in batch["rows"][:3]))
    batch = {**batch, "rows": rows}
    for key in ("hidden", "labels", "alphas", "weights"):
        batch[key] = batch[key][keep]
    order = torch.tensor(np.random.default_rng(5).permutation(7))
    ids, logprobs = rows.entry_token_ids_NK[:, order], rows.entry_logprobs_NK[:, order]
    missing = torch.full((12, 2), -torch.inf, dtype=torch.float64)
    shuffled = TeacherRows(
        torch.cat([torch.zeros(12, 2, dtype=torch.long), ids], 1),
        torch.cat([missing, logprobs], 1),
        rows.log_tail_mass_N,
    )
    first = differentiate(ours, batch, settings)
    second = differentiate(ours, {**batch, "rows": shuffled}, settings)
    assert first[0] == pytest.approx(second[0], rel=1e-12)
    for a, b in zip(first[1], second[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def cut_rows(batch, rows):
    per_row = {key: batch[key][rows] for key in ("hidden", "labels", "alphas", "weights")}
    teacher = TeacherRows(*(None if c is None else c[rows] for c in batch["rows"]))
    return {**batch, **per_row, "rows": teacher}


@every(SETTINGS)
def test_splitting_the_batch_does_not_matter(settings):
    batch = make_batch()
    whole = ours(batch, settings)
    parts = [
        ours(cut_rows(batch, cut), settings) for cut in (slice(0, 1), slice(1, 1), slice(1, 13))
    ]
    for index in range(len(whole)):
        total = sum(part[index].item() for part in parts)
        assert whole[index].item() == pytest.approx(total, rel=1e-12)


@every(ONE_OF_EACH)
@pytest.mark.parametrize("with_teacher", [False, True])
def test_no_rows_give_zero_with_a_graph(settings, with_teacher):
    batch = cut_rows(make_batch(), slice(0, 0))
    hidden, weight = batch["hidden"].requires_grad_(), batch["weight"].requires_grad_()
    teacher = batch["rows"] if with_teacher else None
    inputs = LossInputs(
        labels_N=batch["labels"], teacher=teacher, alphas_N=batch["alphas"], settings=settings
    )
    loss = sum_losses(hidden, weight, None, inputs).loss
    assert loss.item() == 0
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert torch.equal(gradients[1], torch.zeros_like(weight))
    assert gradients[0].shape == (0, 5)


@every(SETTINGS)
def test_rows_without_any_entry_stay_finite(settings):
    batch = make_batch(num_rows=6)
    logprobs = torch.full((6, 7), -torch.inf, dtype=torch.float64)
    batch["rows"] = batch["rows"]._replace(entry_logprobs_NK=logprobs)
    value, gradients = differentiate(ours, batch, settings)
    assert math.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@every(SETTINGS)
def test_rows_that_weigh_nothing_get_exactly_no_gradient(settings):
    batch = make_batch()
    _, (hidden, _, _) = differentiate(ours, batch, settings)
    without = batch["weights"].numpy() == 0
    assert without.any()
    assert (hidden[without] == 0).all()
    assert (hidden[~without] != 0).any(axis=1).all()


@every(ONE_OF_EACH)
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_enormous_logits_stay_finite_in_float32(settings, size):
    logits = torch.zeros(3, 40)
    logits[0, 3], logits[1, 9], logits[2] = size, -size, size
    logits.requires_grad_()
    rows = TeacherRows(
        torch.tensor([[3, 4]] * 3),
        torch.log(torch.tensor([[0.6, 0.3]] * 3)),
        torch.log(torch.ones(3) / 10),
    )
    sums = score(logits, torch.tensor([3, 9, 0]), rows, settings)
    (gradient,) = torch.autograd.grad(sums.loss, logits)
    assert all(math.isfinite(value.item()) for value in sums)
    assert gradient.isfinite().all()


def test_ghost_keeps_its_gradient_when_the_student_holds_all_mass_inside():
    """1 - Q is 0 in float32 here, even exp is; subtracting would lose the push outwards."""
    for top in (40.0, 400.0):
        logits = torch.zeros(1, 50)
        logits[0, 0] = top
        logits.requires_grad_(True)
        half = torch.tensor([math.log(0.5)])
        rows = TeacherRows(torch.tensor([[0]]), half[:, None], half)
        kl_only = KlSettings(tail="ghost")
        sums = score(logits, torch.tensor([0]), rows, kl_only)
        (gradient,) = torch.autograd.grad(sums.loss, logits)
        assert sums.kl.item() == pytest.approx(0.5 * (top - math.log(49)) - math.log(2), rel=1e-5)
        assert gradient[0, 0].item() == pytest.approx(0.5, rel=1e-5)
        assert gradient[0, 1:].sum().item() == pytest.approx(-0.5, rel=1e-5)


@every(ONE_OF_EACH)
def test_missing_entry_at_an_impossible_token_is_no_nan(settings):
    """The classic 0 * -inf: the id of a missing entry has a student log-probability of -inf."""
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf])
    hidden, weight = torch.randn(1, 3, requires_grad=True), torch.randn(5, 3)
    rows = TeacherRows(
        torch.tensor([[1, 4]]),
        torch.tensor([[math.log(0.9), -math.inf]]),
        torch.tensor([math.log(0.1)]),
    )
    inputs = LossInputs(
        labels_N=torch.tensor([1]), teacher=rows, alphas_N=torch.ones(1), settings=settings
    )
    sums = sum_losses(hidden, weight, bias, inputs)
    (gradient,) = torch.autograd.grad(sums.loss, hidden)
    assert math.isfinite(sums.loss.item())
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_teacher_it_is_cross_entropy(dtype):
    batch = make_batch(num_rows=301, dtype=dtype)
    hidden = batch["hidden"].requires_grad_()
    sums = sum_losses(hidden, batch["weight"], None, LossInputs(labels_N=batch["labels"]))
    expected = F.cross_entropy(
        F.linear(hidden, batch["weight"]).float(), batch["labels"], reduction="sum"
    )
    assert sums.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (sums.ce.item(), sums.kl) == (sums.loss.item(), None)
    ours, theirs = (torch.autograd.grad(loss, hidden)[0] for loss in (sums.loss, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_many_low_precision_rows_are_in_float32(dtype):
    batch = make_batch(num_rows=10_000, dtype=dtype)
    sums = ours(batch, KlSettings(), chunk_rows=7)
    assert sums.loss.dtype == sums.ce.dtype == sums.kl.dtype == torch.float32
    exact = plain({**batch, "rows": batch["rows"]}, KlSettings())
    assert sums.loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_head_gradient_of_a_low_precision_head_is_summed_in_float32():
    """A token's gradient over 4,000 chunks: added in bfloat16 it would stop growing at 256."""
    num_rows = 4000
    hidden, weight = torch.ones(num_rows, 1).bfloat16(), torch.zeros(2, 1).bfloat16()
    weight.requires_grad_()
    inputs = LossInputs(labels_N=torch.zeros(num_rows, dtype=torch.long), chunk_rows=1)
    (gradient,) = torch.autograd.grad(sum_losses(hidden, weight, None, inputs).loss, weight)
    assert gradient.flatten().tolist() == [-2000.0, 2000.0]


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation returned, and the matrix products done."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        self.products += any(part in str(func) for part in ("aten.mm", "aten.addmm"))
        return result


@every([KlSettings(), KlSettings(tail="ghost"), KlSettings(temperature=2.0)])
def test_no_logits_of_all_rows_and_no_gradient_of_a_frozen_head(settings):
    batch = make_batch(num_rows=64, num_tokens=500, hidden=4)
    batch["hidden"].requires_grad_()
    batch["bias"] = None
    with LargestTensor() as frozen:
        ours(batch, settings, chunk_rows=3).loss.backward()
    assert frozen.largest <= 500 * 4  # the head itself, transposed
    assert frozen.products == 2 * 22  # logits and the hidden rows' gradient, of 22 chunks
    batch["weight"].requires_grad_()
    with LargestTensor() as trained:
        ours(batch, settings, chunk_rows=3).loss.backward()
    assert trained.products == 3 * 22
    with torch.no_grad(), LargestTensor() as evaluated:
        ours(batch, settings, chunk_rows=3)
    assert evaluated.products == 22


def test_backward_scales_by_what_comes_in():
    batch = make_batch()
    once = differentiate(ours, batch, KlSettings())[1]
    scaled = differentiate(lambda b, s: ours(b, s).loss * -0.25, batch, KlSettings())[1]
    for first, second in zip(once, scaled, strict=True):
        np.testing.assert_allclose(second, -0.25 * first, rtol=1e-15)


def test_metrics_are_sums_over_rows_after_the_cut():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]))
    rows = TeacherRows(
        torch.tensor([[0, 1], [1, 2]]),
        torch.log(torch.tensor([[0.6, 0.3], [0.5, 0.4]])),
        torch.log(torch.tensor([0.1, 0.1])),
    )
    labels = torch.tensor([0, 2])
    for settings in (KlSettings(), KlSettings(tail="ghost"), KlSettings(temperature=3.0)):
        sums = score(logits, labels, rows, settings, alpha=0.5)
        assert sums.teacher_mass.item() == pytest.approx(1.8)
        assert sums.student_mass.item() == pytest.approx(1.8)
        assert sums.ce.item() == pytest.approx(-2 * math.log(0.7))
        assert (sums.agreement.item(), sums.teacher_correct.item()) == (1, 1)
        assert sums.alpha.item() == 1
        assert sums.loss.item() == pytest.approx((sums.ce + 0.5 * sums.kl).item())
    sums = score(logits, labels, rows, KlSettings(top_k=1))
    assert sums.teacher_mass.item() == pytest.approx(1.1)
    assert sums.student_mass.item() == pytest.approx(0.9)


# Mutations: each is a mistake made in some released distillation code, and must be noticed.


def move_column(batch, column, value):
    return {**batch, "rows": batch["rows"]._replace(**{column: value})}


def drop_the_tail(batch, settings):
    none = torch.full_like(batch["rows"].log_tail_mass_N, -torch.inf)
    return ours(move_column(batch, "log_tail_mass_N", none), settings).loss


def drop_the_temperature_square(batch, settings):
    return ours({**batch, "alphas": batch["alphas"] / settings.temperature**2}, settings).loss


def square_the_temperature_in_the_value_only(batch, settings):
    loss = drop_the_temperature_square(batch, settings)
    return loss + (ours(batch, settings).loss - loss).detach()


def shift_by_one(batch, settings):
    return ours(
        {**batch, "rows": TeacherRows(*(c.roll(1, 0) for c in batch["rows"][:3]))}, settings
    ).loss


def shift_the_labels(batch, settings):
    return ours({**batch, "labels": batch["labels"].roll(1)}, settings).loss


def skip_the_renormalisation(batch, settings):
    logits = F.linear(batch["hidden"], batch["weight"], batch["bias"])
    log_q = logits.log_softmax(1).gather(1, batch["rows"].entry_token_ids_NK)
    p = batch["rows"].entry_logprobs_NK.exp()
    kl = (torch.xlogy(p, p) - p * log_q).sum(1)
    ce = F.cross_entropy(logits, batch["labels"], reduction="none")
    return (batch["weights"] * (ce + batch["alphas"] * kl)).sum()


def normalise_the_student_on_the_support(batch, settings):
    logits = F.linear(batch["hidden"], batch["weight"], batch["bias"])
    present = batch["rows"].entry_logprobs_NK > -torch.inf
    on_support = logits.gather(1, batch["rows"].entry_token_ids_NK)
    log_q = on_support.masked_fill(~present, -torch.inf).log_softmax(1).where(present, 0.0)
    p = batch["rows"].entry_logprobs_NK.softmax(1)
    kl = (torch.xlogy(p, p) - p * log_q).sum(1)
    ce = F.cross_entropy(logits, batch["labels"], reduction="none")
    return (batch["weights"] * (ce + batch["alphas"] * kl)).sum()


def forget_the_cross_entropy(batch, settings):
    sums = ours(batch, settings).loss
    logits = F.linear(batch["hidden"], batch["weight"], batch["bias"])
    ce = F.cross_entropy(logits, batch["labels"], reduction="none")
    return sums - (batch["weights"] * ce).sum()


def mean_over_the_vocabulary(batch, settings):
    return ours(batch, settings).loss / 37


def swap_the_arguments(batch, settings):
    return ours(batch, replace(settings, divergence="reverse-kl")).loss


@pytest.mark.parametrize(
    ("mutant", "settings"),
    [
        (drop_the_tail, KlSettings(tail="ghost")),
        (drop_the_tail, KlSettings(tail="label")),
        (drop_the_temperature_square, KlSettings(temperature=2.0)),
        (square_the_temperature_in_the_value_only, KlSettings(temperature=2.0)),
        (shift_by_one, KlSettings()),
        (shift_the_labels, KlSettings()),
        (skip_the_renormalisation, KlSettings()),
        (normalise_the_student_on_the_support, KlSettings()),
        (forget_the_cross_entropy, KlSettings()),
        (mean_over_the_vocabulary, KlSettings()),
        (swap_the_arguments, KlSettings(tail="ghost")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_mutations_are_noticed(mutant, settings):
    """The comparison that every value and gradient goes through fails for each of them."""
    batch = make_batch(num_rows=12)
    assert_no_worse_than_plain(batch, settings)
    with pytest.raises(AssertionError):
        assert_no_worse_than_plain(batch, settings, ours=lambda b, s, _: mutant(b, s))


def test_a_row_too_few_is_refused():
    batch = make_batch()
    batch["rows"] = TeacherRows(*(column[:-1] for column in batch["rows"][:3]))
    with pytest.raises(RowError, match="12 teacher rows for 13 response tokens"):
        ours(batch, KlSettings())


def test_teacher_rows_without_weights_are_refused():
    batch = make_batch()
    with pytest.raises(ConfigError, match="teacher rows without alphas_N"):
        LossInputs(labels_N=batch["labels"], teacher=batch["rows"])


def test_chunks_are_as_large_as_memory_is_cheap():
    hidden = torch.zeros(1, 8)
    assert fused_loss._chunk_rows(hidden, 49152) == 2**26 // (49152 * 4)
    assert fused_loss._chunk_rows(hidden.bfloat16(), 49152) == 2**26 // (49152 * 4)
    assert fused_loss._chunk_rows(hidden, 2**30) == 1
