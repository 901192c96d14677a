"""The teacher pass through a plain transformers forward: slower, needs no vLLM.

Legend: B batch, T positions, N response tokens, K candidates, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pipeline.data.tokenization import Example
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import load_model, pick_device
from pipeline.teacher.engine import Scores

# Rows whose float32 logits exist at one time: 512 * 128,256 * 4 bytes = 263 MB.
CHUNK_ROWS = 512


class TransformersEngine:
    """Scores examples in padded batches, an adapter merged into the weights."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        k: int,
        vocabulary_size: int,
        dtype: str,
        batch_tokens: int,
        trust_remote_code: bool,
    ) -> None:
        """Load the model.

        Args:
            checkpoint: the teacher.
            k: candidates a row.
            vocabulary_size: logits from this id on are padding rows, never candidates.
            dtype: float32, bfloat16 or float16.
            batch_tokens: most positions, padding included, in one forward pass.
            trust_remote_code: run model code shipped with the checkpoint.
        """
        self._device = pick_device()
        model = load_model(
            checkpoint, dtype=dtype, trust_remote_code=trust_remote_code, merge_adapter=True
        )
        self._model = model.to(self._device)
        self._k, self._vocabulary_size, self._batch_tokens = k, vocabulary_size, batch_tokens

    def score(self, examples: Sequence[Example]) -> Iterator[Scores]:
        """Yield the scores of each example, in the order given."""
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
        scores: dict[int, Scores] = {}
        following = 0
        for batch in self._batches(examples, order):
            for index, found in zip(
                batch, self._forward([examples[i] for i in batch]), strict=True
            ):
                scores[index] = found
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
        labels_N = torch.from_numpy(
            example.input_ids[example.response_start :].astype(np.int64)
        ).to(logits_TV.device)
        rows_NV = logits_TV[first:last]
        parts = [
            self._chunk(rows_NV[low : low + CHUNK_ROWS], labels_N[low : low + CHUNK_ROWS])
            for low in range(0, len(labels_N), CHUNK_ROWS)
        ]
        ids, logprobs, label_logprobs = (
            torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)
        )
        return Scores(ids.astype(np.int32), logprobs, label_logprobs)

    def _chunk(
        self, logits_NV: torch.Tensor, labels_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits_NV = logits_NV.float()
        lse_N1 = logits_NV.logsumexp(-1, keepdim=True)  # padding rows included, as in the model
        logits_NK, ids_NK = logits_NV[:, : self._vocabulary_size].topk(self._k, -1)
        labels_N1 = logits_NV.gather(1, labels_N[:, None])
        return ids_NK, logits_NK - lse_N1, (labels_N1 - lse_N1)[:, 0]

    def close(self) -> None:
        """Free the model."""
        del self._model
