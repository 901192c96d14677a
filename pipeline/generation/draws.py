"""What is done to the logits before a token is taken: they are checked, and tokens are drawn.

Every row draws with a generator of its own, so that a batch's other rows and its size have no
part in an answer.

Shapes: B batch, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from pipeline.errors import ModelError


class SoundLogits(LogitsProcessor):  # type: ignore[misc]
    """Lets logits pass as they are, unless no token can be taken from them."""

    def __init__(self, model: str) -> None:
        """Take the model's name, with its number type, for the message."""
        self._model = model

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V].

        Raises:
            ModelError: the largest of a row is not finite; NaN counts as the largest.
        """
        largest_B = scores.amax(dim=-1)
        if not torch.isfinite(largest_B).all():
            raise ModelError(
                f"{self._model} gives logits of which the largest is "
                f"{largest_B[~torch.isfinite(largest_B)][0].item()}, expected finite numbers: try "
                "--dtype float32; if that does not help, its weights are damaged"
            )
        return scores


class SeededDraws(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token a row: a draw from its softmax, which greedy decoding then takes.

    Each row has its own generator on the CPU, advanced by one number a token.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        """Take one seed for each row of the batch, a temperature above 0, top_p in (0, 1]."""
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature
        self._top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V] that are 0 at the drawn token and -inf elsewhere."""
        uniform_B = torch.stack([torch.rand((), generator=each) for each in self._generators])
        drawn_B = draw(scores, uniform_B.to(scores.device), self._temperature, self._top_p)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn_B[:, None], 0.0)


def draw(logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return int64 [B], one token a row, by inverting its cumulative distribution at uniform_B.

    The distribution is softmax(logits / temperature), cut to the smallest set of most probable
    tokens whose mass reaches top_p, and renormalised (nucleus sampling, arXiv 1904.09751).
    """
    probs_BV = torch.softmax(logits_BV.double() / temperature, dim=-1)
    probs_BV, ids_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = probs_BV.cumsum(-1) - probs_BV
    probs_BV = probs_BV.where((before_BV < top_p), 0.0)
    cumulative_BV = probs_BV.cumsum(-1)
    target_B1 = uniform_B.double()[:, None] * cumulative_BV[:, -1:]
    # The first token whose cumulative mass exceeds the target; one of mass 0 never does.
    rank_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    rank_B1 = torch.minimum(rank_B1, (probs_BV > 0).sum(-1, keepdim=True) - 1)
    return ids_BV.gather(1, rank_B1)[:, 0]
