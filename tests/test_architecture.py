"""The import rules: who may know whom. They keep the stages apart and --help fast."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("teacher", "student", "evaluation", "report")
SHARED = ("data", "models", "generation", "training", "estimates")
HEAVY = ("torch", "transformers", "vllm", "datasets", "peft", "accelerate", "ray")
HEAVY += ("rouge_score", "sklearn", "lm_eval", "nltk", "matplotlib")
SOURCES = sorted([*ROOT.glob("storage_schema/**/*.py"), *ROOT.glob("pipeline/**/*.py")])


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file imports, anywhere in it, with the line; also by import_module("x")."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:  # `from pipeline import teacher` names pipeline.teacher
                yield f"{node.module}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value, node.lineno


def named(path: Path, *packages: str) -> list[str]:
    """The imports of a file that lie in one of the packages, as "file:line name"."""
    return [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for name, line in imports(path)
        if any(f"{name}.".startswith(f"{package}.") for package in packages)
    ]


def violations(folder: str, *packages: str) -> list[str]:
    return [
        line for path in sorted((ROOT / folder).rglob("*.py")) for line in named(path, *packages)
    ]


def test_the_walk_sees_imports_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import a.b\nfrom c import d\ndef f():\n    import e\n    importlib.import_module('g.h')\n"
    )
    assert list(imports(path)) == [("a.b", 1), ("c.d", 2), ("e", 4), ("g.h", 5)]
    assert len(SOURCES) > 20


@pytest.mark.parametrize("stage", STAGES)
def test_stages_never_import_each_other(stage: str) -> None:
    assert (ROOT / "pipeline" / stage).is_dir()
    others = [f"pipeline.{other}" for other in STAGES if other != stage]
    assert violations(f"pipeline/{stage}", *others, "pipeline.cli") == []


@pytest.mark.parametrize("package", SHARED)
def test_shared_packages_know_no_stage_and_no_command(package: str) -> None:
    assert (ROOT / "pipeline" / package).is_dir()
    stages = [f"pipeline.{stage}" for stage in STAGES]
    assert violations(f"pipeline/{package}", *stages, "pipeline.cli") == []


def test_only_the_teacher_and_generation_name_vllm() -> None:
    allowed = ("pipeline/teacher/", "pipeline/generation/")
    elsewhere = [path for path in SOURCES if not any(part in path.as_posix() for part in allowed)]
    assert [line for path in elsewhere for line in named(path, "vllm")] == []


def test_a_sweep_runs_the_commands_and_imports_no_stage() -> None:
    assert violations("pipeline/sweep", *(f"pipeline.{stage}" for stage in STAGES)) == []


def test_only_the_teacher_and_sweeps_name_ray() -> None:
    allowed = ("pipeline/teacher/", "pipeline/sweep/", "pipeline/ray_cluster.py")
    elsewhere = [path for path in SOURCES if not any(part in path.as_posix() for part in allowed)]
    assert [line for path in elsewhere for line in named(path, "ray")] == []


def test_the_contract_imports_only_numpy_pyarrow_and_fsspec() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "pyarrow", "fsspec", "storage_schema"}
    found = {
        f"{path.name}:{line} {name}"
        for path in (ROOT / "storage_schema").rglob("*.py")
        for name, line in imports(path)
        if name.partition(".")[0] not in allowed
    }
    assert found == set()


def loaded_after(program: str) -> dict[str, list[str]]:
    """Run a program that prints, as its last line, a JSON object of lists of loaded modules."""
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    return json.loads(output.splitlines()[-1])


def test_importing_the_contract_loads_nothing_heavy() -> None:
    refused = (*HEAVY, "click", "pipeline", "pandas")
    program = (
        "import json, sys, storage_schema\n"
        f"print(json.dumps({{'all': sorted({set(refused)!r} & set(sys.modules))}}))"
    )
    assert loaded_after(program) == {"all": []}


def test_help_of_every_command_loads_nothing_heavy() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    program = f"""
import importlib, json, sys
loaded = {{}}
for name, place in {scripts!r}.items():
    module, function = place.split(":")
    try:
        getattr(importlib.import_module(module), function)(["--help"])
    except SystemExit as end:
        assert end.code == 0, (name, end.code)
    loaded[name] = sorted({set(HEAVY)!r} & set(sys.modules))
print(json.dumps(loaded))
"""
    assert loaded_after(program) == {name: [] for name in scripts}
