"""The commands as a user meets them: help, config files, errors, exit codes, the reference."""

import dataclasses
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli.config_file import COMMANDS, CONFIG_SECTIONS
from pipeline.cli.recipe import find_recipe, read_recipe
from pipeline.cli.reference import load_command, render_reference
from pipeline.errors import ConfigError

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch",
    "transformers",
    "vllm",
    "datasets",
    "peft",
    "accelerate",
    "rouge_score",
    "ray",
    "matplotlib",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_answers_at_once_and_loads_nothing_heavy(name: str) -> None:
    module = f"pipeline.cli.{name.replace('-', '_')}"
    code = (
        f"import sys; from {module} import main\n"
        "try: main(['--help'])\n"
        "finally: print('LOADED', sorted({m.split('.')[0] for m in sys.modules}))"
    )
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    seconds = time.monotonic() - start
    text, _, loaded = result.stdout.partition("LOADED")
    assert "Usage:" in text, result.stderr
    assert not HEAVY & set(eval(loaded)), loaded
    assert seconds < 5  # a loaded CI machine; measured alone it is 0.3 s


def test_reference_page_is_what_the_commands_say() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == render_reference()


def test_every_console_script_is_a_documented_command() -> None:
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == set(COMMANDS) == set(CONFIG_SECTIONS) - {"run", "evaluations"}
    for name, target in scripts.items():
        module, attribute = target.split(":")
        assert isinstance(getattr(importlib.import_module(module), attribute), click.Command), name


def test_every_flag_is_listed_here_so_that_none_appears_by_accident() -> None:
    flags = {name: {p.name for p in load_command(name).params} for name in COMMANDS}
    data = {"data", "template", "prompt_field", "context_field", "response_field"}
    data |= {"max_examples", "max_prompt_tokens", "max_sequence_tokens"}
    every = {"config", "as_json"}
    training = {"tuning", "lora_rank", "lora_alpha", "lora_dropout", "epochs", "max_steps"}
    training |= {"learning_rate", "batch_size", "gradient_accumulation_steps", "warmup_ratio"}
    training |= {"lr_schedule", "weight_decay", "max_grad_norm", "seed", "save_every_steps"}
    training |= {"gradient_checkpointing", "dtype", "trust_remote_code", "revision", "report_to"}
    training |= {"merge", "batching", "eval_share", "early_stopping_patience", "dry_run"}
    assert flags["finetune-teacher"] == data | training | every | {
        "model",
        "output",
        "group_by_length",
    }
    assert flags["generate-responses"] == data | every | {
        "model",
        "output",
        "max_new_tokens",
        "temperature",
        "top_p",
        "samples_per_prompt",
        "seed",
        "stop",
        "keep_cut",
        "engine",
        "batch_size",
        "dtype",
        "tensor_parallel_size",
        "gpu_memory_utilization",
        "revision",
        "trust_remote_code",
    }
    assert flags["train-student"] == training | every | {
        "student",
        "cache",
        "output",
        "alpha",
        "alpha_mode",
        "alpha_schedule",
        "normalize_loss",
        "label_smoothing",
        "tail",
        "divergence",
        "temperature",
        "teacher_temperature",
        "top_k",
        "min_prob",
        "local_copy",
        "batch_tokens",
        "from_scratch",
        "fsdp",
    }
    engine = {"engine", "batch_tokens", "tensor_parallel_size", "gpu_memory_utilization"}
    engine |= {"teacher", "revision", "trust_remote_code", "vllm_route"}
    assert flags["precompute-logits"] == data | engine | every | {
        "output",
        "support",
        "k",
        "min_prob",
        "num_samples",
        "seed",
        "store_entropy",
        "codec",
        "num_partitions",
        "partition",
        "ray",
        "dry_run",
        "dtype",
        "examples_per_shard",
    }
    assert flags["verify-cache"] == engine | every | {"cache", "allow_incomplete", "rescore"}
    assert flags["fit-lookback-lens"] == data | every | {
        "model",
        "output",
        "spans_field",
        "window",
        "folds",
        "dtype",
        "trust_remote_code",
    }
    assert flags["sweep-alpha"] == every | {
        "student",
        "cache",
        "output",
        "alpha",
        "seed",
        "axis",
        "baseline_model",
        "processes",
        "ray",
        "dry_run",
    }
    assert flags["build-report"] == every | {
        "sweep",
        "scores",
        "cache",
        "token_examples",
        "example",
        "output",
    }
    assert flags["evaluate-student"] == data | every | {
        "lookback_lens",
        "engine",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "gpu_memory_utilization",
        "model",
        "output",
        "max_new_tokens",
        "batch_size",
        "ece_bins",
        "baseline",
        "baseline_of",
        "judge",
        "validate_judge",
        "judge_validation",
        "task",
        "dtype",
        "trust_remote_code",
    }


