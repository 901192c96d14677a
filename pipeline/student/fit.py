"""Check that a student and a cache belong together before anything expensive happens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, ModelError
from pipeline.models.checkpoint import Checkpoint, vocabulary_rows
from pipeline.models.loading import load_tokenizer
from pipeline.models.vocabulary import fingerprint_vocabulary, vocabulary_size
from pipeline.student.config import TrainStudentConfig
from pipeline.training.lora import check_trainable
from pipeline.training.model_config import load_model_config, max_positions
from storage_schema.plan import Plan
from storage_schema.reader import LogitCache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class StudentFacts:
    """What must fit: the student's vocabulary and the longest sequence it can read."""

    vocabulary_fingerprint: str
    vocabulary_size: int
    vocabulary_rows: int
    max_positions: int | None


def check_run(
    config: TrainStudentConfig, cache: LogitCache, checkpoint: Checkpoint
) -> tuple["PreTrainedTokenizerBase", Any]:
    """Make every check of a run that needs no weights; return the student's tokenizer and config.

    Raises:
        ModelError: the student is an adapter, or does not fit the cache.
        ConfigError: a pass of batch_tokens cannot hold the longest sequence, or a setting of the
            KL does not go with the cache's sampled support.
    """
    config.check_support(cache.plan.support_kind)
    check_trainable(checkpoint)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
    model_config = load_model_config(checkpoint, trust_remote_code=config.trust_remote_code)
    longest = int(cache.sequence_lengths.max())
    check_fit(
        read_student_facts(checkpoint, tokenizer, model_config), cache.plan, longest, config.top_k
    )
    check_batch_tokens(config.batch_tokens, longest)
    return tokenizer, model_config


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
