"""One forward pass over gold prompt and response: what the model says of each gold token.

Shape suffixes: B batch, T positions, R kept rows (the last ones of a batch), C rows of one
chunk, V vocabulary. Row r of the logits is the distribution FOR the token after position r.
"""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.data.tokenization import Example
from pipeline.errors import ModelError
from pipeline.evaluation.calibration import TokenScores
from pipeline.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# fp32 copies of at most this many logits are alive at once (256 MiB each).
CHUNK_LOGITS = 2**26


def score_gold_tokens(
    model: "PreTrainedModel", examples: Sequence[Example], *, batch_size: int, label: str
) -> list[TokenScores]:
    """Return the scores of each example's response tokens, in the order of `examples`.

    The softmax is taken in float32 over all the model's logits, whatever its number type.

    Args:
        model: in evaluation mode, on the device to use; an adapter may be around it.
        examples: prompt and gold response; all response tokens count, the end token too.
        batch_size: examples in one forward pass.
        label: names the model in the progress display.

    Raises:
        ModelError: a gold token's log-probability is not finite.
    """
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].input_ids))
    scores: dict[int, TokenScores] = {}
    accepted = _forward_arguments(model)
    with (
        torch.inference_mode(),
        Progress(f"{label}: gold text", len(examples), "documents") as progress,
    ):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            results = _score_batch(model, [examples[index] for index in batch], accepted)
            scores.update(zip(batch, results, strict=True))
            progress.advance(len(batch))
    return [scores[index] for index in range(len(examples))]


def _forward_arguments(model: "PreTrainedModel") -> set[str]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(inner.forward).parameters)


def _score_batch(
    model: "PreTrainedModel", examples: Sequence[Example], accepted: set[str]
) -> list[TokenScores]:
    """Score one batch, padded on the left so that all response rows lie at its end."""
    width = max(len(example.input_ids) for example in examples)
    counts = [example.num_response_tokens for example in examples]
    input_ids_BT = torch.zeros((len(examples), width), dtype=torch.long)
    mask_BT = torch.zeros_like(input_ids_BT)
    for row, example in enumerate(examples):
        input_ids_BT[row, width - len(example.input_ids) :] = torch.as_tensor(
            example.input_ids, dtype=torch.long
        )
        mask_BT[row, width - len(example.input_ids) :] = 1
    num_rows = max(counts) + 1  # the row before each token, hence one more
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = num_rows
    if "position_ids" in accepted:
        options["position_ids"] = (mask_BT.cumsum(1) - 1).clamp(min=0).to(model.device)
    logits_BTV = model(
        input_ids=input_ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), **options
    ).logits
    logits_BRV = logits_BTV[:, -num_rows:]
    return [
        _score_rows(logits_BRV[row, num_rows - 1 - count : num_rows - 1], example)
        for row, (example, count) in enumerate(zip(examples, counts, strict=True))
    ]


def _score_rows(logits_NV: torch.Tensor, example: Example) -> TokenScores:
    labels_N = torch.as_tensor(example.input_ids[example.response_start :], dtype=torch.long)
    labels_N = labels_N.to(logits_NV.device)
    chunk = max(1, CHUNK_LOGITS // logits_NV.shape[1])
    parts = [
        _score_chunk(logits_NV[start : start + chunk].float(), labels_N[start : start + chunk])
        for start in range(0, len(labels_N), chunk)
    ]
    columns = torch.cat(parts).cpu().numpy().T
    label_logprobs, confidences, correct, entropies, squares = columns
    if not np.isfinite(columns).all():
        raise ModelError(
            f"the model gives a gold token of example {example.example_id.hex()[:16]} a "
            f"log-probability of {label_logprobs.min()}: expected finite numbers; "
            "try --dtype float32"
        )
    return TokenScores(label_logprobs, confidences, correct.astype(bool), entropies, squares)


def _score_chunk(logits_CV: torch.Tensor, labels_C: torch.Tensor) -> torch.Tensor:
    """Return [C, 5] float32: label log-probability, confidence, correct, entropy, sum of p^2."""
    logprobs_CV = logits_CV.log_softmax(dim=-1)
    probs_CV = logprobs_CV.exp()
    # From the logits: two different ones can round to one probability.
    argmax_C = logits_CV.argmax(dim=-1)
    return torch.stack(
        [
            logprobs_CV.gather(1, labels_C[:, None])[:, 0],
            probs_CV.gather(1, argmax_C[:, None])[:, 0],
            (argmax_C == labels_C).float(),
            torch.special.entr(probs_CV).sum(dim=-1),  # 0 where p = 0
            probs_CV.square().sum(dim=-1),
        ],
        dim=1,
    )
