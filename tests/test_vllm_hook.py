"""The worker hook on a real model: its rows are those of the public route and of transformers."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.tokenization import Example
from pipeline.models.checkpoint import find_checkpoint
from pipeline.teacher.engine import WORKER_HOOK, EngineError, Scores
from pipeline.teacher.row_spec import RowSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

K, VOCABULARY, BLOCK = 16, 49152, 32
# First token in the text, length, first response token.
CUTS = ((7, 150, 3), (90, 2, 1), (33, 65, 64), (50, 64, 30), (200, 120, 90))
SPEC = RowSpec(K, VOCABULARY, entropy=True)
TEXT = (
    "The station was built in 1874 and rebuilt twice. Trains leave every hour for the coast, where "
    "fishing boats and a small museum are what most visitors come to see. In winter the line "
    "closes at noon; the mayor says that nobody complained so far, although 312 signed a petition. "
)


@pytest.fixture(scope="module")
def stream(demo_model: Path) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(demo_model)(TEXT * 6).input_ids)


@pytest.fixture(scope="module")
def examples(stream: list[int]) -> list[Example]:
    """Long and short ones; three responses to a prompt that ends with a block of the cache."""
    prompt = stream[: 2 * BLOCK]
    rows = [(prompt + stream[at : at + 30], 2 * BLOCK) for at in (100, 140, 180)]
    # The same response for longer than a block, then another end.
    rows.append((prompt + stream[100:140], 2 * BLOCK))
    rows += [
        (stream[at : at + total], start)
        for at, total, start in (
            (7, 150, 3),
            (90, 2, 1),
            (33, 65, 64),
            (50, 64, 30),
            (200, 120, 90),
        )
    ]
    return [Example(np.array(ids, np.int32), start) for ids, start in rows]


@pytest.fixture(scope="module")
def engine(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from pipeline.teacher.vllm_engine import VllmEngine

    engine = VllmEngine(
        find_checkpoint(str(demo_model)),
        spec=SPEC,
        route=WORKER_HOOK,
        dtype="float32",
        longest=160,
        merged_path=tmp_path_factory.mktemp("merged") / "model",
        tensor_parallel_size=1,
        gpu_memory_utilization=0.5,
        trust_remote_code=False,
        # Chunks of every size, several requests a step; the public route in the same engine.
        vllm_options={
            "max_num_batched_tokens": 64,
            "max_num_seqs": 4,
            "max_logprobs": K,
            "block_size": BLOCK,
            "enable_prefix_caching": True,
        },
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def expected(demo_model: Path, examples: list[Example]) -> list[Scores]:
    return list(transformers_engine(demo_model, SPEC).score(examples))


def transformers_engine(model: Path, spec: RowSpec) -> Any:
    from pipeline.teacher.transformers_engine import TransformersEngine

    return TransformersEngine(
        find_checkpoint(str(model)),
        spec=spec,
        dtype="float32",
        batch_tokens=1024,
        trust_remote_code=False,
    )


def worst_gap(one: Scores, two: Scores, shift: int = 0) -> float:
    """Largest difference of labels, common entries, and entries to the other's cut."""
    num = len(one.label_logprobs_N) - shift
    gap = float(abs(one.label_logprobs_N[:num] - two.label_logprobs_N[shift:]).max())
    for row in range(num):
        mine = dict(zip(one.token_ids_NK[row], one.logprobs_NK[row], strict=True))
        other = dict(zip(two.token_ids_NK[row + shift], two.logprobs_NK[row + shift], strict=True))
        for token in mine.keys() | other.keys():
            x = mine.get(token, min(mine.values()))
            gap = max(gap, float(abs(x - other.get(token, min(other.values())))))
    return gap


def test_hook_rows_under_tiny_chunks_and_a_prefix_cache_are_those_of_transformers(
    engine: Any, examples: list[Example], expected: list[Scores]
) -> None:
    engine._llm.reset_prefix_cache()
    # A sibling whose first row, and one whose first rows, lie in cached blocks.
    list(engine.score(examples[:1]))
    before = engine.route.num_requeued
    found = list(engine.score(examples[1:]))
    assert engine.route.num_requeued - before >= 3
    for mine, truth in zip(found, expected[1:], strict=True):
        assert worst_gap(mine, truth) < 1e-3
        np.testing.assert_allclose(mine.entropies_N, truth.entropies_N, atol=1e-3)
        np.testing.assert_allclose(mine.log_normalizers_N, truth.log_normalizers_N, atol=1e-3)
    assert worst_gap(found[3], expected[4], shift=1) > 1.0


