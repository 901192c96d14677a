"""One model's weights in memory: loaded when first needed, once at most, given up at the end."""

import gc
from types import TracebackType
from typing import Any

import torch

from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.cost import Costs, timed
from pipeline.evaluation.inputs import ModelInputs
from pipeline.models.loading import load_model, pick_device


class ModelInUse:
    """A context in which a model may be loaded; at its end the memory is free for the next."""

    def __init__(self, inputs: ModelInputs, config: EvaluateStudentConfig) -> None:
        self._inputs, self._config = inputs, config
        self._model: Any = None

    def load(self, costs: Costs) -> Any:
        """Return the model on its device, in evaluation mode.

        Args:
            costs: gets the time of loading, where it is loaded now.

        Raises:
            ModelError: it does not load.
        """
        if self._model is None:
            with timed(costs, "loading", 0):
                self._model = load_model(
                    self._inputs.checkpoint,
                    dtype=self._config.dtype,
                    trust_remote_code=self._config.trust_remote_code,
                )
                self._model = self._model.to(pick_device())
        return self._model

    def __enter__(self) -> "ModelInUse":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._model = None
        gc.collect()  # an adapter and its model refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
