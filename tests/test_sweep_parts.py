"""The parts of a sweep on their own: lock, processes, places, what is watched and shown."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import OutputExistsError
from pipeline.locking import locked
from pipeline.progress import Progress, read_line
from pipeline.sweep import places, scores
from pipeline.sweep.cell import (
    CELL_NAME,
    Job,
    last_words,
    read_cell,
    read_last_part,
    remove_leftovers,
    run_cell,
)
from pipeline.sweep.children import Children
from pipeline.sweep.places import make_places
from pipeline.sweep.schedule import run_here
from pipeline.sweep.scores import _take_rows
from pipeline.sweep.table import SweepTable, _fit, format_seconds
from pipeline.sweep.watch import CellState, Watch, estimate_seconds_left

HOLDER = "import sys, time; from pathlib import Path; from pipeline.locking import locked\n"
HOLDER += "with locked(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(60)"


def make_job(folder: Path, name: str = "alpha-1@0") -> Job:
    """A job whose evaluation fails at once: there is no such dataset."""
    return Job(
        name=name,
        arm=name.partition("@")[0],
        seed=0,
        settings={"alpha": 1.0, "seed": 0},
        cache_fingerprint="abc",
        folder=folder / name,
        directory=folder,
        model="absent",
        train=None,
        evaluations={"x": {"data": "", "batch_size": 1}},
    )


def test_a_lock_refuses_others_and_ends_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(OutputExistsError, match=rf"the sweep s .* process {process.pid} on"),
        locked(path, "the sweep s"),
    ):
        pass
    process.kill()
    process.wait()
    with locked(path, "the sweep s", wait_seconds=10):
        assert json.loads(path.read_text())["process"] == os.getpid()
        with (
            pytest.raises(OutputExistsError, match="the sweep s is being"),
            locked(path, "the sweep s"),
        ):
            pass


def test_a_child_and_its_own_children_end_when_the_parents_pipe_closes() -> None:
    code = (
        "import subprocess, sys, time; from pipeline.sweep.child import end_with_parent\n"
        "end_with_parent(); assert sys.stdin.read() == ''\n"
        "print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    grandchild = int(process.stdout.readline())
    process.stdin.close()
    assert process.wait(timeout=20) == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while Path(f"/proc/{grandchild}").exists() and time.monotonic() < deadline:
        if "Z" in Path(f"/proc/{grandchild}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{grandchild}").exists()


def test_a_cell_that_fails_says_so_and_is_tried_again(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    record = run_cell(job, Children(), {})
    assert record is not None
    assert record == read_cell(job)
    assert record["state"] == "failed"
    assert record["error"].startswith("evaluate-x: Error: --data is ''"), record["error"]
    assert record["train_s"] is None
    assert 0 < record["evaluate_s"] < 60
    run_cell(job, Children(), {})
    log = (job.folder / "evaluate.log").read_text()
    assert log.count("== 20") == 2
    assert len(read_last_part(job.folder / "evaluate.log")) < len(log.splitlines()) / 2


def test_one_failed_cell_ends_no_other(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, name) for name in ("alpha-0@0", "alpha-1@0", "alpha-2@0")]
    jobs[1].folder.write_text("no folder")
    looks: list[int] = []
    lost = run_here(jobs, [{}], lambda: looks.append(1))
    assert list(lost) == ["alpha-1@0"]
    assert "File exists" in lost["alpha-1@0"]
    assert [read_cell(job)["state"] for job in (jobs[0], jobs[2])] == ["failed", "failed"]  # type: ignore[index]
    assert looks


def test_stopped_children_leave_no_record_and_start_no_more(tmp_path: Path) -> None:
    children = Children()
    children.stop()
    assert run_cell(make_job(tmp_path), children, {}) is None
    assert not (tmp_path / "alpha-1@0" / CELL_NAME).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": 3}, "cell.json is not the record of a cell: field 'state' is 3, expected str"),
        ({"error": 3}, "field 'error' is 3, expected str or NoneType"),
        ({"cache_fingerprint": "xyz"}, "cache_fingerprint is 'xyz', expected 'abc'; delete its fo"),
        ({"name": "alpha-2@0"}, "cell.json is of another cell: name is 'alpha-2@0', expected 'al"),
        (None, "cell.json is not valid JSON: .*it should be the record of a cell: restore the fil"),
    ],
)
def test_a_damaged_record_is_named(
    tmp_path: Path, change: dict[str, object] | None, message: str
) -> None:
    job = make_job(tmp_path)
    run_cell(job, Children(), {})
    path = job.folder / CELL_NAME
    text = path.read_text()
    path.write_text(text[:40] if change is None else json.dumps({**json.loads(text), **change}))
    with pytest.raises(OutputExistsError, match=message):
        read_cell(job)


def test_rows_are_taken_again_without_a_trace(tmp_path: Path) -> None:
    """A second time, and after a kill: a link that replaces itself stays, says POSIX."""
    job = make_job(tmp_path)
    source = job.folder / "predictions" / job.scores_path("x").stem
    source.mkdir(parents=True)
    (source / f"{job.name}.jsonl").write_text("{}\n")
    target = tmp_path / "scores" / "predictions" / "x"
    for _ in range(2):
        _take_rows(job, "x", tmp_path / "scores" / "x.json")
        assert [path.name for path in target.iterdir()] == [f"{job.name}.jsonl"]


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    for place in ("run.json.tmp-vm-1-0", "student/run.json.tmp-vm-1-0", "student/run.json"):
        (job.folder / place).parent.mkdir(parents=True, exist_ok=True)
        (job.folder / place).write_text("{}")
    (job.folder / "merged.tmp-vm-1-0").mkdir()
    remove_leftovers(job.folder)
    left = [path.name for path in job.folder.rglob("*") if path.is_file()]
    assert left == ["run.json"]
    assert not (job.folder / "merged.tmp-vm-1-0").exists()
    remove_leftovers(tmp_path / "nowhere")


def test_a_student_is_compared_with_plain_fine_tuning_of_its_own_further_settings(
    tmp_path: Path,
) -> None:
    def job(arm: str, **settings: object) -> Job:
        return replace(make_job(tmp_path, f"{arm}@0"), settings=settings)

    jobs = [
        job("a", alpha=0.0, learning_rate=1e-4, seed=0),
        job("b", alpha=0.0, learning_rate=1e-5, seed=0),
        job("c", alpha=1.0, learning_rate=1e-4, tail="ghost", seed=0),
        job("d", alpha=1.0, learning_rate=1e-5, tail="ghost", seed=0),
        job("e", alpha=1.0, learning_rate=1e-6, tail="ghost", seed=0),  # without a plain one
    ]
    assert scores._baseline(jobs) == "a"
    assert scores._baselines_of_their_own(jobs, "a") == ["d=b"]


def test_why_a_process_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("== now a\nold\n== now b\nfirst\n 5%|\r 9%|\nError: no\n\n")
    assert read_last_part(log) == ["first", " 5%|", " 9%|", "Error: no"]
    assert last_words(log, 1) == "Error: no"
    log.write_text("== now\nfirst\nError: other settings:\n  a: there 1\nchoose another\n")
    assert last_words(log, 1) == "Error: other settings: a: there 1 choose another"
    log.write_text("== now\nTraceback\n  here\nValueError: no\n")
    assert last_words(log, 1) == "ValueError: no"
    log.write_text("== now b\nError: no\n")
    assert last_words(log, -9) == (
        "ended by SIGKILL (too little memory?); the last line of its log: Error: no"
    )
    log.write_text("== now a\n")
    assert last_words(log, 2) == "it printed nothing"


def test_a_progress_line_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train-student", 60, "steps") as progress:
        progress.advance(12, note="training loss 1.5, or so")
        progress._start -= 100
        progress._print_line()
    line = read_line(capsys.readouterr().err.splitlines()[0])
    assert line is not None
    assert (line.description, line.done, line.total, line.unit) == (
        "train-student",
        12,
        60,
        "steps",
    )
    assert line.note == "training loss 1.5, or so"
    assert line.seconds_left == pytest.approx(400, rel=0.1)
    assert read_line("Error: 3/4 of it is gone") is None


def test_processors_are_divided_and_gpus_given_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(places.os, "sched_getaffinity", lambda _: range(8))
    assert make_places(1) == [{}]
    assert make_places(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert make_places(2) == [{}, {}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-ab")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in make_places(3)] == ["2", "GPU-ab", "2"]


def test_watching_tells_this_run_from_the_one_before(tmp_path: Path) -> None:
    job, other = make_job(tmp_path), make_job(tmp_path, "alpha-0@0")
    run_cell(job, Children(), {})
    watch = Watch([job, other], [job, other])
    assert [state.state for state in watch.look()] == ["waiting", "waiting"]
    (job.folder / "train.log").write_text("== x\ntrain-student: 2/8 steps (1 steps/s, 6 s left)\n")
    state = watch.look()[0]
    assert (state.state, state.progress, state.seconds_left) == ("training", "2/8 steps", 6)
    run_cell(job, Children(), {})
    assert watch.look()[0].state == "failed"
    assert Watch([job], []).look()[0].state == "failed"  # as it was left


def test_lines_are_printed_for_changes_only(capsys: pytest.CaptureFixture[str]) -> None:
    def states(first: str, second: str = "waiting", **about: object) -> list[CellState]:
        return [CellState("a@0", first, **about), CellState("b@0", second)]  # type: ignore[arg-type]

    with SweepTable(1, states("waiting")) as table:
        table.show(states("training"))
        table.show(states("training", progress="3/9 steps", seconds=4.0))
        table.show(states("done", seconds=30.0))
        table.show(states("done", seconds=30.0))
        table.show(states("done", "failed", seconds=30.0))
    assert capsys.readouterr().out.splitlines() == [
        "a@0: training",
        "a@0: done, 30 s  [1 of 2 ended, about 30 s left]",
        "b@0: failed  [2 of 2 ended, 1 failed]",
    ]


def test_a_long_table_keeps_what_runs_and_what_failed() -> None:
    states = [CellState(f"{i}", "done") for i in range(30)]
    states += [CellState("r", "training"), CellState("f", "failed"), CellState("w", "waiting")]
    assert [state.name for state in _fit(states, 4)] == ["0", "r", "f", "w"]
    assert _fit(states, 100) == states


def test_the_time_left_is_that_of_the_ended_cells() -> None:
    states = [CellState("a", "done", seconds=100.0), CellState("b", "training", seconds=40.0)]
    states.append(CellState("c", "waiting"))
    assert estimate_seconds_left(states, 1) == 160
    assert estimate_seconds_left(states, 2) == 80
    assert estimate_seconds_left(states[1:], 1) is None
    states.append(CellState("b", "done", seconds=10.0, trains=False))
    states.append(CellState("x", "failed", seconds=1.0))
    assert estimate_seconds_left(states, 1) == 160
    states.append(CellState("b2", "waiting", trains=False))
    assert estimate_seconds_left(states, 1) == 170
    assert [format_seconds(s) for s in (45, 700, 11100)] == ["45 s", "12 min", "3 h 5 min"]


def test_the_table_of_a_terminal_shows_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    states = [
        CellState("alpha-0.1@0", "training", "12/60 steps", "training loss 3.21", 44.0, 120.0),
        CellState("alpha-1@0", "failed", "", "Error: [x] is " + "long " * 30, 20.0),
        CellState("alpha-2@0", "waiting"),
    ]
    table = SweepTable(1, states)
    console = Console(width=100, height=30)
    table._live = type("Live", (), {"console": console})()
    with console.capture() as capture:
        console.print(table._draw(states))
    lines = capture.get().splitlines()
    assert lines[0].split() == ["cell", "state", "progress", "time", "left"]
    assert (
        lines[1].split() == "alpha-0.1@0 training 12/60 steps 44 s 2 min training loss 3.21".split()
    )
    assert "failed" in lines[2]
    assert "Error: [x] is long" in lines[2]
    assert lines[2].rstrip().endswith("…")
    assert "1 of 3 ended, 1 failed" in lines[4]
    assert "left" not in lines[4]  # a failed cell says nothing of the others' time
