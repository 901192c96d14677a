"""Settings of `evaluate-student`. Standard library only, so that --help answers at once."""

import re
from collections.abc import Collection, Iterable, Mapping
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
        ConfigError: no value, a name that cannot be a file name, a name given twice, or an arm
            given both with and without @SEED.
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
    check_seeds(models, models)
    return models


def split_name(name: str) -> tuple[str, str]:
    """Return (arm, seed) of a model's name ARM@SEED; the seed is "" without one."""
    arm, _, seed = name.partition("@")
    return arm, seed


def check_seeds(names: Iterable[str], there: Collection[str]) -> None:
    """Refuse an arm of `names` that is also `there` in the other form: its seeds have no pairs.

    Raises:
        ConfigError: an arm has a name with @SEED and one without.
    """
    for name in names:
        arm, seed = split_name(name)
        for other in there:
            if split_name(other)[0] == arm and bool(split_name(other)[1]) != bool(seed):
                raise ConfigError(
                    f"--model {name}: the arm {arm!r} is there as {other!r} too, and seeds are "
                    f"compared pair by pair: write {arm}@SEED=PATH for all its models, or give "
                    "this one another name"
                )


def check_baselines(
    baseline: str | None, baseline_of: Mapping[str, str], arms: Iterable[str], where: str
) -> None:
    """Refuse names of --baseline and --baseline-of that are no arm.

    Args:
        baseline: the value of --baseline.
        baseline_of: {arm: its own baseline}.
        arms: the names there are.
        where: what has none of that name, for the message.

    Raises:
        ConfigError: naming the flag, its value and the arms there are.
    """
    known = list(dict.fromkeys(arms))
    if baseline is not None and baseline not in known:
        raise ConfigError(
            f"--baseline {baseline!r}: {where} has that name; there are {', '.join(known)}"
        )
    for arm, own in baseline_of.items():
        if not {arm, own} <= set(known):
            raise ConfigError(
                f"--baseline-of {arm}={own}: {where} has one of these names; expected "
                f"ARM=BASELINE, each one of {', '.join(known)}"
            )


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
        "Name of the model or arm to compare the others with; the scores file's own, or the first "
        "--model, by default.",
        None,
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
        arms = [split_name(name)[0] for name in name_models(self.model)]
        baseline_of = self.read_baselines()
        if not Path(self.output).expanduser().exists():  # else a name may be one of that file
            check_baselines(self.baseline, baseline_of, arms, "no --model")

    def read_baselines(self) -> dict[str, str]:
        """Return {arm: its own baseline} of --baseline-of.

        Raises:
            ConfigError: an arm has two baselines, or is its own.
        """
        found: dict[str, str] = {}
        for arm, _, name in (one.partition("=") for one in self.baseline_of):
            if arm == name:
                raise ConfigError(
                    f"--baseline-of {arm}={name}: an arm is not compared with itself; name another "
                    "baseline"
                )
            if arm in found:
                raise ConfigError(
                    f"--baseline-of {arm}={name}: {arm!r} has the baseline {found[arm]!r} already; "
                    "give one for each arm"
                )
            found[arm] = name
        return found

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
