"""Find a model on disk or on the hub, and say exactly which bytes it is.

A checkpoint is a directory with a full model, or a peft adapter that names its base model.
Hub names are downloaded once (safetensors only); from then on everything is a local path.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError

ADAPTER_CONFIG = "adapter_config.json"
# Never *.bin or *.pt: those are pickles.
WEIGHT_FILES = "*.safetensors"
# The most that the safetensors library reads.
MAX_HEADER_BYTES = 100_000_000
HUB_FILES = ["*.json", WEIGHT_FILES, "*.model", "*.txt", "*.jinja", "*.py"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on the local disk: the directory of the full weights, and an adapter's or None."""

    name: str
    model_path: Path
    adapter_path: Path | None


def find_checkpoint(name: str, revision: str | None = None, *, weights: bool = True) -> Checkpoint:
    """Return where the model or adapter `name` lies, downloading a hub name first.

    Args:
        name: a directory, or a hub name such as "org/model".
        revision: branch, tag or commit on the hub; not for directories.
        weights: whether they are downloaded too; configuration and tokenizer always are.

    Raises:
        ModelError: nothing is found, an adapter does not name its base model, or a file of weights
            is not as long as its header says.
    """
    path = _local_directory(name, revision, weights)
    if not (path / ADAPTER_CONFIG).exists():
        if not (path / "config.json").exists():
            raise ModelError(
                f"{path} is no model: expected config.json (a full model) or {ADAPTER_CONFIG} "
                "(a peft adapter) in it"
            )
        return Checkpoint(name, path, None)
    config = _read_json(path / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{path / ADAPTER_CONFIG} does not name its base_model_name_or_path")
    try:
        base_revision = None if Path(str(base)).is_dir() else config.get("revision")
        return Checkpoint(name, _local_directory(str(base), base_revision, weights), path)
    except ModelError as error:
        raise ModelError(f"base model of the adapter {path}: {error}") from error


def _local_directory(name: str, revision: str | None, weights: bool) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ModelError(f"{path} is a directory: a revision ({revision!r}) is for hub names")
        for file in sorted(path.glob(WEIGHT_FILES)) if weights else ():
            _check_size(file)
        return path.resolve()
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise ModelError(f"no model at {name!r}: neither a directory nor a hub name (org/model)")
    from huggingface_hub import snapshot_download

    wanted = [pattern for pattern in HUB_FILES if weights or pattern != WEIGHT_FILES]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client raises many unrelated types
        raise ModelError(
            f"no model {name!r}: no directory of that name here, and the hub answered "
            f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def _check_size(path: Path) -> None:
    """Compare the size of a safetensors file with what its header says; no weight is read.

    Raises:
        ModelError: it has another size, as after half a copy, or its header is damaged.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MAX_HEADER_BYTES else b""
    whole = len(header) == length
    try:
        expected = 8 + length + (_last_offset(header) if whole else 0)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ModelError(f"{path} has a damaged header ({error!r}): copy it again") from error
    if size != expected:
        least = "" if whole else "at least "
        raise ModelError(
            f"{path} has {size} bytes, expected {least}{expected} by its header: copy it again"
        )


def _last_offset(header: bytes) -> int:
    """Return how many bytes of weights follow a safetensors header."""
    parts = [about for name, about in json.loads(header).items() if name != "__metadata__"]
    return max((int(about["data_offsets"][1]) for about in parts), default=0)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error


def read_model_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the model's config.json."""
    return _read_json(checkpoint.model_path / "config.json")


def max_positions(checkpoint: Checkpoint) -> int | None:
    """Return the longest sequence in tokens the model reads, or None when it sets no limit."""
    config = read_model_config(checkpoint)
    inner = config.get("text_config", {})
    limit = config.get("max_position_embeddings", inner.get("max_position_embeddings"))
    return limit if isinstance(limit, int) else None


def describe_place(name: str) -> str:
    """Return a model's or dataset's name for a record: of a path only its last component.

    A folder that was moved keeps its name in the plan; its content has a fingerprint.
    """
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def vocabulary_rows(checkpoint: Checkpoint) -> int:
    """Return how many logits the model has per position, padding rows included.

    Raises:
        ModelError: config.json names no vocab_size.
    """
    config = read_model_config(checkpoint)
    size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if not isinstance(size, int):
        raise ModelError(f"{checkpoint.model_path / 'config.json'} has no vocab_size")
    return size


def fingerprint_checkpoint(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 (hex) of the model's weights and configuration, adapter included.

    It does not depend on where the directory lies. Reads every weight file once, about a
    second per gigabyte, which also warms the page cache for the load that follows.
    """
    digest = hashlib.sha256()
    for directory in (checkpoint.model_path, checkpoint.adapter_path):
        if directory is None:
            continue
        files = [directory / "config.json", directory / ADAPTER_CONFIG]
        files = [file for file in files if file.exists()] + sorted(directory.glob("*.safetensors"))
        files += sorted(directory.glob("*.py"))  # model code, for those who trust it
        if not any(file.suffix == ".safetensors" for file in files):
            raise ModelError(
                f"{directory} holds no *.safetensors: other weight formats are refused"
            )
        for file in files:
            digest.update(f"{file.name}\0{_digest_file(file)}\0".encode())
    return digest.hexdigest()


def fingerprint_shape(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 (hex) of the model's configuration: what random weights are made from."""
    return _digest_file(checkpoint.model_path / "config.json")


def _digest_file(path: Path) -> str:
    if path.name == ADAPTER_CONFIG:
        config = _read_json(path)
        config.pop("base_model_name_or_path", None)  # a path; the base is digested itself
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
