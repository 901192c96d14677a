"""--label-smoothing: the control without a teacher, against a float64 truth and plain torch."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_fused_loss import (
    TOLERANCE,
    assert_no_worse_than_plain,
    identity_head,
    make_batch,
    ours,
)

from pipeline.errors import ConfigError
from pipeline.student.confidence import ConfidenceBins
from pipeline.student.config import TrainStudentConfig
from pipeline.student.fused_loss import LossInputs, sum_losses
from pipeline.student.kl_settings import KlSettings


def check(batch, smoothing, settings=None, softcap=None, used=None):
    used = smoothing if used is None else used
    mutant = partial(ours, label_smoothing=used)
    assert_no_worse_than_plain(batch, settings or KlSettings(), softcap, mutant, smoothing)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_value_and_gradients_three_ways(smoothing, dtype):
    check(make_batch(dtype=dtype), smoothing)
    check(make_batch(3, 129, 64, dtype=dtype), smoothing, softcap=4.0)


@pytest.mark.parametrize(
    "settings",
    [KlSettings(tail="ghost"), KlSettings(temperature=2.0), KlSettings(divergence="jsd")],
)
def test_beside_a_teacher_it_smooths_the_cross_entropy_alone(settings):
    check(make_batch(), 0.2, settings)


def test_another_share_or_none_is_noticed():
    for used in (0.0, 0.1):
        with pytest.raises(AssertionError):
            check(make_batch(), 0.11, used=used)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_without_a_teacher_it_is_torchs_own(dtype, softcap):
    batch = make_batch(num_rows=301, dtype=dtype)
    hidden = batch["hidden"].requires_grad_()
    inputs = LossInputs(
        labels_N=batch["labels"], label_smoothing=0.1, softcap=softcap, chunk_rows=64
    )
    sums = sum_losses(hidden, batch["weight"], None, inputs)
    logits = F.linear(hidden, batch["weight"]).float()
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    expected = F.cross_entropy(logits, batch["labels"], reduction="sum", label_smoothing=0.1)
    assert sums.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    found, theirs = (torch.autograd.grad(loss, hidden)[0] for loss in (sums.loss, expected))
    torch.testing.assert_close(found, theirs)
    # What is logged stays the cross-entropy of the labels, comparable with a run without.
    label_ce = F.cross_entropy(logits, batch["labels"], reduction="sum")
    assert sums.ce.item() == pytest.approx(label_ce.item(), rel=1e-6)


def test_gradcheck():
    batch = make_batch(num_rows=6, num_tokens=11, width=4, hidden=3)
    leaves = [batch[key].div(4).requires_grad_() for key in ("hidden", "weight", "bias")]

    def loss(hidden, weight, bias):
        moved = {**batch, "hidden": hidden, "weight": weight, "bias": bias}
        return ours(moved, KlSettings(), 4.0, chunk_rows=4, label_smoothing=0.3).loss

    assert torch.autograd.gradcheck(loss, leaves)


def test_its_optimum_is_the_smoothed_label():
    labels, smoothing = torch.tensor([2, 0]), 0.4
    target = torch.full((2, 5), smoothing / 5, dtype=torch.float64)
    target[[0, 1], labels] += 1 - smoothing
    logits = target.log().requires_grad_()
    inputs = LossInputs(labels_N=labels, label_smoothing=smoothing)
    loss = sum_losses(*identity_head(logits), inputs).loss
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-12
    assert loss.item() == pytest.approx(-(target * target.log()).sum().item())


def test_confidence_is_that_of_the_labels():
    batch = make_batch()
    counts = []
    for smoothing in (0.0, 0.5):
        bins = ConfidenceBins()
        ours(batch, KlSettings(), confidence=bins, label_smoothing=smoothing)
        counts.append(bins.sums_2M)
    torch.testing.assert_close(*counts)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(value, tmp_path: Path):
    with pytest.raises(ConfigError, match=f"--label-smoothing {value} must be at least 0 and"):
        TrainStudentConfig(
            student="a", cache="b", output=str(tmp_path), alpha=0.0, label_smoothing=value
        )
