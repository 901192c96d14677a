"""The order in which a student reads its cache: one for all alphas, resumable, each row once."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from cache_factory import make_cache, random_responses
from safetensors.torch import load_file
from test_student_train import Killed, kill_in_step, make_config
from torch.utils.data import DataLoader

from pipeline.models.checkpoint import find_checkpoint
from pipeline.models.loading import load_tokenizer
from pipeline.models.vocabulary import fingerprint_vocabulary, vocabulary_size
from pipeline.student.batches import collate_teacher_rows
from pipeline.student.train import run
from storage_schema import LogitCache, open_cache, reader
from storage_schema.shard import read_row_group

NUM_EXAMPLES = 24


@pytest.fixture(scope="module")
def cache(tiny_model, tmp_path_factory) -> Path:
    """Eight shards of one row group of three responses."""
    tokenizer = load_tokenizer(find_checkpoint(str(tiny_model)))
    size = vocabulary_size(tokenizer)
    return make_cache(
        tmp_path_factory.mktemp("cache") / "cache",
        random_responses(NUM_EXAMPLES, vocabulary_size=size, k=6),
        vocabulary_size=size,
        vocabulary_fingerprint=fingerprint_vocabulary(tokenizer),
        k=6,
        examples_per_shard=3,
    )


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two row groups are shuffled together and kept."""
    monkeypatch.setattr(reader, "KEEP_BYTES", 1)
    monkeypatch.setattr(reader, "MIN_KEPT_GROUPS", 2)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The examples read, in order."""
    found: list[int] = []
    original = LogitCache.__getitem__

    def read(self, index):
        found.append(index)
        return original(self, index)

    monkeypatch.setattr(LogitCache, "__getitem__", read)
    return found


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_every_alpha_reads_the_order_of_the_seed(tiny_model, cache, tmp_path, reads, alpha):
    run(make_config(tiny_model, cache, tmp_path / "s", alpha=alpha, max_steps=12, seed=3))
    order = open_cache(cache).order(seed=3)
    assert order.window_groups == 2
    assert reads == [*order.indices(0), *order.indices(1)]
    assert list(order.indices(0)) != list(order.indices(1))


@pytest.mark.usefixtures("small_windows")
def test_training_decodes_each_row_group_once_an_epoch(tiny_model, cache, tmp_path, monkeypatch):
    counts = Counter()

    def count(file, group, where, schema, **limits):
        counts[where.name] += 1
        return read_row_group(file, group, where, schema, **limits)

    monkeypatch.setattr(reader, "read_row_group", count)
    run(make_config(tiny_model, cache, tmp_path / "student", max_steps=6))
    assert set(counts.values()) == {1}
    assert len(counts) == 8


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("step", [6, *(pytest.param(s, marks=pytest.mark.slow) for s in (2, 8))])
def test_resumed_run_reads_what_is_left_and_nothing_else(
    tiny_model, cache, tmp_path, monkeypatch, reads, step
):
    """Killed in the first epoch, at its end, and in the second one: the weights are the same."""
    options = {"max_steps": 12, "save_every_steps": step, "learning_rate": 1e-2}
    whole = run(make_config(tiny_model, cache, tmp_path / "whole", **options))
    expected = list(reads)
    config = make_config(tiny_model, cache, tmp_path / "killed", **options)
    with monkeypatch.context() as patch:
        kill_in_step(patch, step + 1)
        with pytest.raises(Killed):
            run(config)
    reads.clear()
    resumed = run(config)
    assert resumed["resumed_from_step"] == step
    assert reads == expected[4 * step :]
    assert resumed["history"] == whole["history"]
    weights = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    for key, value in load_file(tmp_path / "killed" / "adapter_model.safetensors").items():
        assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_loader_return_the_same_batches(cache, method):
    loaded = open_cache(cache)
    _ = loaded[0]  # an open file
    order = list(loaded.order(seed=1).indices(2))
    options = {"batch_size": 5, "sampler": order, "collate_fn": collate_teacher_rows}
    alone = DataLoader(loaded, **options)
    workers = DataLoader(loaded, num_workers=2, multiprocessing_context=method, **options)
    for one, two in zip(alone, workers, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(two[name])), name


def test_batches_hold_no_row_group(cache):
    """A response is a view of its whole row group; a batch of one must not keep that alive."""
    response = open_cache(cache)[0]
    assert response.entry_logprobs.base is not None
    batch = collate_teacher_rows([response])
    theirs = [value.data_ptr() for value in batch.values() if isinstance(value, torch.Tensor)]
    for name in ("input_ids", "entry_token_ids", "entry_logprobs", "log_tail_mass"):
        low = getattr(response, name).__array_interface__["data"][0]
        assert not [at for at in theirs if low <= at < low + getattr(response, name).nbytes]


TWO_PROCESSES = """
import sys
import test_student_train
from storage_schema import reader
from pipeline.student.train import run
reader.KEEP_BYTES, reader.MIN_KEPT_GROUPS = 1, 2
student, cache, output, last_step = sys.argv[1:]
if last_step != "none":
    import os
    from pipeline.student.trainer import StudentTrainer
    original = StudentTrainer.training_step
    def training_step(self, *args, **kwargs):
        if self.state.global_step == int(last_step):
            self.accelerator.wait_for_everyone()
            os._exit(9)
        return original(self, *args, **kwargs)
    StudentTrainer.training_step = training_step
run(test_student_train.make_config(student, cache, output, max_steps=6, learning_rate=1e-2,
                                   save_every_steps=5))
"""


def run_two_processes(directory: Path, tiny_model, cache, output, last_step: str) -> int:
    (directory / "train.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += [directory / "train.py", tiny_model, cache, output, last_step]
    tests = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True).returncode


@pytest.mark.slow
def test_two_processes_resume_in_a_later_epoch_to_the_same_weights(tiny_model, cache, tmp_path):
    """Three steps an epoch, killed after the fifth; accelerate alone would go on in epoch 0."""
    assert run_two_processes(tmp_path, tiny_model, cache, tmp_path / "whole", "none") == 0
    assert run_two_processes(tmp_path, tiny_model, cache, tmp_path / "killed", "5") != 0
    assert (tmp_path / "killed" / "checkpoint-5").is_dir()
    assert run_two_processes(tmp_path, tiny_model, cache, tmp_path / "killed", "none") == 0
    whole, resumed = (
        json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "killed")
    )
    assert resumed["resumed_from_step"] == 5
    assert resumed["history"] == whole["history"]
    weights = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    for key, value in load_file(tmp_path / "killed" / "adapter_model.safetensors").items():
        assert torch.equal(value, weights[key]), key
