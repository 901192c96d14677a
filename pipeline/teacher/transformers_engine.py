"""The teacher pass through a plain transformers forward: slower, needs no vLLM.

Legend: B batch, T positions, N response tokens, K candidates, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pipeline.data.tokenization import Example
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import load_model, pick_device
from pipeline.models.memory import memory_advice
from pipeline.teacher.engine import EngineError, Scores
from pipeline.teacher.extraction import Extractor
from pipeline.teacher.packed_rows import scores_from_packed
from pipeline.teacher.row_spec import RowSpec
from pipeline.teacher.sampling import example_number


class TransformersEngine:
    """Scores examples in padded batches, an adapter merged into the weights."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        spec: RowSpec,
        dtype: str,
        batch_tokens: int,
        trust_remote_code: bool,
    ) -> None:
        """Load the model.

        Args:
            checkpoint: the teacher.
            spec: what a row holds.
            dtype: float32, bfloat16 or float16.
            batch_tokens: most positions, padding included, in one forward pass.
            trust_remote_code: run model code shipped with the checkpoint.
        """
        self._device = pick_device()
        model = load_model(
            checkpoint, dtype=dtype, trust_remote_code=trust_remote_code, merge_adapter=True
        )
        self._model = model.to(self._device)
        self._spec, self._batch_tokens = spec, batch_tokens
        self._extractor = Extractor(spec)

    def score(self, examples: Sequence[Example]) -> Iterator[Scores]:
        """Yield the scores of each example, in the order given."""
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
        scores: dict[int, Scores] = {}
        following = 0
        for batch in self._batches(examples, order):
            with memory_advice("scoring", "use a lower --batch-tokens"):
                rows = self._forward([examples[i] for i in batch])
            scores.update(zip(batch, rows, strict=True))
            while following in scores:
                yield scores.pop(following)
                following += 1

    def _batches(self, examples: Sequence[Example], order: list[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in order:  # lengths ascend, so the newest example is the longest
            if batch and (len(batch) + 1) * len(examples[index].input_ids) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    @torch.inference_mode()
    def _forward(self, batch: list[Example]) -> list[Scores]:
        longest = max(len(example.input_ids) for example in batch)
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, example in enumerate(batch):
            length = len(example.input_ids)
            ids_BT[row, :length] = torch.from_numpy(example.input_ids.astype(np.int64))
            mask_BT[row, :length] = 1
        # Logits of prompt positions are never needed: start at the earliest scoring position.
        first = min(example.response_start for example in batch) - 1
        logits_BTV = self._model(
            input_ids=ids_BT.to(self._device),
            attention_mask=mask_BT.to(self._device),
            use_cache=False,
            logits_to_keep=longest - first,
        ).logits
        offset = longest - logits_BTV.shape[1]
        return [self._rows(logits_BTV[row], offset, example) for row, example in enumerate(batch)]

    def _rows(self, logits_TV: torch.Tensor, offset: int, example: Example) -> Scores:
        # The position before a token scores it.
        first, last = example.response_start - 1 - offset, len(example.input_ids) - 1 - offset
        rows_NV = logits_TV[first:last]
        number, start = example_number(example.example_id), example.response_start
        labels = example.input_ids[start:].astype(np.int64)
        packed_NW = self._extractor.extract(
            lambda low, high: rows_NV[low:high],
            torch.from_numpy(labels).to(self._device),
            torch.full((len(labels),), number, device=self._device),
            torch.arange(start, len(example.input_ids), device=self._device),
        )
        if packed_NW is None:
            raise EngineError("the model returned no logits")
        return scores_from_packed(packed_NW.cpu().numpy(), self._spec, example)

    def close(self) -> None:
        """Free the model."""
        del self._model
