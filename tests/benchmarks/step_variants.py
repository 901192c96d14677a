"""The ways to do one training step that the step benchmarks compare.

All train the same LoRA adapter, in the same number format, on the same responses in the same
order, with one torch.optim.AdamW step. Gradient clipping, schedules and logging are left out of
all of them. Peers pad a step's responses into one batch, as their collators do.

    ours-kd     StudentTrainer on the cached teacher, alpha 1, through its own step loader
    ours-sft    the same at alpha 0
    hf-sft      transformers.Trainer: the model's own loss, logits of every position
    naive-kd    CE + KL from the cached teacher over those logits, as one writes it first
    trl-sft     TRL's SFTTrainer; it chunks its loss and makes no logits of prompt positions
    trl-kd      TRL's DistillationTrainer with a live teacher: full-vocabulary forward KL, chunked,
                no CE. It trains on what the student generates; here it is given the responses in
                place of generations, and generating is not timed
    trl-gkd     TRL's GKDTrainer with lmbda 0, TRL's way to train on given responses: a live
                teacher, full-vocabulary forward KL over the logits of every position, no CE
    liger-kd    Liger's chunked CE + full-vocabulary KL on hidden rows of response positions, with
                a live teacher; compiled on CUDA, plain torch elsewhere
    liger-sft   hf-sft with Liger's Triton kernels, its fused cross-entropy among them: CUDA only
    online-kd   (of sweep_cost.py) a live teacher, in the number format it is stored in, on the same
                padded batch; then CE + full-vocabulary forward KL on response rows alone
    online-kd-cut  the same with each step cut into the passes that ours-kd would make

The live teachers are the student's own size. Shapes: B batch, T positions, N response tokens,
K entries, H hidden, V vocabulary.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from step_inputs import load_student, load_teacher
from torch import Tensor

from pipeline.models.loading import pick_device
from pipeline.student.batches import collate_teacher_rows
from pipeline.student.config import TrainStudentConfig
from pipeline.student.passes import PassLimit, divide
from pipeline.student.trainer import PASS_TOKENS, StudentTrainer
from pipeline.training.arguments import build_arguments
from pipeline.training.collation import collate_sequences
from pipeline.training.padding_free import attention_for, choose_batching
from pipeline.training.precision import Precision
from storage_schema import Response

LEAST_LEARNING_RATE = 1e-5


class Setup(NamedTuple):
    """What the variants are made from; `seed` is of the order of the steps."""

    student: str
    responses: Any
    batch_size: int
    num_steps: int
    dtype: str
    checkpointing: bool
    seed: int = 0


class Variant(NamedTuple):
    """A model and the forward and backward of a step.

    Attributes:
        model: the student with its adapter, on the device.
        backward: takes the number of a step and its responses, leaves the gradients, and returns
            the seconds it waited for its input.
        teacher: a live one, or None.
    """

    model: Any
    backward: Callable[[int, list[Response]], float]
    teacher: Any = None


def missing(name: str) -> str | None:
    """Return why a variant cannot run here, or None."""
    needs = {"trl": ["trl"], "liger": ["liger_kernel", "triton"]}.get(name.partition("-")[0], [])
    absent = [package for package in needs if importlib.util.find_spec(package) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    if name == "liger-sft" and not torch.cuda.is_available():
        return "Liger's fused cross-entropy is a Triton kernel and there is no CUDA device"
    return None


def make_variant(name: str, setup: Setup) -> Variant:
    """Load the models of a variant and return it."""
    return VARIANTS[name](setup)


def optimizer_of(variant: Variant) -> torch.optim.Optimizer:
    """Return the optimiser that all variants use."""
    trained = [p for p in variant.model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=LEAST_LEARNING_RATE)


def _ours(alpha: float, setup: Setup) -> Variant:
    config = TrainStudentConfig(
        student=setup.student, cache="-", output="-", alpha=alpha, batch_size=setup.batch_size,
        gradient_checkpointing=setup.checkpointing, max_steps=setup.num_steps, seed=setup.seed,
        report_to="none",
    )  # fmt: skip
    precision = Precision(setup.dtype, autocast=False)
    attention = attention_for(config.batching, pick_device(), precision)
    trainer = StudentTrainer(
        alpha_settings=config.alpha_settings,
        kl_settings=config.kl_settings,
        batch_tokens=config.batch_tokens,
        model=_student(setup, attention),
        args=build_arguments(config, _scratch(), precision),
        train_dataset=setup.responses,
    )
    trainer.batching = choose_batching(config.batching, attention, trainer)
    trainer.get_train_dataloader()
    steps = trainer.steps

    def backward(number: int, _: list[Response]) -> float:
        before = steps.wait_seconds
        inputs = steps[number]._asdict()
        trainer.training_step(trainer.model, inputs)
        return float(steps.wait_seconds - before)

    return Variant(trainer.model, backward)


def _scratch() -> Path:
    return Path(tempfile.mkdtemp())


def _student(setup: Setup, attention: str | None = None) -> Any:
    model = load_student(setup.student, setup.dtype, attention)
    if setup.checkpointing:
        model.gradient_checkpointing_enable()
    return model


def _peer_arguments(kind: Any, setup: Setup, **options: Any) -> Any:
    return kind(
        output_dir=str(_scratch()), report_to="none", use_cpu=pick_device() == "cpu",
        per_device_train_batch_size=setup.batch_size, max_steps=setup.num_steps,
        gradient_checkpointing=setup.checkpointing, bf16=False, **options,
    )  # fmt: skip


def _to_device(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(pick_device()) for name, value in batch.items()}


def _labels_backward(trainer: Any) -> Callable[[int, list[Response]], float]:
    """Return the step of a trainer that takes input_ids, attention_mask and labels."""

    def backward(_: int, responses: list[Response]) -> float:
        batch = _to_device(collate_sequences(responses))
        num_items = (batch["labels"][:, 1:] != -100).sum()
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_items).backward()
        return 0.0

    return backward


def _hf_sft(setup: Setup) -> Variant:
    from transformers import Trainer, TrainingArguments

    trainer = Trainer(model=_student(setup), args=_peer_arguments(TrainingArguments, setup))
    return Variant(trainer.model, _labels_backward(trainer))


def _liger_sft(setup: Setup) -> Variant:
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    variant = _hf_sft(setup)
    _apply_liger_kernel_to_instance(model=variant.model.get_base_model())
    return variant


def _naive_kd(setup: Setup) -> Variant:
    model = _student(setup).to(pick_device())

    def backward(_: int, responses: list[Response]) -> float:
        batch = _to_device(collate_teacher_rows(responses))
        names = ("input_ids", "attention_mask")
        outputs = model(**{name: batch[name] for name in names}, use_cache=False)
        naive_loss(outputs.logits, batch).backward()
        return 0.0

    return Variant(model, backward)


def naive_loss(logits_BTV: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """CE + KL as naive distillation code writes it, over the full logits of every position."""
    log_q = logits_BTV[:, :-1].float().log_softmax(-1)
    labels = batch["labels"][:, 1:]
    is_response = labels != -100
    ce = F.nll_loss(log_q.transpose(1, 2), labels, ignore_index=-100, reduction="sum")
    p = batch["entry_logprobs_NK"].softmax(1)
    kl = torch.xlogy(p, p) - p * log_q[is_response].gather(1, batch["entry_token_ids_NK"])
    return (ce + kl.sum()) / is_response.sum()


def _tokenizer() -> Any:
    """A tokenizer for trainers that want one: they are fed token ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        padding_side="left",
    )  # fmt: skip