def run_cli(name: str, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(load_command(name), list(arguments))
    return result.exit_code, result.output


def test_exit_codes_and_messages(tmp_path: Path) -> None:
    code, output = run_cli("train-student", "--student", "x")
    assert code == 2
    assert "Missing option '--cache'" in output
    common = ["--student", "x", "--cache", str(tmp_path / "none"), "--output", str(tmp_path / "o")]
    code, output = run_cli("train-student", *common, "--alpha", "-1")
    assert code == 2, output
    assert "--alpha -1.0" in output
    code, output = run_cli("train-student", *common, "--alpha", "1")
    assert code == 1, output
    assert "Error: no logit cache at" in output
    assert "Traceback" not in output


def test_what_the_system_refuses_is_said_in_a_line(tmp_path: Path, tiny_model: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "say the sum", "completion": "two numbers"}) + "\n")
    arguments = ["--teacher", str(tiny_model), "--data", str(data), "--engine", "transformers"]
    arguments += ["--k", "4", "--max-prompt-tokens", "60", "--max-sequence-tokens", "90"]
    code, output = run_cli("precompute-logits", *arguments, "--output", str(data / "cache"))
    assert code == 1
    assert "Not a directory" in output
    assert "Traceback" not in output


def test_ctrl_c_ends_a_command_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(config: object) -> None:
        raise KeyboardInterrupt

    stage = importlib.import_module("pipeline.student.train")
    monkeypatch.setattr(stage, "run", stopped)
    arguments = ["--student", "s", "--cache", "c", "--output", "o", "--alpha", "1"]
    code, output = run_cli("train-student", *arguments)
    assert code == 130
    assert output == "Error: stopped by Ctrl-C; the same command goes on where it can\n"


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    common = ["--student", "x", "--cache", "~/none", "--output", "~/o", "--alpha", "1"]
    code, output = run_cli("train-student", *common)
    assert code == 1
    assert f"no logit cache at {tmp_path / 'none'}" in output


def test_config_file_gives_defaults_and_flags_override(tmp_path: Path) -> None:
    cache = tmp_path / "from-file"
    config = tmp_path / "my.yaml"
    section = {"student": "x", "cache": str(cache), "alpha": 0.5, "output": str(tmp_path / "o")}
    config.write_text(yaml.safe_dump({"train-student": section}))
    code, output = run_cli("train-student", "--config", str(config))
    assert code == 1
    assert f"no logit cache at {cache}" in output
    code, output = run_cli("train-student", "--config", str(config), "--cache", str(tmp_path / "b"))
    assert f"no logit cache at {tmp_path / 'b'}" in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train-student: {batch_size: [1, 2]}", "batch_size is [1, 2], expected int"),
        ("train-student: {batch_size: true}", "train-student: batch_size is True, expected int"),
        ("train-student: {max-steps: 1.7}", "train-student: max_steps is 1.7, expected int"),
        ("train-student: {student: [a]}", "train-student: student is ['a'], expected str"),
        ("train-student: {alphas: 1}", "train-student has no setting 'alphas'; it has alpha,"),
        (
            "train-studnet: {alpha: 1}",
            "unknown section 'train-studnet', expected run, eval",
        ),
        ("- 1", "holds a list, expected sections"),
        ("train-student: 3", "section train-student is 3, expected settings"),
        ("a: [", "is not valid YAML"),
        ("train-student: {alpha: }", "train-student: alpha is null, expected float"),
        ("train-student: {student: null}", "train-student: student is null, expected str"),
        ("train-student: {merge: 1}", "train-student: merge is 1, expected bool"),
        ("train-student: {alpha: 1, alpha: 2}", "'alpha' is there twice; remove one"),
        ("train-student: {seed: 1}\ntrain-student: {alpha: 1}", "'train-student' is there twice"),
        ("train-student: {max_steps: 1, max-steps: 2}", "has 'max-steps' twice, with - and with _"),
        ("train-student: {student: '', cache: c, output: o, alpha: 1}", "--student is empty"),
    ],
)
def test_wrong_config_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(text)
    code, output = run_cli("train-student", "--config", str(config))
    assert code == (2 if message.startswith("--") else 1)
    assert message in output


def test_json_output_is_json_and_nothing_else(tmp_path: Path, tiny_model: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "say the sum", "completion": "two numbers"}) + "\n")
    arguments = ["--teacher", str(tiny_model), "--data", str(data), "--engine", "transformers"]
    arguments += ["--output", str(tmp_path / "cache"), "--k", "4", "--max-prompt-tokens", "60"]
    arguments += ["--max-sequence-tokens", "90", "--json"]
    result = CliRunner().invoke(load_command("precompute-logits"), arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_examples"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep-alpha: {seed: [0, 0.5]}", "sweep-alpha: seed is [0, 0.5], expected int"),
        ("sweep-alpha: {alpha: [true]}", "sweep-alpha: alpha is [True], expected float"),
        ("sweep-alpha: {alpha: [0, null]}", "sweep-alpha: alpha is [0, None], expected float"),
        ("sweep-alpha: {axis: [[tail]]}", "sweep-alpha: axis is [['tail']], expected str"),
        ("sweep-alpha: {config: x.yaml}", "sweep-alpha has no setting 'config'; it has alpha,"),
    ],
)
def test_lists_in_config_files_are_checked_value_by_value(
    tmp_path: Path, text: str, message: str
) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(text)
    code, output = run_cli("sweep-alpha", "--config", str(config))
    assert code == 1
    assert message in output


