"""A whole sweep of tiny students: the plan, the cells as processes, kills, scores and cost."""

import dataclasses
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cache_factory import make_cache, random_responses

from pipeline.errors import ConfigError, DataError, ModelError, OutputExistsError, SweepError
from pipeline.models.checkpoint import find_checkpoint
from pipeline.models.loading import load_tokenizer
from pipeline.models.vocabulary import fingerprint_vocabulary, vocabulary_size
from pipeline.sweep import ray_cells
from pipeline.sweep.cell import Job, is_done
from pipeline.sweep.config import SweepAlphaConfig
from pipeline.sweep.cost import describe_cost, measure_cost
from pipeline.sweep.jobs import make_jobs
from pipeline.sweep.plan import SweepPlan, check_sweep, claim_sweep, make_plan, read_sweep_settings
from pipeline.sweep.run import run
from storage_schema import open_cache
from storage_schema.errors import CacheNotFoundError
from storage_schema.passes import record_pass

ROWS = [
    {"instruction": "Add the two numbers.", "context": "1 and 2", "response": "the sum"},
    {"instruction": "Name the fox.", "response": "The quick brown fox"},
]
COMMAND = [sys.executable, "-c", "from pipeline.cli.sweep_alpha import main; main()"]


@pytest.fixture(scope="module")
def cache(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = load_tokenizer(find_checkpoint(str(tiny_model)))
    size = vocabulary_size(tokenizer)
    return make_cache(
        tmp_path_factory.mktemp("cache") / "cache",
        random_responses(12, vocabulary_size=size, k=6),
        vocabulary_size=size,
        vocabulary_fingerprint=fingerprint_vocabulary(tokenizer),
        k=6,
    )


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {
        "train-student": {
            "student": str(tiny_model),
            "epochs": 2,
            "batch-size": 4,
            "learning-rate": 1e-2,
            "save-every-steps": 1,
            "report-to": "none",
        },
        "evaluate-student": {
            "data": str(data),
            "engine": "transformers",  # vLLM takes no model this small
            "max-new-tokens": 4,
            "max-prompt-tokens": 200,
            "max-sequence-tokens": 240,
        },
    }


@pytest.fixture
def config(recipe: dict[str, Any], cache: Path, tmp_path: Path) -> SweepAlphaConfig:
    return make_config(recipe, cache, tmp_path)


def make_config(recipe: dict[str, Any], cache: Path, tmp_path: Path, **changes: Any) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    options = {"alpha": (0.0, 1.0), "output": str(tmp_path / "sweep"), **changes}
    return SweepAlphaConfig(config=str(path), cache=str(cache), **options)


def planned(config: SweepAlphaConfig) -> SweepPlan:
    return make_plan(read_sweep_settings(config), config)[0]


# ---- the plan -------------------------------------------------------------------------------


def test_the_plan_says_everything_and_nothing_runs(
    config: SweepAlphaConfig, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(SweepAlphaConfig(**{**vars(config), "dry_run": True}))
    assert [cell["name"] for cell in result["cells"]] == ["alpha-0@0", "alpha-1@0"]
    assert result["cells"][1] == {
        "name": "alpha-1@0",
        "arm": "alpha-1",
        "seed": 0,
        "settings": {"alpha": 1.0, "seed": 0},
    }
    assert result["axes"] == {"alpha": [0.0, 1.0], "seed": [0]}
    assert result["train_student"]["epochs"] == 2.0
    assert result["train_student"]["tail"] == "renormalize"  # a default, which may change one day
    assert not {"alpha", "seed", "student", "cache", "output"} & set(result["train_student"])
    assert result["cache"]["fingerprint"] == open_cache(cache).fingerprint
    printed = capsys.readouterr().out
    assert "2 cells of " in printed
    assert "alpha-1@0: 6 steps of 4 responses" in printed
    assert "together 12 steps" in printed
    assert "evaluated on evaluation: every cell" in printed
    assert not Path(config.output).exists()


def test_evaluations_have_names_and_settings_of_their_own(
    recipe: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    own = {
        "short-one": {"max-new-tokens": 2},
        "plain": {"template": "plain", "baseline": "alpha-1"},
    }
    config = make_config({**recipe, "evaluations": own}, cache, tmp_path)
    settings = read_sweep_settings(config).evaluations
    assert list(settings) == ["short-one", "plain"]
    assert settings["short-one"]["max_new_tokens"] == 2
    assert settings["plain"]["max_new_tokens"] == 4
    job = make_jobs(planned(config), config)[0]
    assert "baseline" not in job.evaluations["plain"]
    assert job.scores_path("plain").name == "scores-plain.json"


@pytest.mark.parametrize(
    ("section", "changes", "error", "message"),
    [
        ("train-student", {"student": "/absent"}, ModelError, "no model at '/absent'"),
        ("evaluate-student", {"data": "/absent.jsonl"}, DataError, "/absent.jsonl"),
        ("train-student", {"seed": 3}, ConfigError, "train-student.seed is given by sweep-alpha"),
        ("train-student", {"epochs": -1}, ConfigError, "alpha-0@0: --epochs -1.0 must be above 0"),
    ],
)
def test_what_is_wrong_is_found_before_the_first_cell(
    recipe: dict[str, Any],
    cache: Path,
    tmp_path: Path,
    section: str,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    recipe[section] |= changes
    with pytest.raises(error, match=message):
        run(make_config(recipe, cache, tmp_path))
    assert not (tmp_path / "sweep").exists()


def test_baselines_cache_and_student_are_checked_too(
    recipe: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no model at '/absent'"):
        run(make_config(recipe, cache, tmp_path, baseline_model=("teacher=/absent",)))
    with pytest.raises(ConfigError, match="--baseline-model 'x': expected NAME=PATH"):
        run(make_config(recipe, cache, tmp_path, baseline_model=("x",)))
    with pytest.raises(ConfigError, match="--baseline-model 'a@0=x': the name 'a@0' is another"):
        run(make_config(recipe, cache, tmp_path, baseline_model=("a@0=x",)))
    with pytest.raises(ConfigError, match="the name 'alpha-0' is another baseline's or an arm's"):
        run(make_config(recipe, cache, tmp_path, baseline_model=("alpha-0=x",)))
    with pytest.raises(CacheNotFoundError, match="no logit cache at"):
        run(make_config(recipe, tmp_path / "none", tmp_path))
    del recipe["train-student"]["student"]
    with pytest.raises(ConfigError, match="no student: give --student, or train-student.student"):
        run(make_config(recipe, cache, tmp_path))
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("top-k=3,100", r"alpha-1,top-k-100@0: .*\n.*--top-k asks for 100, the cache stores"),
        ("batch-tokens=1", r"alpha-0,batch-tokens-1@0: --batch-tokens 1: the longest sequence"),
        ("revision=main", "alpha-0,revision-main@0: .*main"),
        ("epochs=1,2.0,2", "--axis epochs=1,2.0,2: the value 2.0 is given twice"),
        ("dry-run=true", "--axis dry-run: sweep-alpha sets it; use --dry-run"),
    ],
)
def test_what_training_would_refuse_of_an_arm_is_refused_first(
    recipe: dict[str, Any], cache: Path, tmp_path: Path, axis: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(make_config(recipe, cache, tmp_path, alpha=(0.0, 1.0), axis=(axis,), dry_run=True))


def test_another_sweep_is_refused_field_by_field_and_a_larger_one_continues(
    recipe: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    output = tmp_path / "sweep"
    output.mkdir()
    baseline = {"baseline_model": (f"student={recipe['train-student']['student']}",)}
    plan = planned(make_config(recipe, cache, tmp_path, **baseline))
    assert claim_sweep(output, plan) == 2
    assert claim_sweep(output, plan) == 0
    recipe["evaluate-student"]["batch-size"] = 2  # after running out of memory
    recipe["evaluations"] = {"evaluation": {}, "more": {"max-new-tokens": 3}}
    more = {"alpha": (0.0, 0.5, 1.0), "seed": (0, 1)}
    larger = planned(make_config(recipe, cache, tmp_path, **more, **baseline))
    assert check_sweep(output, larger) is not None
    assert len(json.loads((output / "sweep.json").read_text())["cells"]) == 2  # nothing written
    assert claim_sweep(output, larger) == 4
    names = {cell["name"] for cell in json.loads((output / "sweep.json").read_text())["cells"]}
    assert len(names) == 6
    recipe["train-student"]["batch-size"] = 2
    recipe["evaluate-student"]["max-new-tokens"] = 5
    asked = make_config(recipe, cache, tmp_path, alpha=(0.0, 0.5))
    with pytest.raises(OutputExistsError, match="holds another sweep"):
        run(SweepAlphaConfig(**{**vars(asked), "dry_run": True}))
    other = planned(asked)
    with pytest.raises(OutputExistsError) as caught:
        claim_sweep(output, other)
    text = str(caught.value)
    assert re.search(r"baselines.student: there '.*model', asked nothing", text)
    assert "train_student.batch_size: there 4, asked 2" in text
    assert "evaluations.evaluation.max_new_tokens: there 4, asked 5" in text
    assert "cells.alpha-1@0: there {'alpha': 1.0, 'seed': 0}, asked nothing" in text


def test_a_damaged_or_strange_plan_is_named(config: SweepAlphaConfig, tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match=r"not empty \(thesis.tex\) and holds no sweep"):
        run(config)
    (output / "thesis.tex").unlink()
    (output / "sweep.json").write_text("{")
    with pytest.raises(OutputExistsError, match="sweep.json is not valid JSON.*a sweep's plan"):
        run(config)
    (output / "sweep.json").write_text('{"format": {}, "axes": 1}')
    with pytest.raises(OutputExistsError, match="sweep.json is not a sweep's plan: field 'axes'"):
        run(config)


# ---- cells ----------------------------------------------------------------------------------


def test_cells_of_a_seed_start_from_the_same_weights_and_read_the_same_order(
    recipe: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    """What the trainer is built from is what the sweep writes down for train-student."""
    from pipeline.cli.reference import load_command
    from pipeline.student.train_model import _prepare

    config = make_config(recipe, cache, tmp_path, alpha=(0.0, 0.1, 1.0), seed=(0, 1))
    starts: dict[str, list[Any]] = {}
    for job in make_jobs(planned(config), config):
        assert job.train is not None
        settings = {**job.train, "output": str(job.folder / "student")}
        own = load_command("train-student").build(settings, job.name)
        trainer = _prepare(own, open_cache(cache), find_checkpoint(own.student), None, [])
        weights = {
            name: value.clone()
            for name, value in trainer.model.named_parameters()
            if "lora" in name
        }
        batches = [
            [rows["input_ids"].tolist() for rows in step["passes"]]
            for _, step in zip(range(6), iter(trainer.get_train_dataloader()), strict=False)
        ]
        trainer.steps.close()
        starts.setdefault(job.name.partition("@")[2], []).append((weights, batches))
    for cells in starts.values():
        first, *others = cells
        assert first[1]
        assert len(others) == 2
        for weights, batches in others:
            assert batches == first[1]
            assert all(torch.equal(weights[name], first[0][name]) for name in first[0])
    (zero, *_), (one, *_) = starts["0"], starts["1"]
    assert zero[1] != one[1]
    assert any(not torch.equal(zero[0][name], one[0][name]) for name in zero[0])


@pytest.fixture(scope="module")
def whole(
    tiny_model: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted sweep of two alphas and two seeds, two at a time: folder and recipe."""
    folder = tmp_path_factory.mktemp("whole")
    made = recipe.__wrapped__(tiny_model, folder)  # type: ignore[attr-defined]
    config = make_config(made, cache, folder, seed=(0, 1), processes=2)
    config = SweepAlphaConfig(**{**vars(config), "baseline_model": (f"student={tiny_model}",)})
    run(config)
    return folder, made


def numbers(scores: Path) -> dict[str, Any]:
    """What a scores file says, without times, machines and places."""
    document: dict[str, Any] = json.loads(scores.read_text())
    for entry in document["models"].values():
        del entry["seconds"], entry["cost"], entry["made_with"], entry["checkpoint"]
    return document


@pytest.mark.slow
def test_cells_are_trained_evaluated_and_compared(whole: tuple[Path, Any], cache: Path) -> None:
    sweep = whole[0] / "sweep"
    scores = json.loads((sweep / "scores" / "evaluation.json").read_text())
    assert list(scores["models"]) == [
        "student",
        "alpha-0@0",
        "alpha-1@0",
        "alpha-0@1",
        "alpha-1@1",
    ]
    assert scores["comparisons"]["baseline"] == "alpha-0"
    compared = {one["model"] for one in scores["comparisons"]["results"]}
    assert compared <= {"student", "alpha-1"}
    for name in scores["models"]:
        rows = sweep / "scores" / "predictions" / "evaluation" / f"{name}.jsonl"
        assert len(rows.read_text().splitlines()) == 2
    assert "alpha-1@1" in (sweep / "scores" / "evaluation.txt").read_text()
    record = json.loads((sweep / "cells" / "alpha-1@1" / "cell.json").read_text())
    assert record["cache_fingerprint"] == open_cache(cache).fingerprint
    assert (record["state"], record["error"]) == ("done", None)
    assert record["train_s"] > 0
    student = json.loads((sweep / "cells" / "alpha-1@1" / "student" / "run.json").read_text())
    assert student["identity"]["alpha"] == 1.0
    assert student["identity"]["seed"] == 1
    assert student["steps"] == 6


@pytest.mark.slow
def test_the_cost_is_measured_against_an_online_teacher(
    whole: tuple[Path, Any], cache: Path
) -> None:
    folder, recipe = whole
    config = make_config(recipe, cache, folder, seed=(0, 1))
    plan, opened = make_plan(read_sweep_settings(config), config)
    jobs = make_jobs(plan, config)
    cost = measure_cost(plan, opened, jobs)
    assert cost["teacher_pass"] is None
    assert "ratio" not in cost["totals"]
    assert "was not recorded with this cache" in describe_cost(cost)
    tokens = opened.manifest.num_response_tokens
    # Half of the tokens are accounted for: the pass is scaled to all of them.
    record = {"engine_start_seconds": 5.0, "engine_seconds": 30.0, "prompt_tokens": 1}
    record_pass(cache, {**record, "response_tokens": tokens / 2})
    try:
        cost = measure_cost(plan, opened, jobs)
    finally:
        shutil.rmtree(cache / "passes")
    assert cost["teacher_pass"]["seconds"] == 65.0
    assert cost["teacher_pass"]["recorded_share"] == 0.5
    assert cost["cells"]["alpha-0@0"]["online_teacher_s"] == 0
    assert cost["cells"]["alpha-1@0"]["responses"] == 24
    assert cost["cells"]["alpha-1@0"]["online_teacher_s"] == 120.0  # two epochs
    totals = cost["totals"]
    assert totals["online_teacher_s"] == 240
    assert totals["from_cache_s"] == pytest.approx(65 + totals["train_s"])
    assert totals["ratio"] == pytest.approx(
        (65 + totals["train_s"]) / (240 + totals["train_s"]), abs=1e-3
    )
    assert "with the teacher run in every cell" in describe_cost(cost)


@pytest.mark.slow
def test_killed_at_any_moment_it_comes_to_the_same_scores(
    whole: tuple[Path, dict[str, Any]], cache: Path, tmp_path: Path
) -> None:
    folder, recipe = whole
    options = {"alpha": (1.0,), "seed": (0, 1), "processes": 2}
    config = make_config(recipe, cache, tmp_path, **options)
    flags = ["--config", str(config.config), "--cache", str(cache), "--output", config.output]
    flags += ["--alpha", "1", "--seed", "0", "--seed", "1", "--processes", "2"]
    rng = random.Random(7)
    for _ in range(3):
        process = subprocess.Popen([*COMMAND, *flags], stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(5, 25))
        process.kill()
        process.wait()
    run(config)
    name = Path("sweep") / "scores" / "evaluation.json"
    ours, theirs = numbers(tmp_path / name), numbers(folder / name)
    assert ours["settings"] == theirs["settings"]
    assert list(ours["models"]) == ["alpha-1@0", "alpha-1@1"]
    for model, entry in ours["models"].items():
        assert entry == theirs["models"][model]
    assert not list(tmp_path.rglob("*.tmp-*"))


@pytest.mark.slow
def test_done_cells_are_skipped_and_what_is_missing_is_made_again(
    whole: tuple[Path, dict[str, Any]],
    cache: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(whole[0] / "sweep", tmp_path / "sweep")
    options = {"seed": (0, 1), "baseline_model": (f"student={tiny_model}",)}
    config = make_config(whole[1], cache, tmp_path, **options)
    jobs = make_jobs(planned(config), config)
    assert all(is_done(job) for job in jobs)
    assert job_is_done_with(jobs[1], student="elsewhere", report_to="tensorboard")
    assert not job_is_done_with(jobs[1], epochs=3.0)
    other = {name: {**one, "max_new_tokens": 9} for name, one in jobs[1].evaluations.items()}
    assert not is_done(dataclasses.replace(jobs[1], evaluations=other))
    (jobs[1].folder / "evaluate-evaluation.yaml").rename(tmp_path / "told.yaml")
    assert not is_done(jobs[1])
    (tmp_path / "told.yaml").rename(jobs[1].folder / "evaluate-evaluation.yaml")
    _damage(jobs)
    with pytest.raises(SweepError, match=r"1 of 5 failed:\n  alpha-1@0: train: .* other set"):
        run(config)
    printed = capsys.readouterr().out
    assert "2 of 5 are done already, 0 are new" in printed
    assert "alpha-0@1: done" in printed
    assert "alpha-1@0: failed" in printed
    done = [job.name for job in jobs if is_done(job)]
    assert done == ["student", "alpha-0@0", "alpha-0@1", "alpha-1@1"]
    scores = json.loads((tmp_path / "sweep" / "scores" / "evaluation.json").read_text())
    assert list(scores["models"]) == done  # without the one that failed


def job_is_done_with(job: Job, **changes: Any) -> bool:
    """Whether it counts as done when its student is asked for with other settings."""
    assert job.train is not None
    return is_done(dataclasses.replace(job, train={**job.train, **changes}))


def _damage(jobs: list[Job]) -> None:
    by_name = {job.name: job for job in jobs}
    (by_name["alpha-0@1"].folder / "cell.json").unlink()
    by_name["alpha-1@1"].scores_path("evaluation").unlink()
    student = by_name["alpha-1@0"].folder / "student"
    (student / "run.json").write_text('{"command": "train-student", "identity": {}, "finished": 0}')


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_children_and_says_how_to_go_on(
    recipe: dict[str, Any], cache: Path, tmp_path: Path, number: int
) -> None:
    config = make_config(recipe, cache, tmp_path)
    flags = ["--config", str(config.config), "--cache", str(cache), "--output", config.output]
    process = subprocess.Popen(
        [*COMMAND, *flags, "--alpha", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if "alpha-1@0: training" in line:
            break
    child = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "pipeline.sweep.child"],
        capture_output=True,
        text=True,
    ).stdout.split()
    process.send_signal(number)
    output += process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, output
    assert f"Error: stopped by {signal.Signals(number).name}: 0 of 1 are done; the same" in output
    assert "Traceback" not in output
    assert len(child) == 1
    assert not Path(f"/proc/{child[0]}").exists()


# ---- Ray ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no ray here")
def test_on_ray_a_cell_survives_its_killed_worker(
    recipe: dict[str, Any], cache: Path, tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    config = make_config(recipe, cache, tmp_path)
    flags = ["--config", str(config.config), "--cache", str(cache), "--output", config.output]
    try:
        process = subprocess.Popen(
            [*COMMAND, *flags, "--alpha", "1", "--ray"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "RAY_ADDRESS": cluster.address},
        )
        assert process.stdout is not None
        output, killed = "", 0
        for line in process.stdout:
            output += line
            if "alpha-1@0: training" in line and not killed:
                lock = json.loads((tmp_path / "sweep/cells/alpha-1@0/cell.lock").read_text())
                killed = lock["process"]
                os.kill(killed, signal.SIGKILL)
        assert process.wait(timeout=60) == 0, output
    finally:
        cluster.shutdown()
    assert killed
    assert (tmp_path / "sweep/cells/alpha-1@0/train.log").read_text().count("== 20") == 2
    record = json.loads((tmp_path / "sweep/cells/alpha-1@0/cell.json").read_text())
    assert record["state"] == "done", output
    assert "ray: every cell takes {'num_cpus': 1}" in output


def test_without_a_cluster_ray_is_refused(
    config: SweepAlphaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="--ray: no Ray cluster at '127.0.0.1:1'"):
        run(SweepAlphaConfig(**{**vars(config), "ray": True}))
    assert ray_cells._resources([{"Alive": True, "Resources": {"GPU": 2, "CPU": 8}}]) == {
        "num_gpus": 1
    }
    with pytest.raises(ConfigError, match="no node of the Ray cluster has a GPU or a processor"):
        ray_cells._resources([{"Alive": False, "Resources": {"CPU": 8}}])
