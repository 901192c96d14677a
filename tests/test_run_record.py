"""Run records and progress: what a second run over the same output does."""

from pathlib import Path

import pytest

from pipeline import progress
from pipeline.errors import OutputExistsError
from pipeline.progress import Progress
from pipeline.run_record import finish_output, open_output, read_record, require_weights

IDENTITY = {"alpha": 0.1, "cache": {"fingerprint": "abc"}, "names": ("a", "b")}


def test_a_run_is_new_then_resumed_then_finished(tmp_path: Path) -> None:
    output = tmp_path / "student"
    assert open_output(output, "train-student", IDENTITY) == "new"
    assert open_output(output, "train-student", IDENTITY) == "resume"
    finish_output(output, metrics={"ce": 1.5})
    assert open_output(output, "train-student", IDENTITY) == "finished"
    record = read_record(output)
    assert record["metrics"] == {"ce": 1.5}
    assert record["versions"]["torch"]
    assert [path.name for path in output.iterdir()] == ["run.json"]


def test_other_settings_are_refused_field_by_field(tmp_path: Path) -> None:
    open_output(tmp_path / "o", "train-student", IDENTITY)
    other = {**IDENTITY, "alpha": 1.0, "cache": {"fingerprint": "xyz"}}
    with pytest.raises(OutputExistsError) as caught:
        open_output(tmp_path / "o", "train-student", other)
    assert "alpha: there 0.1, asked 1.0" in str(caught.value)
    assert "cache.fingerprint: there 'abc', asked 'xyz'" in str(caught.value)
    assert "names" not in str(caught.value)
    with pytest.raises(OutputExistsError, match="command: there 'train-student', asked 'finetune"):
        open_output(tmp_path / "o", "finetune-teacher", IDENTITY)


def test_a_strangers_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match=r"is not empty and holds no run\.json"):
        open_output(tmp_path, "train-student", IDENTITY)
    for text in ("[]", '{"command": "train-student", "identity": [], "finished": false}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(
            OutputExistsError, match=r"is not a run record .* restore it, or delete"
        ):
            open_output(tmp_path, "train-student", IDENTITY)


def test_a_finished_run_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match=r"finished by its run\.json but holds no \*\.safe"):
        require_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    require_weights(tmp_path)


def test_progress_prints_plain_lines_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("train", 4, "steps") as bar:
        for _ in range(4):
            bar.advance(note="loss 1.2")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train: 2/4 steps (")
    assert "s left, loss 1.2)" in lines[0]
    assert lines[-1].startswith("train: 4/4 steps (")
    assert "left" not in lines[-1]
