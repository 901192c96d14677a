"""Check that a student and a cache belong together before anything expensive happens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, ModelError
from pipeline.models.checkpoint import Checkpoint, vocabulary_rows
from pipeline.models.vocabulary import fingerprint_vocabulary, vocabulary_size
from pipeline.training.model_config import max_positions
from storage_schema.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class StudentFacts:
    """What must fit: the student's vocabulary and the longest sequence it can read."""

    vocabulary_fingerprint: str
    vocabulary_size: int
    vocabulary_rows: int
    max_positions: int | None


def read_student_facts(
    checkpoint: Checkpoint, tokenizer: "PreTrainedTokenizerBase", model_config: Any
) -> StudentFacts:
    """Return the facts from the tokenizer and configuration, without loading weights."""
    return StudentFacts(
        vocabulary_fingerprint=fingerprint_vocabulary(tokenizer),
        vocabulary_size=vocabulary_size(tokenizer),
        vocabulary_rows=vocabulary_rows(checkpoint),
        max_positions=max_positions(model_config),
    )


def check_batch_tokens(batch_tokens: int | None, longest_sequence: int) -> None:
    """Check that a pass of so many tokens can hold the longest sequence.

    Raises:
        ConfigError: it cannot.
    """
    if batch_tokens is not None and longest_sequence > batch_tokens:
        raise ConfigError(
            f"--batch-tokens {batch_tokens}: the longest sequence of the cache has "
            f"{longest_sequence} tokens and no pass could hold it; use at least {longest_sequence}"
        )


def check_fit(student: StudentFacts, plan: Plan, longest_sequence: int, top_k: int | None) -> None:
    """Check the student and the run's top_k against the cache.

    More vocabulary rows than tokens are padding (Qwen2.5 has 151,936 for 151,665) and fit.

    Raises:
        ModelError: something does not fit; every difference is listed with both values.
    """
    lines = _vocabulary_differences(student, plan.tokenizer)
    if top_k is not None and top_k > plan.k:
        lines.append(f"entries per row: --top-k asks for {top_k}, the cache stores {plan.k}")
    if student.max_positions is not None and longest_sequence > student.max_positions:
        lines.append(
            f"sequence length: the longest in the cache has {longest_sequence} tokens, the "
            f"student reads at most {student.max_positions}"
        )
    if lines:
        raise ModelError("the student does not fit the cache:\n  " + "\n  ".join(lines))


def _vocabulary_differences(student: StudentFacts, cached: dict[str, Any]) -> list[str]:
    lines = []
    if student.vocabulary_fingerprint != cached["vocabulary_fingerprint"]:
        lines.append(
            f"vocabulary: the cache was made with {cached['vocabulary_fingerprint'][:16]}… "
            f"({cached['vocabulary_size']} tokens), the student has "
            f"{student.vocabulary_fingerprint[:16]}… ({student.vocabulary_size} tokens); teacher "
            "and student must share one tokenizer"
        )
    if student.vocabulary_rows < cached["vocabulary_size"]:
        lines.append(
            f"vocabulary rows: the cache has {cached['vocabulary_size']} tokens, the student "
            f"predicts {student.vocabulary_rows}"
        )
    return lines


def adopt_chat_template(tokenizer: "PreTrainedTokenizerBase", plan: Plan) -> None:
    """Give the student's tokenizer the chat template its training prompts were worded with.

    It is saved with the student. With another one every later prompt would be worded otherwise
    than those it was trained on; a base model and its chat version share a vocabulary but often
    not the template. A change is printed.
    """
    template = plan.template.get("chat_template")
    if template is not None and tokenizer.chat_template != template:
        print("the student takes over the chat template of the cache; its own is another or none")
        tokenizer.chat_template = template
