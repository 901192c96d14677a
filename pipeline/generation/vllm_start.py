"""Start vLLM's offline engine, for whoever runs one."""

import logging
import os
import warnings
from typing import Any

from pipeline.errors import EngineError


def start_vllm(**options: Any) -> Any:
    """Return vLLM's offline engine.

    Args:
        options: of vllm.LLM, `model` among them.

    Raises:
        EngineError: vLLM does not start.
    """
    from vllm import LLM

    try:
        return LLM(disable_log_stats=True, use_tqdm_on_load=False, seed=0, **options)
    except Exception as error:  # whatever vLLM, its workers and the driver raise
        raise EngineError(
            f"vLLM could not start with {options['model']}: {type(error).__name__}: {error}; if "
            "memory is short, change --gpu-memory-utilization; if vLLM does not know the model, "
            "use --engine transformers with another --output"
        ) from error


def set_vllm_environment(on_cpu: bool) -> None:
    """Set what vLLM reads from the environment when it is first imported; what is set stays."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Speaks while vLLM is imported, before that level is read; the CPU build has no Triton.
    logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)
    if on_cpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
