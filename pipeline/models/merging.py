"""An adapter and its model as one full checkpoint, for as long as it is needed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import load_model, load_tokenizer


@contextmanager
def merged_copy(
    checkpoint: Checkpoint, path: Path, *, dtype: str, trust_remote_code: bool
) -> Iterator[Path]:
    """Give `path` with the model, its adapter's weights added, and the tokenizer; removed after.

    Raises:
        ModelError: the weights do not load.
    """
    try:
        model = load_model(
            checkpoint, dtype=dtype, trust_remote_code=trust_remote_code, merge_adapter=True
        )
        model.save_pretrained(path)
        del model  # the engine needs the memory
        load_tokenizer(checkpoint, trust_remote_code=trust_remote_code).save_pretrained(path)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
