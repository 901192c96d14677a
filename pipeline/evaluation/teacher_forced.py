"""One forward pass over gold prompt and response: what the model says of each gold token.

Shape suffixes: B batch, T positions, R kept rows (the last ones of a batch), C rows of one
chunk, V vocabulary, M bins, G temperatures. Row r of
the logits is the distribution FOR the token after position r.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.data.tokenization import Example
from pipeline.errors import ModelError
from pipeline.evaluation.bootstrap import Floats
from pipeline.evaluation.calibration import TokenScores, equal_width_bins
from pipeline.evaluation.temperature import NUM_NODES, node_temperatures
from pipeline.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# fp32 copies of at most this many logits are alive at once (256 MiB each).
CHUNK_LOGITS = 2**26


@dataclass(frozen=True, slots=True, eq=False)
class GoldScores:
    """What a model says of one example's gold tokens.

    Attributes:
        tokens: the numbers of each token.
        full_bin_errors_M: float64 [M], for the Full-ECE: over tokens and vocabulary entries whose
            probability falls into a bin, (entries that are the label) - (sum of probabilities).
        nll_G: float64 [G], summed NLL in nats at each of `node_temperatures`; empty where no
            temperature was to be fitted.
    """

    tokens: TokenScores
    full_bin_errors_M: Floats
    nll_G: Floats


def score_gold_tokens(
    model: "PreTrainedModel",
    examples: Sequence[Example],
    *,
    batch_size: int,
    label: str,
    num_bins: int,
    temperatures: Sequence[float] | None = None,
) -> list[GoldScores]:
    """Return the scores of each example's response tokens, in the order of `examples`.

    The softmax is taken in float32 over all the model's logits, whatever its number type.

    Args:
        model: in evaluation mode, on the device to use; an adapter may be around it.
        examples: prompt and gold response; all response tokens count, the end token too.
        batch_size: examples in one forward pass.
        label: what the progress display says is read.
        num_bins: bins of the Full-ECE.
        temperatures: what to divide each example's logits by; None divides by 1 and gives the
            NLL at `node_temperatures`, from which one can be fitted.

    Raises:
        ModelError: a gold token's log-probability is not finite.
    """
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].input_ids))
    scores: dict[int, GoldScores] = {}
    accepted = _forward_arguments(model)
    with (
        torch.inference_mode(),
        Progress(label, len(examples), "documents") as progress,
    ):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = _response_logits(model, [examples[index] for index in batch], accepted)
            for index, logits_NV in zip(batch, rows, strict=True):
                temperature = None if temperatures is None else temperatures[index]
                scores[index] = _score_rows(logits_NV, examples[index], num_bins, temperature)
            progress.advance(len(batch))
    return [scores[index] for index in range(len(examples))]


def _forward_arguments(model: "PreTrainedModel") -> set[str]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(inner.forward).parameters)


def _response_logits(
    model: "PreTrainedModel", examples: Sequence[Example], accepted: set[str]
) -> list[torch.Tensor]:
    """Return each example's logits [N, V]; padded on the left, all of them lie at the end."""
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
        logits_BRV[row, num_rows - 1 - count : num_rows - 1] for row, count in enumerate(counts)
    ]


def _score_rows(
    logits_NV: torch.Tensor, example: Example, num_bins: int, temperature: float | None
) -> GoldScores:
    labels_N = torch.as_tensor(example.input_ids[example.response_start :], dtype=torch.long)
    labels_N = labels_N.to(logits_NV.device)
    chunk = max(1, CHUNK_LOGITS // logits_NV.shape[1])
    columns, probs = [], []
    nll_G = np.zeros(NUM_NODES if temperature is None else 0)
    for start in range(0, len(labels_N), chunk):
        logits_CV, labels_C = logits_NV[start : start + chunk].float(), labels_N[start:][:chunk]
        if temperature is None:
            nll_G += nll_at_nodes(logits_CV, labels_C)
        else:
            logits_CV = logits_CV / temperature
        of_tokens, of_entries = _score_chunk(logits_CV, labels_C, num_bins)
        columns.append(of_tokens)
        probs.append(of_entries)
    table, entries = torch.cat(columns).cpu().numpy().T, torch.cat(probs).cpu().numpy()
    label_logprobs, confidences, correct, entropies, squares = table
    if not np.isfinite(table).all():
        raise ModelError(
            f"the model gives a gold token of example {example.example_id.hex()[:16]} a "
            f"log-probability of {label_logprobs.min()}: expected finite numbers; "
            "try --dtype float32"
        )
    tokens = TokenScores(label_logprobs, confidences, correct.astype(bool), entropies, squares)
    return GoldScores(tokens, full_bin_errors(entries[:, 1:], entries[:, 0], num_bins), nll_G)


def nll_at_nodes(logits_CV: torch.Tensor, labels_C: torch.Tensor) -> Floats:
    """Return float64 [G], the summed NLL of the labels under softmax(logits / T) at each node."""
    label_logits_C = logits_CV.gather(1, labels_C[:, None])[:, 0]
    sums = [
        ((logits_CV / t).logsumexp(dim=1) - label_logits_C / t).double().sum()
        for t in node_temperatures().tolist()
    ]
    return np.asarray(torch.stack(sums).cpu().numpy())


def _score_chunk(
    logits_CV: torch.Tensor, labels_C: torch.Tensor, num_bins: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [C, 5] and [C, 1 + M], both float32.

    First: label log-probability, confidence, correct, entropy, sum of p^2. Second: the label's
    probability and the M largest; no other entry of a row reaches 1/M, so they lie in bin 0.
    """
    logprobs_CV = logits_CV.log_softmax(dim=-1)
    probs_CV = logprobs_CV.exp()
    # From the logits: two different ones can round to one probability.
    argmax_C = logits_CV.argmax(dim=-1)
    columns = torch.stack(
        [
            logprobs_CV.gather(1, labels_C[:, None])[:, 0],
            probs_CV.gather(1, argmax_C[:, None])[:, 0],
            (argmax_C == labels_C).float(),
            torch.special.entr(probs_CV).sum(dim=-1),  # 0 where p = 0
            probs_CV.square().sum(dim=-1),
        ],
        dim=1,
    )
    largest_CM = probs_CV.topk(min(num_bins, probs_CV.shape[1]), dim=1).values
    return columns, torch.cat([probs_CV.gather(1, labels_C[:, None]), largest_CM], dim=1)


def full_bin_errors(
    largest_CM: np.ndarray[Any, Any], label_probs_C: np.ndarray[Any, Any], num_bins: int
) -> Floats:
    """Return [M]: labels whose probability lies in a bin - sum of all probabilities in it.

    Args:
        largest_CM: each row's M largest probabilities, or all; each row adds up to at most 1.
        label_probs_C: the probability of each label.
        num_bins: M.
    """
    largest = largest_CM.astype(np.float64).ravel()
    masses_M = np.bincount(equal_width_bins(largest, num_bins), largest, num_bins)
    masses_M[0] = len(label_probs_C) - masses_M[1:].sum()
    hits_M = np.bincount(equal_width_bins(label_probs_C, num_bins), minlength=num_bins)
    return np.asarray(hits_M - masses_M)
