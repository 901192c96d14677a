"""The settings of train-student; standard library only, read by --help."""

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.run_record import num_processes
from pipeline.settings import check_local, setting
from pipeline.student.alpha import ALPHA_MODES, ALPHA_SCHEDULES, AlphaSettings
from pipeline.student.kl_settings import DIVERGENCES, TAILS, KlSettings
from pipeline.training.settings import TrainingSettings, check_training_settings

# Random weights have far to go; the rate of small GPT-3 models (arXiv 2005.14165, table 2.1).
FROM_SCRATCH_LEARNING_RATE = 6e-4


@dataclass(frozen=True, kw_only=True)
class TrainStudentConfig(TrainingSettings):
    """One student from one cache at one alpha.

    Raises:
        ConfigError: a setting is out of range or contradicts another one.
    """

    student: str = setting("Model to train: a directory or a hub name (org/model).")
    cache: str = setting(
        "Logit cache written by precompute-logits, a directory or a URL; nothing else is read."
    )
    local_copy: str | None = setting(
        "Copy the cache's shards below this local folder at first use and read them there; runs "
        "share it. A URL is always read so, by default below ~/.cache/smoothkd.",
        None,
    )
    output: str = setting("Directory for the trained adapter or model.")
    alpha: float = setting("Weight of the KL term; 0 is plain supervised fine-tuning.")
    alpha_mode: str = setting(
        "Give every token the whole alpha, or less where the teacher's entropy or its surprise at "
        "the label is small.",
        "constant",
        ALPHA_MODES,
    )
    alpha_schedule: str = setting(
        "How alpha grows from 0 to its value over the steps; constant has it from the start.",
        "constant",
        ALPHA_SCHEDULES,
    )
    normalize_loss: bool = setting("Divide each token's loss by 1 + its alpha.", False)
    # The control without a teacher: docs/evaluation.md says how to run it beside the students.
    label_smoothing: float = setting(
        "Share of the CE's target that is spread evenly over the vocabulary; a control for "
        "--alpha 0.",
        0.0,
    )
    # What the method's paper does; docs/losses.md says what it costs with a small support.
    tail: str = setting(
        "Teacher mass outside the support: scaled away, matched as one class, or given to the "
        "label.",
        "renormalize",
        TAILS,
    )
    divergence: str = setting("What is minimised between teacher and student.", "kl", DIVERGENCES)
    temperature: float = setting("Softens teacher and student in the KL term only.", 1.0)
    teacher_temperature: float = setting(
        "Sharpens (below 1) or flattens (above 1) the cached teacher alone.", 1.0
    )
    # Beside --batch-size and not instead of it: how a step is cut must not change what it learns.
    batch_tokens: int | None = setting(
        "Most tokens of a forward pass, padding counted; a step's responses are cut into as many "
        "passes as that takes. Default: --batch-size responses.",
        None,
    )
    from_scratch: bool = setting(
        "Start from random weights of the student's shape; with --tuning full.", False
    )
    fsdp: bool = setting(
        "Shard weights, gradients and optimiser over the processes that torchrun started.", False
    )
    top_k: int | None = setting("Use only the largest so many entries of each cached row.", None)
    min_prob: float = setting("Leave out cached entries below this probability.", 0.0)

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate asked for, or the default of the tuning."""
        if self.from_scratch and self.learning_rate is None:
            return FROM_SCRATCH_LEARNING_RATE
        return super().peak_learning_rate

    @property
    def alpha_settings(self) -> AlphaSettings:
        """The settings of the KL term's weight."""
        return AlphaSettings(
            alpha=self.alpha,
            mode=self.alpha_mode,
            schedule=self.alpha_schedule,
            normalize=self.normalize_loss,
        )

    @property
    def kl_settings(self) -> KlSettings:
        """The settings of the KL term."""
        return KlSettings(
            tail=self.tail,
            divergence=self.divergence,
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
            top_k=self.top_k,
            min_prob=self.min_prob,
        )

    def check_support(self, kind: str) -> None:
        """Check the settings of the KL against the kind of support that a cache has.

        Raises:
            ConfigError: they would be biased on draws.
        """
        if kind == "sampled" and (self.alpha > 0 or self.eval_share):
            self.kl_settings.check_sampled_support()

    def __post_init__(self) -> None:
        check_training_settings(self)
        check_local("--output", self.output)
        if self.local_copy is not None:
            check_local("--local-copy", self.local_copy)
        _ = self.alpha_settings, self.kl_settings  # check themselves
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"--label-smoothing {self.label_smoothing} must be at least 0 and below 1"
            )
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ConfigError(f"--batch-tokens {self.batch_tokens} must be at least 1")
        if self.from_scratch and self.tuning != "full":
            raise ConfigError(
                f"--from-scratch with --tuning {self.tuning}: random weights must all be trained; "
                "use --tuning full"
            )
        if self.fsdp and self.tuning == "qlora":
            raise ConfigError("--fsdp with --tuning qlora: 4-bit weights are not sharded; drop one")
        if self.fsdp and num_processes() < 2:
            raise ConfigError(
                "--fsdp shards over several processes and there is one: start the command with "
                "torchrun --nproc-per-node, or drop it"
            )
