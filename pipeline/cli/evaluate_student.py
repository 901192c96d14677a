"""The command evaluate-student."""

from pipeline.cli.command import stage_command
from pipeline.evaluation.config import EvaluateStudentConfig

main = stage_command(
    "evaluate-student",
    EvaluateStudentConfig,
    "pipeline.evaluation.evaluate",
    """Score models on a dataset: answers, ROUGE, faithfulness, calibration, comparisons.

    \b
    evaluate-student --model student --model kd=other --data eval.jsonl --output scores.json
    """,
)
