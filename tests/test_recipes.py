"""Every packaged recipe: all of its settings are the commands', and it can be planned offline."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.dry_run import dry_run_recipe, estimate_recipe
from pipeline.cli.recipe import find_recipe, read_recipe
from pipeline.errors import ConfigError

RECIPES = Path(__file__).parent.parent / "pipeline" / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes name places relative to the folder a command is called from: an empty one here."""
    monkeypatch.chdir(tmp_path)


def test_the_recipes_that_there_are() -> None:
    assert NAMES == [
        "demo",
        "llama-2",
        "llama-2-sequence",
        "llama-3.1",
        "precursor-dialogsum",
        "precursor-pubmedqa",
        "question-adaptive-alpha",
        "question-alpha",
        "question-calibration",
        "question-controls",
        "question-factuality",
        "question-pretraining",
        "question-sampled",
        "question-support",
        "question-teacher-noise",
        "question-teacher-quality",
        "qwen2.5",
        "smollm2",
        "smollm2-135m",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_planned_offline(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read_recipe(find_recipe(name))
    estimates = dry_run_recipe(recipe)
    assert "precompute-logits" in estimates
    assert estimates["sweep-alpha, all of it"]["cells"] > 1
    text = capsys.readouterr().out
    assert "(expected)" in text
    assert f"{estimates['sweep-alpha, all of it']['cells']} students trained" in text
    assert ("generate-responses" in estimates) == (recipe["generate"] == "yes")
    # Everything that is asked of a GPU fits one of those there are.
    assert all(estimate["fits"] for estimate in estimates.values()), text
    assert recipe["output"] == f"runs/{name}"


def sections(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_no_command_has_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for section in sections(name):
        if section == "evaluations":
            continue
        changed = sections(name)
        changed[section]["no-such-setting"] = 1
        path.write_text(yaml.safe_dump(changed))
        with pytest.raises(ConfigError, match="recipe.yaml: .*no.such.setting"):
            read_recipe(path)
    changed = sections(name)
    changed["evaluations"] = {"x": {**(changed["evaluate-student"]), "no-such-setting": 1}}
    path.write_text(yaml.safe_dump(changed))
    with pytest.raises(ConfigError, match=r"evaluations.x.*no.such.setting"):
        read_recipe(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_reads_what_the_one_before_wrote(name: str) -> None:
    """The same prompts all the way: other limits or templates would make another comparison."""
    recipe = sections(name)
    shared = ("template", "max-prompt-tokens", "max-sequence-tokens")
    stages = ("finetune-teacher", "generate-responses", "precompute-logits")
    found = {tuple(recipe[s].get(key) for key in shared) for s in stages if s in recipe}
    assert len(found) == 1
    if "finetune-teacher" in recipe and recipe["finetune-teacher"]["data"].startswith("runs/"):
        assert recipe["finetune-teacher"]["model"] == recipe["train-student"]["student"]


def test_rows_that_cannot_be_counted_must_be_stated(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    changed = sections("smollm2")
    changed["run"]["expected"] = {}
    path.write_text(yaml.safe_dump(changed))
    with pytest.raises(ConfigError, match=r"rows of databricks/databricks-dolly-15k cannot be co"):
        estimate_recipe(read_recipe(path))
    changed["run"]["expected"] = 3
    path.write_text(yaml.safe_dump(changed))
    with pytest.raises(ConfigError, match="run.expected is 3, expected datasets"):
        estimate_recipe(read_recipe(path))


def test_rows_are_counted_where_data_and_tokenizer_are_here(
    tmp_path: Path, tiny_model: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "say the sum", "completion": "two numbers"}\n' * 2)
    limits = {"data": str(data), "max-prompt-tokens": 60, "max-sequence-tokens": 90}
    path = tmp_path / "recipe.yaml"
    recipe = {
        "run": {"output": "o"},
        "finetune-teacher": {"model": str(tiny_model), **limits},
        "train-student": {"student": str(tiny_model)},
        "evaluate-student": limits,
        "precompute-logits": limits,
    }
    path.write_text(yaml.safe_dump(recipe))
    found = estimate_recipe(read_recipe(path))
    assert found["precompute-logits"]["rows_are"] == "counted"
    assert found["precompute-logits"]["rows"] == 1  # the second is a duplicate


def test_a_recipe_that_generates_names_no_data_to_score(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    changed = sections("llama-2-sequence")
    changed["precompute-logits"]["data"] = "x.jsonl"
    path.write_text(yaml.safe_dump(changed))
    with pytest.raises(ConfigError, match="precompute-logits.data is given by run_all.sh"):
        read_recipe(path)


@pytest.mark.slow
def test_the_command_line_of_a_dry_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli.recipe", "--dry-run"]
    done = subprocess.run([*command, "qwen2.5"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"32,763,876,352 parameters", done.stdout)
    assert list(tmp_path.iterdir()) == []
    wrong = subprocess.run([*command, "none"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "no recipe 'none': there are demo, llama-2," in wrong.stderr


def test_the_table_of_the_docs_is_what_the_recipes_give() -> None:
    from pipeline.cli.recipe_table import render_table

    page = (RECIPES.parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = page.split("recipe_table -->\n")[1].split("\n<!-- end")[0]
    assert table == render_table()