def test_a_single_value_is_a_list_of_one(tmp_path: Path) -> None:
    command = load_command("sweep-alpha")
    config = command.build({"cache": "c", "output": "o", "alpha": 2, "seed": 7}, "here")
    assert (config.alpha, config.seed, config.config) == ((2.0,), (7,), None)
    with pytest.raises(ConfigError, match="here has no setting 'alphas'; it has alpha"):
        command.build({"alphas": 2}, "here")
    with pytest.raises(ConfigError, match="here: --processes 0 must be at least 1"):
        command.build({"cache": "c", "output": "o", "processes": 0}, "here")


def test_demo_recipe_is_read_and_fits_the_commands() -> None:
    path = find_recipe("demo")
    assert path == ROOT / "pipeline" / "recipes" / "demo.yaml"
    assert read_recipe(path) == {
        "config": str(path),
        "output": "runs/demo",
        "demo_model": "runs/demo/model",
        "baselines": "student teacher",
        "student": "runs/demo/model",
        "teacher": "runs/demo/teacher",
        "finetune": "yes",
        "generate": "",
    }


def test_recipes_are_found_by_name_or_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'dema': there are .*demo.*ending in .yaml"):
        find_recipe("dema")
    with pytest.raises(ConfigError, match="no recipe at .*none.yaml"):
        find_recipe(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": {}}, "run.output is None, expected a directory name"),
        ({"run": {"output": "o", "alphas": [1]}}, "run has no setting 'alphas'; it has baselines"),
        ({"run": {"output": "o", "baselines": ["x"]}}, r"run.baselines is \['x'\], expected a li"),
        ({"train-student": {}}, "train-student names no student"),
        ({"precompute-logits": {}}, "no teacher: give a section finetune-teacher"),
        (
            {"train-student": {"student": "s", "epochs": "x"}},
            "recipe.yaml: alpha-0@0: Invalid value for '--ep",
        ),
        ({"sweep-alpha": {"alpha": [-1]}}, "recipe.yaml: sweep-alpha: --alpha -1.0 must"),
        ({"sweep-alpha": {"alpha": ["x"]}}, "recipe.yaml: sweep-alpha: Invalid value for '--alp"),
        ({"sweep-alpha": {"axis": "tail=x"}}, "--axis tail=x: Invalid value for '--tail': 'x' is"),
        ({"sweep-alpha": {"axis": "top-k=0"}}, r"alpha-0.01,top-k-0@0: --top-k 0"),
        ({"sweep-alpha": {"cache": "c"}}, "sweep-alpha.cache is given by run_all.sh"),
        ({"run": {"output": ""}}, "run.output is '', expected a directory name"),
        ({"train-student": 3}, "section train-student is 3, expected settings"),
        (
            {"train-student": {"student": "s", "alpha": 1}},
            "train-student.alpha is given by sweep-alpha",
        ),
        (
            {"evaluate-student": {"data": "d", "model": "m"}},
            "evaluate-student.model is given by sweep-alpha, which would ignore 'm'",
        ),
        ({"evaluate-student": {}}, "evaluate-student: --data is '': expected a file"),
        ({"evaluations": {"a/b": {}}}, "evaluations.a/b: a name becomes a file name"),
        ({"evaluations": {"x": {"dat": 1}}}, "evaluations.x has no setting 'dat'; it has base"),
        ({"evaluations": [1]}, r"evaluations is \[1\], expected a name and its settings"),
        (
            {"evaluate-student": {"data": "d", "baseline": "alpha-5"}},
            "--baseline 'alpha-5': no --model has that name; there are student, alpha-0, "
            "alpha-0.01, alpha-0.1, alpha-1, alpha-10",
        ),
        ({"evaluate-student": {"data": "d", "batch-size": 0}}, "evaluate-student: --batch-size 0"),
        (
            {"finetune-teacher": {"data": "d"}, "precompute-logits": {"data": "d"}},
            "finetune-teacher: Missing option '--model'",
        ),
        ({"finetune-teacher": {"model": "m"}}, "precompute-logits.teacher is given by run_all"),
    ],
)
def test_wrong_recipes_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    recipe = {
        "run": {"output": "o"},
        "precompute-logits": {"teacher": "t", "data": "d"},
        "train-student": {"student": "s"},
        "evaluate-student": {"data": "d"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert read_recipe(path)["teacher"] == "t"
    assert read_recipe(path)["finetune"] == ""
    path.write_text(yaml.safe_dump({**recipe, **change}))
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_every_setting_has_a_help_text() -> None:
    for name in COMMANDS:
        for parameter in load_command(name).params:
            assert isinstance(parameter, click.Option)
            assert parameter.help, (name, parameter.name)
            assert parameter.help[0].isupper(), (name, parameter.name, parameter.help)
            assert parameter.help.endswith("."), (name, parameter.name, parameter.help)


def test_config_classes_are_frozen() -> None:
    from pipeline.student.config import TrainStudentConfig

    config = TrainStudentConfig(student="a", cache="b", output="c", alpha=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.alpha = 2.0  # type: ignore[misc]
