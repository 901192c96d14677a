"""The command train-student."""

from pipeline.cli.command import stage_command
from pipeline.student.config import TrainStudentConfig

main = stage_command(
    "train-student",
    TrainStudentConfig,
    "pipeline.student.train",
    """Train one student from a logit cache with CE + alpha * KL; --alpha 0 is plain SFT.

    \b
    train-student --student org/small --cache cache --alpha 0.1 --output student
    """,
)
