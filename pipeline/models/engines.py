"""Which engine runs a model: vLLM or transformers. Standard library only."""

import importlib.util

from pipeline.errors import MissingPackageError

ENGINES = ("auto", "vllm", "transformers")


def pick_engine(name: str) -> tuple[str, str]:
    """Return the engine to use for one of ENGINES, and the reason in words.

    Raises:
        MissingPackageError: vLLM is asked for and not installed.
    """
    has_vllm = importlib.util.find_spec("vllm") is not None
    if name == "auto":
        if has_vllm:
            return "vllm", "vLLM is installed"
        return "transformers", "vLLM is not installed"
    if name == "vllm" and not has_vllm:
        raise MissingPackageError(
            'engine vllm: vLLM is not installed; pip install "smoothkd[teacher]" on a GPU node, '
            "or use --engine transformers"
        )
    return name, "asked for"
