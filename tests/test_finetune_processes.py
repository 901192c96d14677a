"""finetune-teacher under torchrun: two gloo processes do what one does, and one of them writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.teacher.finetune import run
from pipeline.teacher.finetune_config import FinetuneTeacherConfig

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
# Counts what each process writes, and may end as a kill does after a checkpoint.
PROCESS = """
import os, sys
writes = []
sys.addaudithook(lambda event, args: event == "open" and isinstance(args[1], str)
                 and set(args[1]) & set("wax+") and writes.append(str(args[0])))
from pipeline.cli.finetune_teacher import main
from pipeline.teacher.finetune_trainer import TeacherTrainer
save = TeacherTrainer._save_checkpoint
def save_and_die(self, *arguments, **named):
    save(self, *arguments, **named)
    if self.state.global_step == int(os.environ.get("DIE_AT", 0)):
        self.accelerator.wait_for_everyone()
        os._exit(9)
TeacherTrainer._save_checkpoint = save_and_die
try:
    main(sys.argv[1:])
finally:
    output = sys.argv[sys.argv.index("--output") + 1]
    rank = os.environ["RANK"]
    mine = [path for path in writes if path.startswith(output)]
    # A file of its own: lines of two processes on one stream can land inside each other.
    with open(os.path.join(os.path.dirname(output), "wrote-" + rank), "w") as file:
        file.write(" ".join(sorted({os.path.basename(path) for path in mine})))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {"instruction": f"Say {i}." * (1 + i % 3), "response": f"The number is {i}." * (1 + i % 4)}
        for i in range(21)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


OPTIONS = {
    "max_prompt_tokens": 128,
    "max_sequence_tokens": 256,
    "max_steps": 7,
    "learning_rate": 1e-2,
    "eval_share": 0.2,
    "save_every_steps": 3,
}


def launch(folder, tiny_model, data, output, *, batch_size, die_at=0, extra=()):
    (folder / "process.py").write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    command += [folder / "process.py", "--model", tiny_model, "--data", data, "--output", output]
    for name, value in {**OPTIONS, "batch_size": batch_size}.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["DIE_AT"] = str(die_at)
    return subprocess.run(
        [*map(str, command), *extra], env=environment, capture_output=True, text=True
    )


def check_equal(one, two, folder_one, folder_two):
    for first, second in zip(one["history"], two["history"], strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
        assert second["num_input_tokens_seen"] == first["num_input_tokens_seen"]
    for first, second in zip(one["evaluations"], two["evaluations"], strict=True):
        assert second["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-4)
    assert two["best_step"] == one["best_step"]
    expected = load_file(folder_one / "adapter_model.safetensors")
    for key, value in load_file(folder_two / "adapter_model.safetensors").items():
        # AdamW divides by the gradient's size, so a rounding error of a tiny gradient grows.
        torch.testing.assert_close(value, expected[key], atol=3e-4, rtol=0)


@pytest.mark.parametrize("batching", ["padded", "padding-free"])
def test_two_processes_of_two_equal_one_of_four(tiny_model, data, tmp_path, batching):
    done = launch(
        tmp_path,
        tiny_model,
        data,
        tmp_path / "two",
        batch_size=2,
        extra=("--batching", batching, "--json"),
    )
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)  # printed once
    config = FinetuneTeacherConfig(
        model=str(tiny_model),
        data=str(data),
        output=str(tmp_path / "one"),
        batch_size=4,
        batching=batching,
        **OPTIONS,
    )
    check_equal(run(config), two, tmp_path / "one", tmp_path / "two")
    assert two["made_with"] == {"batching": batching, "attention": "sdpa", "processes": 2}
    # Besides its random numbers in a checkpoint, which are its own, the second writes nothing.
    assert (tmp_path / "wrote-1").read_text() in ("", "rng_state_1.pth")
    assert "run.json" in (tmp_path / "wrote-0").read_text()


def test_two_killed_processes_go_on_to_the_same_weights(tiny_model, data, tmp_path):
    whole = launch(tmp_path, tiny_model, data, tmp_path / "whole", batch_size=2)
    assert whole.returncode == 0, whole.stderr
    killed = launch(tmp_path, tiny_model, data, tmp_path / "killed", batch_size=2, die_at=6)
    assert killed.returncode != 0
    assert not json.loads((tmp_path / "killed" / "run.json").read_text())["finished"]
    resumed = launch(tmp_path, tiny_model, data, tmp_path / "killed", batch_size=2)
    assert resumed.returncode == 0, resumed.stderr
    record = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert record["resumed_from_step"] == 6
    expected = json.loads((tmp_path / "whole" / "run.json").read_text())
    for name in ("evaluations", "best_step", "steps"):
        assert record[name] == expected[name]
    weights = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    for key, value in load_file(tmp_path / "killed" / "adapter_model.safetensors").items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=0)