def _any_rows(**columns: Any) -> Any:
    """A data set for trainers that want one; they are fed batches."""
    from datasets import Dataset

    return Dataset.from_dict(columns)


def _trl_sft(setup: Setup) -> Variant:
    from trl import SFTConfig, SFTTrainer

    options = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = SFTTrainer(
        model=_student(setup), args=_peer_arguments(SFTConfig, setup, **options),
        train_dataset=_any_rows(input_ids=[[1, 2]], labels=[[1, 2]]),
        processing_class=_tokenizer(),
    )  # fmt: skip
    return Variant(trainer.model, _labels_backward(trainer))


def _trl_gkd(setup: Setup) -> Variant:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    trainer = GKDTrainer(
        model=_student(setup), teacher_model=load_teacher(setup.student, setup.dtype),
        args=_peer_arguments(GKDConfig, setup, lmbda=0.0, beta=0.0, temperature=1.0),
        data_collator=collate_sequences,
        train_dataset=_any_rows(input_ids=[[1, 2]], labels=[[1, 2]]),
        processing_class=_tokenizer(),
    )  # fmt: skip
    return Variant(trainer.model, _labels_backward(trainer), trainer.teacher_model)


def _trl_kd(setup: Setup) -> Variant:
    from trl import DistillationConfig, DistillationTrainer

    trainer = DistillationTrainer(
        model=_student(setup), teacher_model=load_teacher(setup.student, setup.dtype),
        args=_peer_arguments(DistillationConfig, setup, beta=0.0, temperature=1.0),
        train_dataset=_any_rows(prompt=["<s>"]), processing_class=_tokenizer(),
    )  # fmt: skip

    def backward(_: int, responses: list[Response]) -> float:
        batch = _to_device(collate_prompts_and_completions(responses))
        trainer.compute_loss(trainer.model, batch).backward()
        return 0.0

    return Variant(trainer.model, backward, trainer.teacher_model)


