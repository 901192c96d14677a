"""Settings of `evaluate-student`. Standard library only, so that --help answers at once."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.config import DataSettings
from pipeline.errors import ConfigError
from pipeline.evaluation.judges.protocol import read_judge_flags
from pipeline.generation.config import GenerationSettings
from pipeline.models.loading import DTYPES
from pipeline.settings import check_local, setting

# A name becomes a file name, so it is plain and never hidden.
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=,-]*(@[A-Za-z0-9_]+)?")


def name_models(values: tuple[str, ...]) -> dict[str, str]:
    """Return {name: path or hub name} of the --model values, in their order.

    A value is PATH, named by its last component, or NAME=PATH. Text before the first "=" that
    holds a "/" is part of a path: "runs/alpha=0.1" is a path named "alpha=0.1".

    Raises:
        ConfigError: no value, a name that cannot be a file name, or a name given twice.
    """
    if not values:
        raise ConfigError("--model: give at least one PATH or NAME=PATH")
    models: dict[str, str] = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not separator or "/" in name:
            name, path = Path(value).name, value
        if not path or not NAME_PATTERN.fullmatch(name):
            raise ConfigError(
                f"--model {value!r}: {name!r} cannot name a model (letters, digits and _ . + = , - "
                "only, and @SEED at the end); write NAME=PATH"
            )
        if name in models:
            raise ConfigError(
                f"--model {value!r}: the name {name!r} is already taken by {models[name]!r}; "
                "write NAME=PATH with another name"
            )
        models[name] = path
    return models


def split_name(name: str) -> tuple[str, str]:
    """Return (arm, seed) of a model's name ARM@SEED; the seed is "" without one."""
    arm, _, seed = name.partition("@")
    return arm, seed


# Flags that say nothing where judges are measured on labelled pairs.
NO_PAIRS = ("data", "model", "baseline", "baseline_of", "judge_validation", "task")


@dataclass(frozen=True, kw_only=True)
class EvaluateStudentConfig(DataSettings, GenerationSettings):
    """Settings of `evaluate-student`: which models, on which dataset, scored how."""

    data: str = setting(
        "Dataset: a .jsonl, .json, .csv or .parquet file, a folder or hub name with an optional "
        ":config and @split, or demo:docstrings.",
        "",
    )
    model: tuple[str, ...] = setting(
        "Checkpoint or adapter to evaluate: PATH or NAME=PATH, a directory or hub name; repeat for "
        "several. ARM@SEED=PATH names one training seed of an arm.",
        (),
    )
    output: str = setting(
        "Scores file (.json) to write, or to continue; predictions go to predictions/ beside it."
    )
    judge: tuple[str, ...] = setting(
        "Judge of factual consistency, KIND=PLACE or NAME:KIND=PLACE: hhem, factcg, minicheck or "
        "summac (any NLI model) with a directory or hub name, or python=FILE.py:CLASS; repeat for "
        "several.",
        (),
    )
    validate_judge: str | None = setting(
        "Measure the judges, and trivial ones, on this .jsonl of human-labelled pairs (document, "
        "summary, label) instead of any model; on a dataset without labels, by known answers.",
        None,
    )
    judge_validation: str | None = setting(
        "A file that --validate-judge wrote: adds the share of consistent answers corrected for "
        "the judges' error rates there.",
        None,
    )
    task: tuple[str, ...] = setting(
        "General ability by lm-evaluation-harness: a task's name (arc_easy, arc_challenge, "
        "hellaswag, openbookqa, ...) or a task file (.yaml); repeat for several.",
        (),
    )
    baseline: str | None = setting(
        "Name of the model or arm to compare the others with; the first --model by default.", None
    )
    baseline_of: tuple[str, ...] = setting(
        "ARM=BASELINE: compares this arm with another one than --baseline; repeat for several.", ()
    )
    max_new_tokens: int = setting("Longest prediction, in tokens.", 128)
    batch_size: int = setting("Documents in one forward pass.", 8)
    ece_bins: int = setting("Bins of the calibration errors.", 15)
    lookback_lens: str | None = setting(
        "Lens file of fit-lookback-lens: adds the factual rate of the answers.", None
    )
    dtype: str = setting("Number type of the weights; auto is the stored one.", "auto", DTYPES)
    trust_remote_code: bool = setting("Run model code that a checkpoint brings along.", False)

    def __post_init__(self) -> None:
        """Check the values that this stage adds.

        Raises:
            ConfigError: naming the flag and its value.
        """
        read_judge_flags(self.judge)
        GenerationSettings.__post_init__(self)
        if self.validate_judge is None:
            DataSettings.__post_init__(self)
            self._check_models()
        elif any(getattr(self, name) for name in NO_PAIRS):
            raise ConfigError(
                "--validate-judge measures judges on labelled pairs and no model: leave out "
                + ", ".join("--" + name.replace("_", "-") for name in NO_PAIRS)
            )
        self._check_numbers()

    def _check_models(self) -> None:
        arms = dict.fromkeys(split_name(name)[0] for name in name_models(self.model))
        if self.baseline is not None and self.baseline not in arms:
            raise ConfigError(
                f"--baseline {self.baseline!r}: no --model has that name; there are "
                f"{', '.join(arms)}"
            )
        for arm, baseline in self.read_baselines().items():
            if not {arm, baseline} <= arms.keys():
                raise ConfigError(
                    f"--baseline-of {arm}={baseline}: expected ARM=BASELINE, each one of "
                    f"{', '.join(arms)}"
                )

    def read_baselines(self) -> dict[str, str]:
        """Return {arm: its own baseline} of --baseline-of."""
        return {arm: name for arm, _, name in (one.partition("=") for one in self.baseline_of)}

    def _check_numbers(self) -> None:
        for field in ("max_new_tokens", "batch_size", "ece_bins"):
            value = getattr(self, field)
            if value < 1:
                raise ConfigError(f"--{field.replace('_', '-')} {value}: must be at least 1")
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype!r}: must be one of {', '.join(DTYPES)}")
        check_local("--output", self.output)
        if not self.output.endswith(".json"):
            raise ConfigError(f"--output {self.output!r}: must be a file name ending in .json")
