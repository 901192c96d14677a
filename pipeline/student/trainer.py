"""The Trainer of a student: its loss is CE + alpha * KL from cached teacher rows.

The loss is a token-weighted mean over the whole optimiser step, every pass and every process
together, so cutting a step differently changes nothing. The forward pass goes through whatever
wraps the model (peft, DDP, FSDP), never around it; the loss is computed where the model's head
stands (pipeline.student.head).

Shapes: N response tokens, M bins.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer

from pipeline.student.alpha import AlphaSettings
from pipeline.student.batches import collate_labels, collate_teacher_rows
from pipeline.student.confidence import ConfidenceBins, calibration_error
from pipeline.student.fused_loss import LossInputs, LossSums
from pipeline.student.head import ResponseHead
from pipeline.student.kl_settings import KlSettings
from pipeline.student.passes import PassLimit, divide
from pipeline.student.steps import BoolArray, Steps, StepSampler, without_rows
from pipeline.student.support import TeacherRows
from pipeline.training.epochs import FollowEpochs
from storage_schema.response import Response

# Forward and backward of SmolLM2-135M take 0.09 s a pass and 0.007 s a token on one core
# (docs/results/student-step.md). Not known for GPUs, which small passes leave idle.
PASS_TOKENS = {"cpu": 16}
MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


class StudentTrainer(Trainer):  # type: ignore[misc]
    """Trains on a cache, `train_dataset`; alpha 0 is supervised fine-tuning.

    The Trainer sees one batch an optimiser step, a Step of several passes, so that it has nothing
    left to accumulate. A step holds per_device_train_batch_size * gradient_accumulation_steps
    responses for each process.

    Attributes:
        batching: "padded" or "padding-free", how the sequences of a pass are put together.
        steps: the steps of the run that is under way or over; None before the first.
    """

    # compute_loss divides by the tokens of the whole step, so nothing else may be divided.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        alpha_settings: AlphaSettings,
        kl_settings: KlSettings,
        label_smoothing: float = 0.0,
        batch_tokens: int | None = None,
        trained_on: BoolArray | None = None,
        **trainer_options: Any,
    ) -> None:
        arguments = trainer_options["args"]
        self._responses_per_step = (
            arguments.per_device_train_batch_size
            * arguments.gradient_accumulation_steps
            * arguments.world_size
        )
        arguments.gradient_accumulation_steps = 1
        super().__init__(**trainer_options)
        self.model_accepts_loss_kwargs = True
        self.alpha_settings = alpha_settings
        self.kl_settings = kl_settings
        self.label_smoothing = label_smoothing
        self.batching = "padded"
        self.steps: Steps | None = None
        self._batch_tokens, self._trained_on = batch_tokens, trained_on
        self._head = ResponseHead(self.model)
        # Sums since the last log of training, or of the evaluation that is under way.
        self._sums: Tensor | None = None
        self._confidence: ConfidenceBins | None = None

    @property
    def responses_per_step(self) -> int:
        """How many responses an optimiser step trains on, all processes together."""
        return int(self._responses_per_step)

    @property
    def input_seconds(self) -> float:
        """How long this process has waited for steps to be put together."""
        return 0.0 if self.steps is None else self.steps.wait_seconds

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train as the Trainer does; no thread outlives it."""
        try:
            return super().train(*arguments, **options)
        finally:
            if self.steps is not None:
                self.steps.close()

    def get_train_dataloader(self) -> Any:
        """Return the steps of an epoch, put together in this process's own thread."""
        self.steps = Steps(
            self.train_dataset,
            self._collate(with_teacher=self.alpha_settings.alpha > 0),
            seed=self.args.seed,
            responses_per_step=self.responses_per_step,
            limit=self._limit(self.args.per_device_train_batch_size),
            num_epochs=self.args.num_train_epochs,
            max_steps=self.args.max_steps if self.args.max_steps > 0 else None,
            process=self.args.process_index,
            num_processes=self.args.world_size,
            trained_on=self._trained_on,
        )
        sampler = StepSampler(self.steps.steps_per_epoch)
        self.add_callback(FollowEpochs(sampler))
        return self.steps.loader(sampler)

    def _collate(self, *, with_teacher: bool) -> Callable[[Sequence[Response]], dict[str, Any]]:
        padding_free = self.batching == "padding-free"
        if not with_teacher:
            return partial(collate_labels, padding_free=padding_free)
        mode = self.alpha_settings.mode
        return partial(collate_teacher_rows, alpha_mode=mode, padding_free=padding_free)

    def _limit(self, batch_size: int) -> PassLimit:
        return PassLimit(
            responses=batch_size,
            tokens=self._batch_tokens,
            padded=self.batching == "padded",
            # Sharded weights are gathered again in every pass, which is not in the figure.
            fixed_tokens=None if self.is_fsdp_enabled else PASS_TOKENS.get(self.args.device.type),
        )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Run the passes of a Step forward and backward; return its loss, this process's part."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        for left, batch in enumerate(inputs["passes"], 1 - len(inputs["passes"])):
            batch = {k: v.to(self.args.device, non_blocking=True) for k, v in batch.items()}
            with nullcontext() if left == 0 else self._without_exchange(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(
                        model, batch, num_items_in_batch=inputs["num_response_tokens"]
                    )
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _without_exchange(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Keep DDP from averaging gradients; FSDP would have to hold them whole meanwhile."""
        if self.is_fsdp_enabled:
            return nullcontext()
        context: AbstractContextManager[Any] = self.accelerator.no_sync(model)
        return context

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count none: the stock estimate knows neither frozen heads nor prompt rows."""
        return 0

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        self.state.num_input_tokens_seen += inputs["num_tokens"]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the batch's share of the step's loss, in nats per response token.

        Args:
            model: the wrapped model.
            inputs: a batch of collate_teacher_rows, or of collate_labels where no KL is wanted.
            return_outputs: also return the model's outputs; their logits are no logits.
            num_items_in_batch: response tokens of the whole step on all processes; None counts
                this batch alone.
        """
        sums, outputs = self._head.score(
            model,
            {**{name: inputs[name] for name in MODEL_INPUTS if name in inputs}, "use_cache": False},
            inputs["response_positions_N"],
            self._loss_inputs(inputs, model.training),
        )
        num_rows = len(inputs["response_labels_N"])
        self._add_sums(sums, num_rows)
        num_items = num_rows if num_items_in_batch is None else num_items_in_batch
        loss = sums.loss / torch.as_tensor(num_items).clamp(min=1)  # max() would wait for the GPU
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # num_items counts all processes, and DDP averages the gradients over them.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _loss_inputs(self, inputs: dict[str, Any], training: bool) -> LossInputs:
        labels_N, softcap = inputs["response_labels_N"], self._head.transform.softcap
        confidence = None if training else self._confidence
        if "log_tail_mass_N" not in inputs:  # alpha 0 has no use for the teacher
            return LossInputs(
                labels_N=labels_N,
                label_smoothing=self.label_smoothing,
                softcap=softcap,
                confidence=confidence,
            )
        alpha = self.alpha_settings.alpha
        if training:  # evaluations of one run are all on one scale
            alpha = self.alpha_settings.at_step(self.state.global_step, self.state.max_steps)
        alphas_N = alpha * inputs["alpha_weights_N"]
        return LossInputs(
            labels_N=labels_N,
            teacher=TeacherRows(**{k: v for k, v in inputs.items() if k in TeacherRows._fields}),
            alphas_N=alphas_N,
            weights_N=1 / (1 + alphas_N) if self.alpha_settings.normalize else None,
            settings=self.kl_settings,
            label_smoothing=self.label_smoothing,
            softcap=softcap,
            confidence=confidence,
        )

    def _add_sums(self, sums: LossSums, num_rows: int) -> None:
        values = [torch.tensor(num_rows, device=sums.ce.device)]
        values += [value.detach() for value in sums if value is not None]
        total = torch.stack([value.double() for value in values])
        self._sums = total if self._sums is None else self._sums + total

    def _take_means(self) -> dict[str, float]:
        """Return the means per response token since the last call, over all processes."""
        sums, self._sums = self._sums, None
        if sums is None:
            return {}
        num_rows, *values = self.accelerator.reduce(sums, reduction="sum").tolist()
        names = LossSums._fields[: len(values)]
        means = {name: value / max(num_rows, 1) for name, value in zip(names, values, strict=True)}
        return {"response_tokens": int(num_rows), **means}

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return, and log, the means per response token of the held-out responses, and the ECE.

        eval_loss is the loss of training at the whole alpha; eval_ce and eval_kl are its parts,
        the KL at alpha 0 too; eval_ece is how far confidence is from accuracy on gold tokens.
        """
        kept, self._sums = self._sums, None
        bins = self._confidence = ConfidenceBins(self.args.device)
        self.model.eval()
        for batch in self._held_out_passes():
            batch = {k: v.to(self.args.device) for k, v in batch.items()}
            with torch.no_grad(), self.compute_loss_context_manager():
                self.compute_loss(self._evaluated_model(), batch)
        self.model.train()
        means = self._take_means()
        bins_2M = self.accelerator.reduce(bins.sums_2M, reduction="sum")
        self._sums = kept
        metrics = {f"eval_{name}": value for name, value in means.items()}
        metrics["eval_ece"] = calibration_error(bins_2M)
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _evaluated_model(self) -> Any:
        """The model whose weights are whole in a forward pass; DDP's wrapper is not needed."""
        return self.model_wrapped if self.is_fsdp_enabled else self.model

    def _held_out_passes(self) -> Any:
        responses = self.eval_dataset
        collate = self._collate(with_teacher=True)
        lengths = np.array([len(response.input_ids) for response in responses])
        limit = self._limit(self.args.per_device_eval_batch_size)
        mine = divide(lengths, limit, self.args.world_size)[self.args.process_index]
        for places in mine:
            if len(places):
                yield collate([responses[place] for place in places])
            else:
                yield without_rows(collate(responses[:1]))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of LossSums since the last log to what the Trainer logs of training."""
        if "loss" in logs:
            means = self._take_means()
            means.pop("loss", None)
            logs.update(means)
        super().log(logs, start_time)