def collate_prompts_and_completions(responses: Sequence[Response]) -> dict[str, Tensor]:
    """Return DistillationTrainer's batch: prompts padded on the left, responses on the right."""
    prompts = [r.input_ids[: r.response_start] for r in responses]
    completions = [r.input_ids[r.response_start :] for r in responses]
    batch: dict[str, Any] = {"num_items_in_batch": torch.tensor(sum(map(len, completions)))}
    for name, parts, at_the_end in (("prompt", prompts, True), ("completion", completions, False)):
        ids = np.zeros((len(parts), max(map(len, parts))), np.int64)
        mask = np.zeros_like(ids)
        for row, part in enumerate(parts):
            place = slice(ids.shape[1] - len(part), None) if at_the_end else slice(len(part))
            ids[row, place], mask[row, place] = part, 1
        batch |= {f"{name}_ids": torch.from_numpy(ids), f"{name}_mask": torch.from_numpy(mask)}
    return batch


def _liger_kd(setup: Setup) -> Variant:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    model = _student(setup).to(pick_device())
    teacher = load_teacher(setup.student, setup.dtype)
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=1.0, weight_soft_loss=1.0, beta=0.0, compiled=torch.cuda.is_available()
    )
    heads = [m.get_output_embeddings().weight for m in (model, teacher)]

    def backward(_: int, responses: list[Response]) -> float:
        batch = _to_device(collate_sequences(responses))
        labels_N, (student_NH, teacher_NH) = response_rows(batch, model.get_base_model(), teacher)
        loss(student_NH, heads[0], teacher_NH, heads[1], labels_N).backward()
        return 0.0

    return Variant(model, backward, teacher)


def response_rows(batch: dict[str, Tensor], model: Any, teacher: Any) -> tuple[Tensor, list[Any]]:
    """Return the labels, and both models' hidden rows, of the response positions alone."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    is_response = batch["labels"][:, 1:] != -100
    student_BTH = model.model(**inputs, use_cache=False).last_hidden_state
    with torch.no_grad():
        teacher_BTH = teacher.model(**inputs, use_cache=False).last_hidden_state
    rows = [hidden[:, :-1][is_response] for hidden in (student_BTH, teacher_BTH)]
    return batch["labels"][:, 1:][is_response], rows


def _online_kd(is_cut: bool, setup: Setup) -> Variant:
    model = _student(setup).to(pick_device())
    teacher = load_teacher(setup.student, "auto")
    heads = [m.get_output_embeddings().weight for m in (model, teacher)]
    limit = PassLimit(
        responses=setup.batch_size, fixed_tokens=PASS_TOKENS.get(pick_device()) if is_cut else None
    )

    def backward(_: int, responses: list[Response]) -> float:
        num_rows = sum(response.num_response_tokens for response in responses)
        lengths = np.array([len(response.input_ids) for response in responses])
        for places in divide(lengths, limit, 1)[0]:
            batch = _to_device(collate_sequences([responses[place] for place in places]))
            labels_N, rows = response_rows(batch, model.get_base_model(), teacher)
            logs = [
                (hidden_NH @ head_VH.t()).float().log_softmax(-1)
                for hidden_NH, head_VH in zip(rows, heads, strict=True)
            ]
            kl = F.kl_div(logs[0], logs[1], reduction="sum", log_target=True)
            ((F.nll_loss(logs[0], labels_N, reduction="sum") + kl) / num_rows).backward()
        return 0.0

    return Variant(model, backward, teacher)


VARIANTS: dict[str, Callable[[Setup], Variant]] = {
    "ours-kd": partial(_ours, 1.0),
    "ours-sft": partial(_ours, 0.0),
    "hf-sft": _hf_sft,
    "naive-kd": _naive_kd,
    "trl-sft": _trl_sft,
    "trl-kd": _trl_kd,
    "trl-gkd": _trl_gkd,
    "liger-kd": _liger_kd,
    "liger-sft": _liger_sft,
    "online-kd": partial(_online_kd, False),
    "online-kd-cut": partial(_online_kd, True),
}
