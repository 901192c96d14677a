"""train-student from a cache on disk to an adapter: saved, recorded, resumable, refused."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_factory import make_cache, random_responses
from safetensors.torch import load_file

from pipeline.cli.train_student import main
from pipeline.errors import ConfigError, ModelError, OutputExistsError
from pipeline.models.checkpoint import find_checkpoint
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.models.vocabulary import fingerprint_vocabulary, vocabulary_size
from pipeline.report.inputs import Cell, Inputs
from pipeline.report.provenance import commands
from pipeline.student.config import TrainStudentConfig
from pipeline.student.train import run
from pipeline.student.trainer import StudentTrainer
from pipeline.training.lora import load_trainable
from storage_schema.errors import CacheDamagedError, CacheNotFoundError
from storage_schema.rows import round_logprobs


@pytest.fixture(scope="module")
def cache(tiny_model, tmp_path_factory) -> Path:
    tokenizer = load_tokenizer(find_checkpoint(str(tiny_model)))
    size = vocabulary_size(tokenizer)
    return make_cache(
        tmp_path_factory.mktemp("cache") / "cache",
        random_responses(16, vocabulary_size=size, k=6),
        vocabulary_size=size,
        vocabulary_fingerprint=fingerprint_vocabulary(tokenizer),
        k=6,
    )


def make_config(tiny_model, cache, output, **changes) -> TrainStudentConfig:
    options = {"alpha": 1.0, "max_steps": 6, "batch_size": 4, "save_every_steps": None, **changes}
    return TrainStudentConfig(
        student=str(tiny_model), cache=str(cache), output=str(output), **options
    )


def test_sampled_caches_train_and_settings_that_bias_them_are_refused_first(tiny_model, tmp_path):
    tokenizer = load_tokenizer(find_checkpoint(str(tiny_model)))
    size = vocabulary_size(tokenizer)
    cache = make_cache(
        tmp_path / "cache",
        random_responses(16, vocabulary_size=size, kind="sampled", k=6),
        vocabulary_size=size,
        vocabulary_fingerprint=fingerprint_vocabulary(tokenizer),
        kind="sampled",
        k=6,
    )
    with pytest.raises(ConfigError, match="a sampled support, which does not go with --tail ghost"):
        run(make_config(tmp_path / "absent", cache, tmp_path / "student", tail="ghost"))
    result = run(make_config(tiny_model, cache, tmp_path / "student", learning_rate=1e-2))
    assert result["last"]["kl"] < result["first"]["kl"]


def test_a_cache_of_logits_trains_as_one_of_rounded_values_does(tiny_model, tmp_path):
    tokenizer = load_tokenizer(find_checkpoint(str(tiny_model)))
    size = vocabulary_size(tokenizer)
    fingerprint, losses = fingerprint_vocabulary(tokenizer), []
    logits = random_responses(16, vocabulary_size=size, k=6, codec="bfloat16-logits")
    rounded = [
        dataclasses.replace(
            response, log_normalizers=None, entry_logprobs=round_logprobs(response.entry_logprobs)
        )
        for response in logits
    ]
    for codec, responses in (("bfloat16-logits", logits), ("float16-rounded", rounded)):
        cache = make_cache(
            tmp_path / codec,
            responses,
            vocabulary_size=size,
            vocabulary_fingerprint=fingerprint,
            k=6,
            codec=codec,
        )
        result = run(make_config(tiny_model, cache, tmp_path / f"student-{codec}", max_steps=2))
        losses.append([step["kl"] for step in result["history"]])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


def test_a_tail_that_is_kept_is_no_reason_to_warn(tiny_model, cache, tmp_path, capsys):
    run(make_config(tiny_model, cache, tmp_path / "student", max_steps=1, tail="ghost"))
    assert "the entries used hold" not in capsys.readouterr().out


def test_adapter_is_saved_recorded_and_loads(tiny_model, cache, tmp_path, capsys):
    output = tmp_path / "student"
    result = run(make_config(tiny_model, cache, output))
    assert result["output"] == str(output)
    assert result["finished"]
    assert result["steps"] == 6 == len(result["history"])
    assert json.loads((output / "run.json").read_text())["last"] == result["last"]
    assert {"ce", "kl", "teacher_mass", "student_mass", "agreement"} <= set(result["last"])
    printed = capsys.readouterr().out
    assert f"written to {output}" in printed
    assert f"KL {result['first']['kl']:.4f} -> {result['last']['kl']:.4f}" in printed
    mass = np.mean([step["teacher_mass"] for step in result["history"]])
    assert mass < 0.95
    assert f"the entries used hold {mass:.3f} of the teacher's probability" in printed

    files = {path.name for path in output.iterdir() if path.is_file()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".md"))]
    base = json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(tiny_model.resolve())

    found = find_checkpoint(str(output))
    assert found.model_path == tiny_model.resolve()
    ids = torch.tensor([[1, 2, 3, 4]])
    adapted = load_model(found, dtype="float32")(ids).logits
    untouched = load_model(find_checkpoint(str(tiny_model)), dtype="float32")(ids).logits
    assert not torch.allclose(adapted, untouched, atol=1e-4)


def test_label_smoothing_is_trained_on_and_recorded(tiny_model, cache, tmp_path):
    options = {"alpha": 0.0, "max_steps": 4, "learning_rate": 1e-2}
    plain = run(make_config(tiny_model, cache, tmp_path / "plain", **options))
    smoothed = run(make_config(tiny_model, cache, tmp_path / "s", label_smoothing=0.5, **options))
    assert smoothed["identity"]["label_smoothing"] == 0.5
    assert smoothed["first"]["ce"] == pytest.approx(plain["first"]["ce"])
    assert smoothed["first"]["loss"] != pytest.approx(plain["first"]["loss"], rel=1e-3)
    assert smoothed["last"]["ce"] != pytest.approx(plain["last"]["ce"], rel=1e-5)


def test_a_report_writes_the_command_that_trained(tiny_model, cache, tmp_path):
    output = tmp_path / "a student"
    settings = {"max_steps": 1, "max_grad_norm": 0.5, "merge": True, "save_every_steps": 50}
    config = make_config(tiny_model, cache, output, **settings)
    record = run(config)
    line = commands(Inputs([], [Cell("alpha-1", output, {}, record)], None, None, None))[0]
    name, *arguments = shlex.split(line)
    assert name == "train-student"
    assert main.check(arguments) == config


def test_second_run_is_done_at_once(tiny_model, cache, tmp_path, capsys, monkeypatch):
    config = make_config(tiny_model, cache, tmp_path / "student", max_steps=1)
    first = run(config)
    monkeypatch.setattr("pipeline.student.train_model.load_trainable", None)  # must not be needed
    assert run(config) == first
    assert "finished already" in capsys.readouterr().out


def test_other_settings_over_an_output_are_refused(tiny_model, cache, tmp_path):
    run(make_config(tiny_model, cache, tmp_path / "student", max_steps=1))
    with pytest.raises(OutputExistsError, match="alpha: there 1.0, asked 2.0"):
        run(make_config(tiny_model, cache, tmp_path / "student", max_steps=1, alpha=2.0))


class Killed(Exception):
    pass


def kill_in_step(monkeypatch, step):
    original = StudentTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(StudentTrainer, "training_step", training_step)


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_killed_run_resumes_to_the_same_weights(tiny_model, cache, tmp_path, monkeypatch, tuning):
    """Bit for bit, across an epoch's end, with dropout's random state restored."""
    options = {"max_steps": 8, "save_every_steps": 3, "tuning": tuning, "learning_rate": 1e-2}
    options["lora_dropout"] = 0.1
    whole = run(make_config(tiny_model, cache, tmp_path / "whole", **options))
    config = make_config(tiny_model, cache, tmp_path / "killed", **options)
    with monkeypatch.context() as patch:
        kill_in_step(patch, 5)
        with pytest.raises(Killed):
            run(config)
    assert (tmp_path / "killed" / "checkpoint-3").is_dir()
    # A checkpoint that the kill left half-written is newer, and must be passed over.
    torn = tmp_path / "killed" / "checkpoint-5"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    resumed = run(config)

    assert resumed["resumed_from_step"] == 3
    assert whole["resumed_from_step"] == 0
    assert resumed["history"] == whole["history"]
    assert resumed["tokens"] == whole["tokens"]
    name = "adapter_model.safetensors" if tuning == "lora" else "model.safetensors"
    expected = load_file(tmp_path / "whole" / name)
    for key, value in load_file(tmp_path / "killed" / name).items():
        assert torch.equal(value, expected[key]), key
    assert not list((tmp_path / "killed").glob("checkpoint-*"))


def test_full_tuning_writes_a_model_in_the_stored_type(tiny_model, cache, tmp_path):
    output = tmp_path / "student"
    run(make_config(tiny_model, cache, output, tuning="full", max_steps=2))
    assert not (output / "adapter_config.json").exists()
    stored = load_file(tiny_model / "model.safetensors")
    trained = load_file(output / "model.safetensors")
    assert {k: v.dtype for k, v in trained.items()} == {k: v.dtype for k, v in stored.items()}
    assert any(not torch.equal(stored[key], trained[key]) for key in stored)
    assert json.loads((output / "config.json").read_text())["use_cache"]
    assert not find_checkpoint(str(output)).adapter_path


def test_missing_cache_is_refused_before_anything_is_written(tiny_model, tmp_path):
    with pytest.raises(CacheNotFoundError, match="nothing-here"):
        run(make_config(tiny_model, tmp_path / "nothing-here", tmp_path / "student"))
    assert not (tmp_path / "student").exists()


def test_student_that_does_not_fit_is_refused(tiny_model, tmp_path):
    other = make_cache(
        tmp_path / "cache",
        random_responses(4, vocabulary_size=5000, k=4),
        vocabulary_size=5000,
        vocabulary_fingerprint="another",
        k=4,
    )
    with pytest.raises(ModelError, match="--top-k asks for 5, the cache stores 4") as caught:
        run(make_config(tiny_model, other, tmp_path / "student", top_k=5))
    assert "another" in str(caught.value)
    assert not (tmp_path / "student").exists()


def test_student_takes_over_the_caches_chat_template(tiny_model, tmp_path, capsys):
    tokenizer = load_tokenizer(find_checkpoint(str(tiny_model)))
    facts = {
        "vocabulary_size": vocabulary_size(tokenizer),
        "vocabulary_fingerprint": fingerprint_vocabulary(tokenizer),
    }
    responses = random_responses(4, vocabulary_size=facts["vocabulary_size"], k=6)
    for name, template in [("same", tokenizer.chat_template), ("other", "{{ messages }}")]:
        cache = make_cache(tmp_path / name, responses, k=6, chat_template=template, **facts)
        run(make_config(tiny_model, cache, tmp_path / f"student-{name}", max_steps=1))
        saved = load_tokenizer(find_checkpoint(str(tmp_path / f"student-{name}")))
        assert saved.chat_template == template
        assert ("takes over the chat template" in capsys.readouterr().out) == (name == "other")


def test_damage_is_found_before_training_and_claims_nothing(tiny_model, cache, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(cache, damaged)
    shard = damaged / "shards" / "shard-00003.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CacheDamagedError, match=r"shard-00003\.parquet: SHA-256 is"):
        run(make_config(tiny_model, damaged, tmp_path / "student"))
    assert not (tmp_path / "student").exists()


def test_training_from_an_adapter_is_refused(tiny_model, cache, tmp_path):
    config = make_config(tiny_model, cache, tmp_path / "student", max_steps=1)
    run(config)
    with pytest.raises(ModelError, match=f"{tmp_path / 'student'} is an adapter on"):
        load_trainable(find_checkpoint(str(tmp_path / "student")), config, None)
    again = make_config(tmp_path / "student", cache, tmp_path / "again")
    with pytest.raises(ModelError, match="is an adapter on"):
        run(again)
    assert not (tmp_path / "again").exists()  # nothing claimed: the corrected command may use it


def test_diverged_run_is_stopped_and_named(tiny_model, cache, tmp_path):
    config = make_config(
        tiny_model, cache, tmp_path / "s", tuning="full", learning_rate=1e30, max_steps=20
    )
    with pytest.raises(ModelError, match="training loss is (nan|inf) at step"):
        run(config)


FULL_DISK = """
import resource, sys
from pipeline.cli.train_student import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
main(prog_name="train-student")
"""


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_space(tiny_model, cache, tmp_path):
    arguments = ["--student", str(tiny_model), "--cache", str(cache), "--alpha", "1"]
    arguments += ["--max-steps", "4", "--save-every-steps", "2", "--batch-size", "4"]
    arguments += ["--report-to", "none", "--output", str(tmp_path / "s")]
    for limit, code in ((20_000, 1), (10**9, 0)):
        found = subprocess.run(
            [sys.executable, "-c", FULL_DISK, str(limit), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == code, found.stderr
        if code:
            assert "Traceback" not in found.stderr
            assert re.search("Error: .*: the disk is full .*free space and run", found.stderr)
    assert (tmp_path / "s" / "adapter_model.safetensors").stat().st_size > 20_000


def test_weights_that_the_last_step_broke_are_not_published(tiny_model, cache, tmp_path):
    config = make_config(tiny_model, cache, tmp_path / "s", learning_rate=1e39, max_steps=1)
    with pytest.raises(ModelError, match="lora_.* no finite numbers after the last step"):
        run(config)
    assert not (tmp_path / "s" / "adapter_model.safetensors").exists()


def test_a_single_step_trains(tiny_model, cache, tmp_path):
    run(make_config(tiny_model, cache, tmp_path / "s", max_steps=1))
    weights = load_file(tmp_path / "s" / "adapter_model.safetensors")
    assert any(weight.any() for name, weight in weights.items() if "lora_B" in name)  # 0 before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, "--alpha -1.0 must be 0 or more"),
        ({"tail": "ghost", "temperature": 2.0}, "--tail ghost with --temperature 2.0"),
        ({"batch_size": 0}, "--batch-size 0 must be at least 1"),
    ],
)
def test_bad_settings_are_refused(tiny_model, cache, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(tiny_model, cache, tmp_path, **changes)


TWO_PROCESSES = """
import sys
from pipeline.student.config import TrainStudentConfig
from pipeline.student.train import run
student, cache, output = sys.argv[1:]
run(TrainStudentConfig(student=student, cache=cache, output=output, alpha=1.0, max_steps=4,
                       batch_size=4, learning_rate=1e-2, save_every_steps=2))
