"""The cells of a sweep: names, axes, what alpha 0 does not need, and how many steps they take."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.reference import load_command
from pipeline.errors import ConfigError
from pipeline.student.alpha import AlphaSettings
from pipeline.student.config import TrainStudentConfig
from pipeline.student.kl_settings import KlSettings
from pipeline.sweep.config import SweepAlphaConfig, split_axes
from pipeline.sweep.grid import KL_SETTINGS, count_steps, make_cells, name_arm, read_axes
from pipeline.sweep.plan import read_sweep_settings


def config(**changes: Any) -> SweepAlphaConfig:
    return SweepAlphaConfig(**{"cache": "c", "output": "o", "student": "s", **changes})


def axes(**changes: Any) -> dict[str, list[Any]]:
    return read_axes(config(**changes), load_command("train-student"))


def names(**changes: Any) -> list[str]:
    return [cell.name for cell in make_cells(axes(**changes), changes.get("seed", (0,)))]


def test_the_first_seed_comes_first_and_names_are_plain() -> None:
    assert names(alpha=(0.0, 0.1, 10.0), seed=(0, 3)) == [
        "alpha-0@0",
        "alpha-0.1@0",
        "alpha-10@0",
        "alpha-0@3",
        "alpha-0.1@3",
        "alpha-10@3",
    ]


def test_axes_multiply_but_those_of_the_kl_term_not_alpha_0() -> None:
    assert names(alpha=(0.0, 0.1), axis=("tail=ghost,label", "--top-k=8,null")) == [
        "alpha-0@0",
        "alpha-0.1,tail-ghost,top-k-8@0",
        "alpha-0.1,tail-ghost,top-k-null@0",
        "alpha-0.1,tail-label,top-k-8@0",
        "alpha-0.1,tail-label,top-k-null@0",
    ]
    assert names(alpha=(0.0,), axis=("learning-rate=1e-5,2e-4", "tail=ghost,label")) == [
        "alpha-0,learning-rate-1e-05@0",
        "alpha-0,learning-rate-0.0002@0",
    ]


def test_values_have_the_type_of_their_setting() -> None:
    found = axes(axis=("batch-size=4,8", "normalize_loss=true,false", "top-k=null,8"))
    assert found["batch_size"] == [4, 8]
    assert found["normalize_loss"] == [True, False]
    assert found["top_k"] == [None, 8]
    assert name_arm({"alpha": 1.0, "normalize_loss": True}) == "alpha-1,normalize-loss-true"


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("tails=ghost", "--axis tails=ghost: train-student has no setting 'tails'; it has alpha,"),
        ("tail=ghost,foo", "--axis tail=ghost,foo: Invalid value for '--tail': 'foo' is not one"),
        ("top-k=8,8.5", "--axis top-k=8,8.5: Invalid value for '--top-k': '8.5' is not a valid"),
        ("batch-size=null", "--axis batch-size=null: Invalid value for '--batch-size': 'null'"),
        ("seed=0,1", "--axis seed: sweep-alpha sets it; use --seed"),
    ],
)
def test_wrong_axes_are_named(axis: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        axes(axis=(axis,))


@pytest.mark.parametrize("axis", ["tail", "tail=", "=ghost", "tail=ghost,,label"])
def test_an_axis_is_a_name_and_values(axis: str) -> None:
    with pytest.raises(ConfigError, match=f"--axis '{axis}': expected NAME=V1,V2"):
        split_axes([axis])


def test_nothing_is_given_twice() -> None:
    with pytest.raises(ConfigError, match="the axis top_k is given twice"):
        split_axes(["top-k=1", "top_k=2"])
    with pytest.raises(ConfigError, match="--axis tail ghost is given twice"):
        split_axes(["tail=ghost,ghost"])
    with pytest.raises(ConfigError, match="--alpha 0.1 is given twice"):
        config(alpha=(0.1, 0.1))
    with pytest.raises(ConfigError, match="--seed has no value"):
        config(seed=())
    with pytest.raises(ConfigError, match="would both be named alpha-1,min-prob-0"):
        make_cells(
            {"alpha": [1.0], "min_prob": [0, 0.0], "top_k": [1]} | {"min_prob": [0, "0"]}, [0]
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": (-0.1,)}, "--alpha -0.1 must be at least 0"),
        ({"alpha": (float("nan"),)}, "--alpha nan must be at least 0"),
        ({"processes": 0}, "--processes 0 must be at least 1"),
        ({"processes": 2, "ray": True}, "--ray places the cells itself, --processes is 2"),
        ({"output": "s3://bucket/sweep"}, "--output s3://bucket/sweep is a URL"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_a_setting_no_student_has_is_named_with_its_section(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("train-student: {student: x, tails: ghost}\n")
    with pytest.raises(ConfigError, match="my.yaml: train-student has no setting 'tails'; it has"):
        read_sweep_settings(config(config=str(file)))


def test_the_settings_of_the_kl_term_are_those_the_trainer_gives_it() -> None:
    """A new one must be listed, or alpha 0 would be trained several times for nothing."""
    known = {field.name for field in dataclasses.fields(TrainStudentConfig)}
    shaping = inspect.getsource(TrainStudentConfig.kl_settings.fget) + inspect.getsource(  # type: ignore[attr-defined]
        TrainStudentConfig.alpha_settings.fget  # type: ignore[attr-defined]
    )
    used = {name for name in known if f"self.{name}" in shaping}
    assert len(used) == len(dataclasses.fields(KlSettings)) + len(dataclasses.fields(AlphaSettings))
    assert set(KL_SETTINGS) == used - {"alpha"}


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 48),
        ({"max_steps": 7}, 7),
        ({"epochs": 1.5}, 24),
        ({"batch_size": 4, "gradient_accumulation_steps": 3}, 33),
        ({"eval_share": 0.5}, 24),
    ],
)
def test_steps_are_counted_as_the_trainer_does(changes: dict[str, Any], steps: int) -> None:
    settings = TrainStudentConfig(student="s", cache="c", output="o", alpha=1.0, **changes)
    assert count_steps(dataclasses.asdict(settings), 127) == steps
