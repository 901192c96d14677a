"""What one evaluation reads, found and checked before the first model is loaded.

Every checkpoint is located and fingerprinted, every tokenizer loaded and the dataset
tokenised under it (once for models that share a tokenizer), so that a wrong path or a
prompt too long for the last model fails in the first minute.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.data.records import Record
from pipeline.data.tokenization import TokenizedDataset, tokenize_dataset
from pipeline.errors import ConfigError, ModelError
from pipeline.evaluation.config import EvaluateStudentConfig, name_models
from pipeline.evaluation.scores import record_id
from pipeline.models.checkpoint import (
    Checkpoint,
    find_checkpoint,
    fingerprint_checkpoint,
    max_positions,
    vocabulary_rows,
)
from pipeline.models.loading import load_tokenizer
from pipeline.models.vocabulary import fingerprint_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class ModelInputs:
    """One model to evaluate: where it lies, its tokenizer, and the dataset as it reads it."""

    name: str
    checkpoint: Checkpoint
    fingerprint: str
    tokenizer: "PreTrainedTokenizerBase"
    dataset: TokenizedDataset
    stop_ids: list[int]

    @property
    def identity(self) -> dict[str, Any]:
        """What determines this model's scores, next to the settings of the whole file.

        The fingerprint of the token ids covers tokenizer and chat template entirely.
        """
        return {
            "fingerprint": self.fingerprint,
            "examples_fingerprint": self.dataset.fingerprint,
            "stop_token_ids": self.stop_ids,
        }


def find_inputs(config: EvaluateStudentConfig) -> list[ModelInputs]:
    """Return the inputs of every model, in the order given.

    Raises:
        ConfigError: a prompt and the longest prediction exceed a model's positions.
        DataError: the dataset cannot be read, or no document is left.
        ModelError: a model or tokenizer is not found, or they do not fit.
    """
    named = name_models(config.model)
    checkpoints = {name: find_checkpoint(path) for name, path in named.items()}
    datasets: dict[str, TokenizedDataset] = {}
    inputs = []
    for name, checkpoint in checkpoints.items():
        tokenizer = load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
        key = _tokenizer_key(tokenizer)
        if key not in datasets:
            datasets[key] = tokenize_dataset(config, tokenizer)
        _check_fit(name, checkpoint, datasets[key], config)
        inputs.append(
            ModelInputs(
                name=name,
                checkpoint=checkpoint,
                fingerprint=fingerprint_checkpoint(checkpoint),
                tokenizer=tokenizer,
                dataset=datasets[key],
                stop_ids=_stop_ids(tokenizer, datasets[key]),
            )
        )
    return inputs


def fingerprint_records(records: Iterable[Record]) -> str:
    """Return the SHA-256 (hex) over the texts of the records, in order, before any limit.

    It identifies a dataset whatever the tokenizer; the length limits stand beside it.
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(bytes.fromhex(record_id(record)))
    return digest.hexdigest()


def _tokenizer_key(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Say what decides a tokenizer's ids: vocabulary, merges, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    body = fingerprint_vocabulary(tokenizer) if backend is None else backend.to_str()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    text = json.dumps([body, tokenizer.chat_template, special], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stop_ids(tokenizer: "PreTrainedTokenizerBase", dataset: TokenizedDataset) -> list[int]:
    """Return the gold responses' end token, and the tokenizer's own end of sequence if another."""
    stop_ids = {dataset.end_token_id}
    if tokenizer.eos_token_id is not None:
        stop_ids.add(int(tokenizer.eos_token_id))
    return sorted(stop_ids)


def _check_fit(
    name: str, checkpoint: Checkpoint, dataset: TokenizedDataset, config: EvaluateStudentConfig
) -> None:
    largest = max(int(example.input_ids.max()) for example in dataset.examples)
    rows = vocabulary_rows(checkpoint)
    if largest >= rows:
        raise ModelError(
            f"model {name!r} has {rows} vocabulary rows, its tokenizer gives token id {largest}: "
            "tokenizer and model do not belong together"
        )
    positions = max_positions(checkpoint)
    longest_prompt = max(example.response_start for example in dataset.examples)
    longest = max(len(example.input_ids) for example in dataset.examples)
    needed = max(longest, longest_prompt + config.max_new_tokens)
    if positions is not None and needed > positions:
        raise ConfigError(
            f"model {name!r} has {positions} positions, but {needed} are needed (longest prompt "
            f"{longest_prompt} + --max-new-tokens {config.max_new_tokens}; longest prompt and gold "
            f"response {longest}): lower --max-prompt-tokens, --max-sequence-tokens or "
            "--max-new-tokens"
        )
