"""What a scores file that grows is compared with: as asked, else as before, and said if changed."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.evaluation.baselines import Baselines, pick_baselines
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.scores_file import predictions_path

STORED = {"baseline": "sft", "baseline_of": {"slow": "sft-slow"}}


def pick(path: Path, model: str, there: str = "sft sft-slow slow", **changes: Any) -> Baselines:
    """The baselines of a run that adds `model` to a scores file with the models `there`."""
    output = path / "b.json"
    output.write_text("{}")  # that it is there is all that the settings look at
    for name in there.split():
        predictions_path(output, name).parent.mkdir(parents=True, exist_ok=True)
        predictions_path(output, name).touch()
    scores = {"models": dict.fromkeys(there.split(), {}), "comparisons": changes.pop("stored", {})}
    asked = EvaluateStudentConfig(data="d", model=(f"{model}=m",), output=str(output), **changes)
    return pick_baselines(asked, scores, output)


def test_a_model_added_later_is_compared_with_the_files_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pick(tmp_path, "kd", stored=STORED) == Baselines("sft", {"slow": "sft-slow"})
    assert pick(tmp_path, "kd@1", stored={"baseline": "sft"}) == Baselines("sft", {})
    assert capsys.readouterr().out == ""
    assert pick(tmp_path, "kd") == Baselines("kd", {})  # a sweep's file, not yet compared


def test_a_baseline_may_be_in_the_file_alone_and_its_change_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"baseline": "slow", "baseline_of": ("kd=sft",)}
    assert pick(tmp_path, "kd", stored=STORED, **asked) == Baselines("slow", {"kd": "sft"})
    assert capsys.readouterr().out == (
        "models are now compared with slow, kd with sft; until now with sft, slow with sft-slow\n"
    )
    assert pick(tmp_path, "kd", "sft", baseline="sft") == Baselines("sft", {})
    assert capsys.readouterr().out == ""


def test_a_stored_baseline_without_predictions_gives_way_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pick(tmp_path, "kd", "slow", stored=STORED) == Baselines("kd", {})
    assert "now compared with kd; until now with sft, slow" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"baseline": "smooth"}, "--baseline 'smooth': no --model and no model in .*b.json has "),
        ({"baseline": "smooth"}, "has that name; there are kd, sft, sft-slow, slow"),
        ({"baseline_of": ("kd=x",)}, "--baseline-of kd=x: no --model and no model in .*b.json has"),
        ({"model": "slow@1"}, "--model slow@1: the arm 'slow' is there as 'slow' too, and seeds"),
    ],
)
def test_names_that_are_nowhere_and_arms_in_two_forms_are_refused(
    tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    with pytest.raises(ConfigError, match=found):
        pick(tmp_path, **{"model": "kd", **changes})
