"""Settings of evaluate-student: names of models, ranges."""

import pytest

from pipeline.errors import ConfigError
from pipeline.evaluation.config import EvaluateStudentConfig, name_models


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


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((), "--model"),
        (("a/x", "b/x"), "'b/x': the name 'x' is already taken by 'a/x'"),
        (("..",), "'..'"),
        (("name=",), "'name='"),
        ((".hidden=/m",), "'.hidden'"),
        (("two words=/m",), "'two words'"),
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
        ({"dtype": "float8"}, "--dtype 'float8'"),
        ({"output": "scores"}, "--output 'scores'"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, object], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        make(**changes)
