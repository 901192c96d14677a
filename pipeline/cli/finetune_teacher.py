"""The command finetune-teacher."""

from pipeline.cli.command import stage_command
from pipeline.teacher.finetune_config import FinetuneTeacherConfig

main = stage_command(
    "finetune-teacher",
    FinetuneTeacherConfig,
    "pipeline.teacher.finetune",
    """Fine-tune the teacher on the instruction data the student will see.

    \b
    finetune-teacher --model org/model --data train.jsonl --output teacher
    """,
)
