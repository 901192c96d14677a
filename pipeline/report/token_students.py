"""What students say of cached examples: top tokens, gold probability and entropy at each position.

One forward pass an example and student, float32 softmax over all logits. This is the only part of
the report that needs models; its result is stored (pipeline.report.token_view).

N response tokens shown, V vocabulary, T positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ModelError
from pipeline.models.checkpoint import Checkpoint, fingerprint_checkpoint
from pipeline.models.loading import load_model, load_tokenizer, pick_device
from pipeline.models.vocabulary import fingerprint_vocabulary
from storage_schema import Response
from storage_schema.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOP_TOKENS = 5

# Of one position: ((token id, probability), ...), probability of the gold token, entropy in nats.
Position = tuple[list[tuple[int, float]], float, float]


@dataclass(frozen=True, slots=True)
class Student:
    """A model of the token view: its name, its label, and where it lies."""

    name: str
    label: str
    checkpoint: Checkpoint
    fingerprint: str


def check_student(student: Student) -> None:
    """Check that the weights are those that were evaluated.

    Raises:
        ModelError: they are not, so the token view would show another model.
    """
    there = fingerprint_checkpoint(student.checkpoint)
    if there != student.fingerprint:
        raise ModelError(
            f"{student.checkpoint.name} is not the model that was evaluated as {student.name}: its "
            f"weights are {there[:16]}…, the scores file has {student.fingerprint[:16]}…; evaluate "
            "it again, or give --token-examples 0"
        )


def load_cache_tokenizer(student: Student, plan: Plan) -> "PreTrainedTokenizerBase":
    """Return the student's tokenizer.

    Raises:
        ModelError: it does not load, or is not the one the cache was made with.
    """
    tokenizer = load_tokenizer(student.checkpoint)
    found = fingerprint_vocabulary(tokenizer)
    wanted = plan.tokenizer["vocabulary_fingerprint"]
    if found != wanted:
        raise ModelError(
            f"{student.checkpoint.name} has the vocabulary {found[:16]}…, the cache was made with "
            f"{wanted[:16]}…: give the cache that the students were trained from"
        )
    return tokenizer


def score_student(
    student: Student, responses: Sequence[Response], num_shown: int
) -> list[list[Position]]:
    """Return the positions of each response, at most `num_shown` of each.

    Raises:
        ModelError: the model does not load.
    """
    import torch

    model = load_model(student.checkpoint).to(pick_device())
    found = []
    with torch.inference_mode():
        for response in responses:
            start, length = response.response_start, len(response.input_ids)
            stop = min(length, start + num_shown)
            ids_T = torch.from_numpy(response.input_ids[:stop].astype("int64")).to(model.device)
            # Row t predicts token t + 1, so the first response token's row is start - 1.
            logits_NV = model(input_ids=ids_T[None]).logits[0, start - 1 : stop - 1]
            logprobs_NV = logits_NV.float().log_softmax(dim=-1)
            gold_N = logprobs_NV.gather(1, ids_T[start:, None])[:, 0].exp().tolist()
            entropies_N = (-logprobs_NV.exp() * logprobs_NV.clamp_min(-1e4)).sum(dim=1).tolist()
            top = logprobs_NV.topk(min(TOP_TOKENS, logprobs_NV.shape[1]), dim=1)
            rows = zip(top.indices.tolist(), top.values.exp().tolist(), strict=True)
            found.append(
                [
                    (list(zip(ids, probs, strict=True)), gold, entropy)
                    for (ids, probs), gold, entropy in zip(rows, gold_N, entropies_N, strict=True)
                ]
            )
    return found
