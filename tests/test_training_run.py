"""What surrounds a training run: one process at a time, and what to do when memory ends."""

import errno
import fcntl
import subprocess
from pathlib import Path

import pytest
import torch

from pipeline.errors import ModelError, OutputExistsError
from pipeline.locking import locked
from pipeline.models.memory import memory_advice
from pipeline.run_record import finish_output, open_output
from pipeline.training import run as training_run
from pipeline.training.run import LOCK_NAME, claim_output
from storage_schema.publish import temporary_path

IDENTITY = {"alpha": 0.1}


def test_a_second_process_is_refused_while_the_first_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "LOCK_WAIT_SECONDS", 0.0)
    output = tmp_path / "student"
    with claim_output(output, "train-student", IDENTITY, {}):
        with (
            pytest.raises(OutputExistsError, match=f"the run {output} is being worked on by proc"),
            claim_output(output, "train-student", IDENTITY, {}),
        ):
            pass
        finish_output(output)
    with (
        pytest.raises(OutputExistsError, match=f"the run {output} was finished by another process"),
        claim_output(output, "train-student", IDENTITY, {}),
    ):
        pass


def test_a_run_of_before_is_gone_on_with(tmp_path: Path) -> None:
    output = tmp_path / "student"
    for _ in range(2):
        output.mkdir(exist_ok=True)
        dead = subprocess.Popen(["true"])
        dead.wait()
        stem = temporary_path(output / "run.json").name.rpartition("-")[0].rpartition("-")[0]
        if (output / "run.json").exists():
            (output / f"{stem}-{dead.pid}-00").write_text("half")  # of a kill while it was written
        with claim_output(output, "train-student", IDENTITY, {}):
            assert open_output(output, "train-student", IDENTITY) == "resume"
    assert {path.name for path in output.iterdir()} == {"run.json", LOCK_NAME}


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(number: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(number, "no")

        monkeypatch.setattr(fcntl, "flock", flock)

    refuse(errno.ENOSYS)
    with locked(tmp_path / "lock", "the run here"):
        pass
    assert "warning: the file system has no locks (Function not implemented): nothing keeps" in (
        capsys.readouterr().err
    )
    refuse(errno.EIO)
    with pytest.raises(OSError, match="no"), locked(tmp_path / "lock", "the run here"):
        pass


def test_a_full_device_has_a_remedy() -> None:
    with (
        pytest.raises(ModelError, match=r"^scoring ran out of memory \(CUDA out of memory\): use"),
        memory_advice("scoring", "use a lower --batch-tokens"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
