"""The student's Trainer: equal to plain fine-tuning at alpha 0, and token-weighted however cut."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cache_factory import ResponsesInMemory, random_response
from torch.utils.data import Sampler
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from pipeline.models.checkpoint import find_checkpoint
from pipeline.student.batches import collate_teacher_rows
from pipeline.student.config import TrainStudentConfig
from pipeline.student.fused_loss import LossInputs
from pipeline.student.head import ResponseHead
from pipeline.student.kl_settings import KlSettings
from pipeline.student.support import TeacherRows
from pipeline.student.trainer import StudentTrainer
from pipeline.training.arguments import build_arguments
from pipeline.training.epochs import FollowEpochs
from pipeline.training.lora import load_trainable
from pipeline.training.precision import Precision
from storage_schema.response import Response

VOCABULARY = 300


@pytest.fixture(scope="module")
def responses() -> list[Response]:
    rng = np.random.default_rng(1)
    return ResponsesInMemory(
        random_response(rng, vocabulary_size=VOCABULARY, k=8) for _ in range(24)
    )


def settings(path: Path, alpha: float, **changes: object) -> TrainStudentConfig:
    options = {"max_steps": 6, "learning_rate": 1e-2, "save_every_steps": None, **changes}
    return TrainStudentConfig(
        student=str(path), cache="unused", output="unused", alpha=alpha, **options
    )


def make_trainer(tiny_model, output, data, alpha, kl=None, **changes) -> StudentTrainer:
    config = settings(tiny_model, alpha, **changes)
    return StudentTrainer(
        alpha_settings=config.alpha_settings,
        kl_settings=kl or KlSettings(),
        model=load_trainable(find_checkpoint(str(tiny_model)), config, Precision("float32", False)),
        args=build_arguments(config, output, Precision("float32", False)),
        train_dataset=data,
        eval_dataset=data,
        batch_tokens=config.batch_tokens,
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def worst_difference(first: Trainer, second: Trainer) -> float:
    pairs = zip(weights(first).values(), weights(second).values(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def losses(trainer: Trainer, key: str = "loss") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if "loss" in entry]


class SameOrder(Trainer):
    """The stock Trainer, given the examples in the student's order."""

    def _get_train_sampler(self, train_dataset=None):
        sampler = EveryEpoch(self.train_dataset.order(self.args.seed))
        self.add_callback(FollowEpochs(sampler))
        return sampler


class EveryEpoch(Sampler):
    def __init__(self, order):
        self.order, self.epoch = order, 0

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        return self.order.indices(self.epoch)

    def set_epoch(self, epoch):
        self.epoch = epoch


def collate_by_hand(batch):
    longest = max(len(response.input_ids) for response in batch)
    columns = {"input_ids": [], "attention_mask": [], "labels": []}
    for response in batch:
        ids, start = response.input_ids.tolist(), response.response_start
        padding = longest - len(ids)
        columns["input_ids"].append(ids + [0] * padding)
        columns["attention_mask"].append([1] * len(ids) + [0] * padding)
        columns["labels"].append([-100] * start + ids[start:] + [-100] * padding)
    return {name: torch.tensor(rows) for name, rows in columns.items()}


