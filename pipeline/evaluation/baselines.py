"""Which arm the others are compared with: as asked, else as the scores file has it.

A run that adds a model to the file therefore does not turn its comparisons round.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluation.config import (
    EvaluateStudentConfig,
    check_baselines,
    check_seeds,
    name_models,
    split_name,
)
from pipeline.evaluation.scores_file import predictions_path


@dataclass(frozen=True, slots=True)
class Baselines:
    """The arm that the others are compared with, and {arm: another one} where it has its own."""

    baseline: str
    baseline_of: dict[str, str]

    def __str__(self) -> str:
        """What is compared with what, in words."""
        own = (f", {arm} with {name}" for arm, name in self.baseline_of.items())
        return f"with {self.baseline}" + "".join(own)


def pick_baselines(
    config: EvaluateStudentConfig, scores: dict[str, Any], output: Path
) -> Baselines:
    """Return the baselines asked for, else the file's, else the first --model; say what changed.

    Args:
        config: names models and, perhaps, baselines.
        scores: content of the scores file before this run.
        output: the scores file; a model of it whose predictions are gone cannot be compared.

    Raises:
        ConfigError: a name that neither --model nor the file has, or an arm with and without @SEED.
    """
    named = name_models(config.model)
    check_seeds([name for name in named if name not in scores["models"]], scores["models"])
    kept = [name for name in scores["models"] if predictions_path(output, name).exists()]
    arms = list(dict.fromkeys(split_name(name)[0] for name in (*named, *kept)))
    asked = config.read_baselines()
    check_baselines(config.baseline, asked, arms, f"no --model and no model in {output}")
    stored = scores.get("comparisons") or {}
    before = Baselines(stored.get("baseline", ""), stored.get("baseline_of", {}))
    own = {arm: name for arm, name in before.baseline_of.items() if {arm, name} <= set(arms)}
    default = before.baseline if before.baseline in arms else arms[0]
    found = Baselines(config.baseline or default, asked or own)
    if stored and found != before:
        print(f"models are now compared {found}; until now {before}")
    return found
