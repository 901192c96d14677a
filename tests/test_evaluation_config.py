"""Settings of evaluate-student: names of models, ranges."""

import pytest

from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluateStudentConfig, name_models, split_name


def make(**changes: object) -> EvaluateStudentConfig:
    return EvaluateStudentConfig(
        **{"data": "d.jsonl", "model": ("runs/student",), "output": "scores.json", **changes}
    )


def test_a_model_is_named_by_its_last_component_or_by_hand() -> None:
    named = name_models(("runs/kd/", "org/Model-0.5B", "best=/models/x", "runs/alpha=0.1"))
    assert named == {
        "kd": "runs/kd/",
        "Model-0.5B": "org/Model-0.5B",
        "best": "/models/x",
        "alpha=0.1": "runs/alpha=0.1",
    }


def test_a_name_may_end_in_a_training_seed() -> None:
    assert name_models(("kd@17=runs/a", "runs/kd@3")) == {"kd@17": "runs/a", "kd@3": "runs/kd@3"}
    assert split_name("alpha-0.1@17") == ("alpha-0.1", "17")
    assert split_name("alpha-0.1") == ("alpha-0.1", "")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((), "--model"),
        (("a/x", "b/x"), "'b/x': the name 'x' is already taken by 'a/x'"),
        (("..",), "'..'"),
        (("name=",), "'name='"),
        ((".hidden=/m",), "'.hidden'"),
        (("two words=/m",), "'two words'"),
        (("kd@=/m",), "'kd@'"),
        (("kd@1@2=/m",), "'kd@1@2'"),
        (("@1=/m",), "'@1'"),
        (("a=/m", "a@0=/m", "b=/m"), "--model a: the arm 'a' is there as 'a@0' too, and seeds"),
    ],
)
def test_bad_model_values_are_refused(values: tuple[str, ...], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        make(model=values)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens 0"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"ece_bins": 0}, "--ece-bins 0"),
        ({"temperature": -0.1}, "--temperature -0.1 must be at least 0"),
        ({"top_p": 0.9}, "--top-p 0.9 has no effect at --temperature 0"),
        ({"stop": ("\\n",)}, r"--stop '\\n' is a backslash and an n"),
        ({"engine": "tgi"}, "--engine 'tgi': must be one of auto, vllm, transformers"),
        ({"dtype": "float8"}, "--dtype 'float8'"),
        ({"output": "scores"}, "--output 'scores'"),
        (
            {"baseline": "sft", "model": ("kd@1=a", "kd@2=b", "x")},
            "--baseline 'sft': no --model has that name; there are kd, x",
        ),
        (
            {"baseline_of": ("kd=sft",), "model": ("kd=a", "x")},
            "--baseline-of kd=sft: no --model has one of these names; expected ARM=BASELINE, each "
            "one of kd, x",
        ),
        ({"baseline_of": ("x=x",), "model": ("x",)}, "--baseline-of x=x: an arm is not compared"),
        (
            {"baseline_of": ("x=y", "x=z"), "model": ("x", "y", "z")},
            "--baseline-of x=z: 'x' has the baseline 'y' already; give one for each arm",
        ),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, object], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        make(**changes)