def test_another_order_and_an_entirely_cached_sequence_change_nothing(
    engine: Any, examples: list[Example], expected: list[Scores]
) -> None:
    order = np.random.default_rng(0).permutation(len(examples))
    before = engine.route.num_requeued
    found = list(engine.score([examples[i] for i in order]))
    assert engine.route.num_requeued > before  # everything was computed before
    for mine, i in zip(found, order, strict=True):
        assert worst_gap(mine, expected[i]) < 1e-3


def test_the_public_route_gives_the_same_rows(
    engine: Any, examples: list[Example], expected: list[Scores]
) -> None:
    from pipeline.teacher.vllm_public import PublicRoute

    hook, engine.route = engine.route, PublicRoute(RowSpec(K, VOCABULARY))
    try:
        for mine, truth in zip(engine.score(examples), expected, strict=True):
            assert worst_gap(mine, truth) < 1e-3
            assert mine.entropies_N is None
    finally:
        engine.route = hook


def test_memory_that_runs_out_in_the_head_is_said_and_survived(
    engine: Any,
    examples: list[Example],
    expected: list[Scores],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pipeline.teacher.worker_extension import RowCollector

    call, raised = RowCollector._call_head, []

    def call_head(self: Any, hidden: torch.Tensor, index: torch.Tensor) -> Any:
        if len(index) > 10:
            raised.append(len(index))
            raise torch.OutOfMemoryError("no room")
        return call(self, hidden, index)

    monkeypatch.setattr(RowCollector, "_call_head", call_head)
    for mine, truth in zip(engine.score(examples[4:]), expected[4:], strict=True):
        assert worst_gap(mine, truth) < 1e-3
    assert engine.route.num_backoffs == len(raised) > 0
    assert "memory ran out in the vocabulary head; going on with" in capsys.readouterr().out


def test_an_error_inside_the_hook_is_named_at_once(
    engine: Any, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.teacher.worker_extension import RowCollector

    def score(self: Any, *arguments: Any) -> None:
        raise RuntimeError("the hook is broken")

    monkeypatch.setattr(RowCollector, "score", score)
    with pytest.raises(EngineError, match=r"while scoring: .*the hook is broken.*--vllm-route"):
        list(engine.score(examples))


def run_child(tmp_path: Path, seconds: int = 500, **settings: Any) -> tuple[int, str, Path]:
    """Run hook_child.py; a hang fails by the time limit."""
    told, out = tmp_path / "settings.json", tmp_path / "scores.npz"
    told.write_text(json.dumps(settings))
    child = [sys.executable, str(Path(__file__).parent / "hook_child.py"), str(told), str(out)]
    result = subprocess.run(child, capture_output=True, text=True, timeout=seconds)
    return result.returncode, result.stdout + result.stderr, out


def check_child(model: Path, rows: Any, spec: dict[str, Any], runner: str, found: Any) -> None:
    """Compare what a child scored with transformers."""
    assert found["runners"].tolist() == [runner]
    plain = transformers_engine(model, RowSpec(**spec))
    wanted = plain.score([Example(np.array(ids, np.int32), start) for ids, start in rows])
    for i, truth in enumerate(wanted):
        names = ("token_ids_NK", "logprobs_NK", "label_logprobs_N")
        assert worst_gap(Scores(*(found[f"{i}.{name}"] for name in names)), truth) < 1e-3
        np.testing.assert_allclose(found[f"{i}.entropies_N"], truth.entropies_N, atol=1e-3)


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_rows_of_both_runners(small_model: Path, tmp_path: Path, runner: str) -> None:
    """Small enough for interpreted kernels: chunks of 16 tokens, three requests at a time."""
    rng = np.random.default_rng(0)
    rows = [(rng.integers(5, 300, total).tolist(), start) for total, start in ((30, 7), (21, 1))]
    rows.append((rng.integers(5, 300, 19).tolist(), 18))
    spec = {"k": 8, "vocabulary_size": 300, "entropy": True}  # padding rows behind them
    options = {"max_num_batched_tokens": 16, "max_num_seqs": 3}
    settings = {"model": str(small_model), "spec": spec, "examples": rows, "options": options}
    code, output, path = run_child(tmp_path, v2=runner == "v2", **settings)
    assert code == 0, output[-3000:]
    check_child(small_model, rows, spec, runner, np.load(path))


@pytest.mark.parametrize(
    ("runner", "settings"),
    [
        ("v2", {"v2": True, "options": {"max_num_batched_tokens": 32, "max_num_seqs": 4}}),
        ("v1", {"parts": 3, "multiprocess": True, "options": {"max_num_batched_tokens": 64}}),
    ],
    ids=["v2-runner", "three-tensor-parallel-parts"],
)
def test_rows_of_the_other_runner_and_of_a_divided_vocabulary(
    demo_model: Path, stream: list[int], tmp_path: Path, runner: str, settings: dict[str, Any]
) -> None:
    rows = [(stream[at : at + 24 + at % 7], 5 + at % 3) for at in (0, 40, 81, 122)]
    spec = {"k": 8, "vocabulary_size": VOCABULARY, "entropy": True}
    code, output, path = run_child(
        tmp_path, model=str(demo_model), spec=spec, examples=rows, **settings
    )
    assert code == 0, output[-3000:]
    check_child(demo_model, rows, spec, runner, np.load(path))


@pytest.mark.parametrize("moment", ["while it scores", "before a call"])
def test_a_killed_engine_process_is_an_error_at_once(
    demo_model: Path, stream: list[int], tmp_path: Path, moment: str
) -> None:
    num = 600 if moment == "while it scores" else 3
    rng = np.random.default_rng(0)
    rows = [(rng.permutation(stream)[:60].tolist(), 30) for _ in range(num)]
    code, output, _ = run_child(
        tmp_path,
        model=str(demo_model),
        spec={"k": 8, "vocabulary_size": VOCABULARY},
        examples=rows,
        multiprocess=True,
        options={"max_num_seqs": 8},
        kill=moment,
    )
    assert code == 3, output[-3000:]
    assert "EngineError: vLLM" in output


def test_padding_rows_and_generation_settings_of_a_checkpoint_stay_out_of_the_rows(
    demo_model: Path, stream: list[int], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    weight = model.get_input_embeddings().weight
    likely = weight[stream[5]].detach().clone()
    model.resize_token_embeddings(VOCABULARY + 64, mean_resizing=False)
    with torch.no_grad():  # padding rows that would be the most probable entries of many rows
        model.get_input_embeddings().weight[VOCABULARY:] = likely * 1.5
    model.generation_config = GenerationConfig(
        temperature=0.3, top_k=5, top_p=0.5, repetition_penalty=1.7, do_sample=True
    )
    model.save_pretrained(tmp_path / "padded")
    for file in demo_model.glob("tokenizer*"):
        (tmp_path / "padded" / file.name).write_bytes(file.read_bytes())
    rows = [(stream[at : at + 50], 6) for at in (0, 60, 120)]
    spec = {"k": K, "vocabulary_size": VOCABULARY, "entropy": True}
    code, output, path = run_child(
        tmp_path, model=str(tmp_path / "padded"), spec=spec, examples=rows
    )
    assert code == 0, output[-3000:]
    found = np.load(path)
    plain = transformers_engine(tmp_path / "padded", RowSpec(**spec))
    wanted = list(plain.score([Example(np.array(ids, np.int32), start) for ids, start in rows]))
    padding_mass = []
    for i, truth in enumerate(wanted):
        names = ("token_ids_NK", "logprobs_NK", "label_logprobs_N")
        mine = Scores(*(found[f"{i}.{name}"] for name in names))
        assert mine.token_ids_NK.max() < VOCABULARY
        assert worst_gap(mine, truth) < 1e-3
        padding_mass.append(1 - np.exp(mine.logprobs_NK).sum(1))
    assert np.concatenate(padding_mass).max() > 0.5, "the padding rows have no probability here"
