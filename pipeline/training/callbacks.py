"""What a run shows and checks while it trains."""

import math
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.errors import ModelError
from pipeline.progress import Progress
from pipeline.training.checkpoints import STATE_NAME


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Shows progress, logs the last step, and stops at a loss that is no number."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._progress: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the display with the steps that are left."""
        if state.is_local_process_zero:
            left = max(0, state.max_steps - state.global_step)
            self._progress = Progress(self.description, left, "steps").__enter__()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Count the step; the last one, which any evaluated one may be, is logged in any case."""
        if self._progress is not None:
            self._progress.advance()
        if control.should_evaluate or state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **_: Any,
    ) -> None:
        """Show the loss of the last interval.

        Raises:
            ModelError: a loss is infinite or not a number.
        """
        kind = "evaluation" if "eval_loss" in logs else "training"
        loss = logs.get("eval_loss", logs.get("loss"))
        if loss is None:
            return
        if not math.isfinite(loss):
            raise ModelError(
                f"the {kind} loss is {loss} at step {state.global_step}: the run has diverged; "
                "use a lower --learning-rate, or --dtype float32, with another --output"
            )
        if self._progress is not None:
            self._progress.advance(0, note=f"{kind} loss {loss:.4g}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close the display."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)


class EarlyStopping(TrainerCallback):  # type: ignore[misc]
    """Stops when the evaluation loss has not fallen for `patience` evaluations.

    It counts in the log, which a checkpoint holds, so a resumed run stops where it would have.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Compare the evaluations so far, the present one among them."""
        if self.has_waited(state):
            control.should_training_stop = True

    def has_waited(self, state: TrainerState) -> bool:
        """Whether the evaluations of this state end a run."""
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= self.patience


def epochs_of_ended_run(trainer: Trainer, checkpoint: Path) -> int | None:
    """Return the finished epochs of a run that made its last step, early or not, else None."""
    state = TrainerState.load_from_json(str(checkpoint / STATE_NAME))
    stops = [c for c in trainer.callback_handler.callbacks if isinstance(c, EarlyStopping)]
    if state.global_step < state.max_steps and not any(stop.has_waited(state) for stop in stops):
        return None
    return int(state.epoch)


def run_callbacks(command: str, patience: int | None) -> list[TrainerCallback]:
    """Return the callbacks of a command's run; with a patience, early stopping too."""
    callbacks: list[TrainerCallback] = [RunCallback(command)]
    if patience is not None:
        callbacks.append(EarlyStopping(patience))
    return callbacks