"""


@pytest.mark.slow
def test_two_processes_of_four_equal_one_of_eight(tiny_model, cache, tmp_path):
    """The same steps up to rounding: losses, logged means and final weights."""
    (tmp_path / "train.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += [tmp_path / "train.py", tiny_model, cache, tmp_path / "two"]
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = make_config(
        tiny_model, cache, tmp_path / "one", max_steps=4, batch_size=8, learning_rate=1e-2
    )
    one, two = run(config), json.loads((tmp_path / "two" / "run.json").read_text())
    for first, second in zip(one["history"], two["history"], strict=True):
        assert second == pytest.approx(first, rel=1e-5)
    expected = load_file(tmp_path / "one" / "adapter_model.safetensors")
    for key, value in load_file(tmp_path / "two" / "adapter_model.safetensors").items():
        # AdamW divides by the gradient's size, so a rounding error of a tiny gradient grows.
        torch.testing.assert_close(value, expected[key], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_real_student_learns_its_teacher(demo_model, tmp_path):
    """A few steps on the real model: the KL to a random teacher falls, and only by training."""
    tokenizer = load_tokenizer(find_checkpoint(str(demo_model)))
    size = vocabulary_size(tokenizer)
    cache = make_cache(
        tmp_path / "cache",
        random_responses(4, vocabulary_size=size, k=16, rows=8),
        vocabulary_size=size,
        vocabulary_fingerprint=fingerprint_vocabulary(tokenizer),
        k=16,
    )
    result = run(
        make_config(
            demo_model, cache, tmp_path / "student", alpha=10.0, max_steps=8, learning_rate=2e-3
        )
    )
    assert result["last"]["kl"] < 0.95 * result["first"]["kl"]


def test_one_adapter_has_one_fingerprint_whichever_process_trained_it(tiny_model, cache, tmp_path):
    """peft keeps the names of its modules in a set, whose order is another in every process."""
    run(make_config(tiny_model, cache, tmp_path / "student", max_steps=1))
    config = json.loads((tmp_path / "student" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) > 6
    assert config["target_modules"] == sorted(config["target_modules"])
