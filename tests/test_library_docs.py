"""docs/library.md is run as it stands: its blocks in order, in one namespace, on a tiny model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "library.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.mark.slow
def test_every_block_runs(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in (("train", 6), ("test", 3)):
        rows = [
            {"prompt": f"Return the sum of {n} {name}", "completion": f"a number like {n}"}
            for n in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    namespace: dict[str, Any] = {"__name__": "notebook"}
    for number, block in enumerate(blocks()):
        code = block.replace('"org/teacher", "org/student"', f'"{tiny_model}", "{tiny_model}"')
        exec(compile(code, f"{PAGE.name}, block {number}", "exec"), namespace)
    assert len(namespace["cache"]) == 6
    assert namespace["rows"].num_rows == 6
    assert "log_tail_mass" in namespace["rows"].column_names
    assert set(namespace["scores"]["models"]) == {"sft", "kd"}
    assert {"alpha-0@0", "alpha-1@0"} <= set(namespace["swept"]["cells"])
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert namespace["model"].get_input_embeddings().weight.grad is not None


def test_the_page_covers_every_command() -> None:
    from pipeline.cli.config_file import COMMANDS

    text = PAGE.read_text(encoding="utf-8")
    missing = [n for n in COMMANDS if n not in text and f"{n.replace('-', '_')}(" not in text]
    assert missing == []