# AdamW divides by the gradient's size, which lets the rounding of a tiny gradient grow; plain
# gradient descent moves these weights by over 1e-3 and leaves rounding as it is.
@pytest.mark.parametrize(
    ("optimizer", "limit"),
    [pytest.param("adamw_torch", 1e-5, marks=pytest.mark.slow), ("sgd", 2e-8)],
)
def test_alpha_zero_equals_plain_trainer(tiny_model, tmp_path, responses, optimizer, limit):
    """Same data order and seed; labels, padding and arguments of the stock side made by hand."""
    ours = make_trainer(tiny_model, tmp_path / "a", responses, 0.0)
    before = weights(ours)
    ours.args.optim = optimizer
    ours.train()
    moved = max((before[name] - after).abs().max() for name, after in weights(ours).items())
    assert moved > 1e-3
    config = settings(tiny_model, 0.0)
    plain = SameOrder(
        model=load_trainable(find_checkpoint(str(tiny_model)), config, Precision("float32", False)),
        args=TrainingArguments(
            output_dir=str(tmp_path / "b"),
            max_steps=config.max_steps or -1,
            num_train_epochs=config.epochs,
            learning_rate=config.peak_learning_rate,
            per_device_train_batch_size=config.batch_size,
            lr_scheduler_type=config.lr_schedule,
            warmup_steps=config.warmup_ratio,
            weight_decay=0.0,
            max_grad_norm=1.0,
            seed=config.seed,
            logging_steps=1,
            optim=optimizer,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            remove_unused_columns=False,
        ),
        train_dataset=responses,
        data_collator=collate_by_hand,
    )
    plain.train()
    assert worst_difference(ours, plain) < limit
    assert losses(ours) == pytest.approx(losses(plain), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_accumulation_weighs_tokens_not_batches(tiny_model, tmp_path, responses, alpha):
    whole = make_trainer(tiny_model, tmp_path / "a", responses, alpha)
    whole.train()
    parts = make_trainer(
        tiny_model,
        tmp_path / "b",
        responses,
        alpha,
        batch_size=1,
        gradient_accumulation_steps=8,
    )
    parts.train()
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert losses(parts, "ce") == pytest.approx(losses(whole, "ce"), rel=1e-5)
    assert worst_difference(whole, parts) < 1e-4


def test_kl_falls_and_only_the_adapter_moves(tiny_model, tmp_path, responses):
    trainer = make_trainer(tiny_model, tmp_path, responses, 10.0, max_steps=30)
    before = weights(trainer)
    trainer.train()
    kl = losses(trainer, "kl")
    assert np.mean(kl[-3:]) < 0.9 * np.mean(kl[:3])
    for name, value in weights(trainer).items():
        assert torch.equal(before[name], value) == ("lora_" not in name), name


def test_logged_loss_is_made_of_its_logged_parts(tiny_model, tmp_path, responses):
    trainer = make_trainer(tiny_model, tmp_path, responses, 2.5)
    trainer.train()
    for entry in trainer.state.log_history[:-1]:
        assert entry["loss"] == pytest.approx(entry["ce"] + 2.5 * entry["kl"], rel=1e-5)
        assert 0 < entry["teacher_mass"] <= 1
        assert 0 <= entry["student_mass"] <= 1
        assert entry["response_tokens"] > 0
    first_epoch = trainer.state.log_history[:3]
    assert sum(e["response_tokens"] for e in first_epoch) == sum(
        response.num_response_tokens for response in responses
    )


def test_evaluation_is_on_the_scale_of_training(tiny_model, tmp_path, responses):
    """Three batches with unequal token counts give the mean over tokens, as one batch would."""
    three = make_trainer(tiny_model, tmp_path / "a", responses, 1.0)
    one = make_trainer(tiny_model, tmp_path / "b", responses, 1.0, batch_size=24, max_steps=1)
    metrics = three.evaluate()
    assert metrics["eval_loss"] == pytest.approx(one.evaluate()["eval_loss"], rel=1e-6)
    one.train()  # the first step's loss is that of the untouched weights, over all responses
    assert metrics["eval_loss"] == pytest.approx(losses(one)[0], rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_ce"] + metrics["eval_kl"])


def test_evaluation_leaves_the_training_means_alone(tiny_model, tmp_path, responses):
    class EvaluateEachStep(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_evaluate = True
            return control

    plain = make_trainer(tiny_model, tmp_path / "a", responses, 1.0)
    plain.train()
    watched = make_trainer(tiny_model, tmp_path / "b", responses, 1.0)
    watched.add_callback(EvaluateEachStep())
    watched.train()
    assert losses(watched, "kl") == losses(plain, "kl")


def test_outputs_are_returned_when_asked_for(tiny_model, tmp_path, responses):
    trainer = make_trainer(tiny_model, tmp_path, responses, 1.0)
    batch = trainer._prepare_inputs(collate_teacher_rows(responses[:4]))
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert loss.item() == trainer.compute_loss(trainer.model, batch).item()
    assert outputs.logits.shape == (1, 1, 1)  # no logits were made


def test_several_processes_scale_the_loss_as_the_stock_trainer_does(
    tiny_model, tmp_path, responses, monkeypatch
):
    """DDP averages gradients over processes, while num_items counts all of them."""
    trainer = make_trainer(tiny_model, tmp_path, responses, 1.0)
    batch = collate_teacher_rows(responses[:4])
    num_items = torch.tensor(len(batch["log_tail_mass_N"]) * 2)
    alone = trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_items)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda _: 2))
    both = trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_items)
    assert both.item() == pytest.approx(2 * alone.item())


def test_shifted_teacher_rows_change_the_loss(tiny_model, tmp_path, responses):
    trainer = make_trainer(tiny_model, tmp_path, responses, 1.0)
    batch = collate_teacher_rows(responses[:8])
    right = trainer.compute_loss(trainer.model, batch).item()
    for name in ("entry_token_ids_NK", "entry_logprobs_NK", "log_tail_mass_N"):
        batch[name] = batch[name].roll(1, 0)
    assert abs(trainer.compute_loss(trainer.model, batch).item() - right) > 1e-3 * right


def test_prompt_and_padding_get_no_gradient(tiny_model, responses):
    """Exactly zero at every hidden row that predicts no response token."""
    batch = collate_teacher_rows(responses[:6])
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    head = ResponseHead(model)
    seen = []
    model.model.norm.register_forward_hook(lambda *call: seen.append(call[-1]) or None)
    inputs = LossInputs(
        labels_N=batch["response_labels_N"],
        teacher=TeacherRows(*(batch.get(name) for name in TeacherRows._fields)),
        alphas_N=batch["alpha_weights_N"],
    )
    columns = {name: batch[name] for name in ("input_ids", "attention_mask")}
    sums, _ = head.score(model, columns, batch["response_positions_N"], inputs)
    (gradient,) = torch.autograd.grad(sums.loss, seen[0])
    predicts = torch.zeros_like(batch["labels"], dtype=torch.bool)
    predicts[:, :-1] = batch["labels"][:, 1:] != -100
    assert (gradient[~predicts] == 0).all()
    assert (gradient[predicts] != 0).any(dim=1).all()


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(tiny_model, tmp_path, responses):
    plain = make_trainer(tiny_model, tmp_path / "a", responses, 1.0, max_steps=3)
    plain.train()
    checked = make_trainer(
        tiny_model, tmp_path / "b", responses, 1.0, max_steps=3, gradient_checkpointing=True
    )
    checked.train()
    assert worst_difference(plain, checked) < 1e-6
