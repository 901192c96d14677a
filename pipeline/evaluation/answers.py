"""What a model answers: generated once, appended to a file as it comes, and kept.

    answers/<scores file>/<model>.jsonl     a line saying how they are made, then one a document

A run that was stopped, or killed, goes on behind the last whole line. As long as the file is there
nothing is generated twice: whatever is to be measured, now or later, reads it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import DataError, OutputExistsError
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.cost import Costs, timed
from pipeline.evaluation.inputs import ModelInputs
from pipeline.evaluation.model_in_use import ModelInUse
from pipeline.evaluation.scores_file import answers_path, describe_decoding
from pipeline.generation.engines import Generator, TransformersGenerator, start_vllm_generator
from pipeline.generation.growing_file import append, open_growing
from pipeline.generation.requests import Decoding, Prediction, Request, derive_seed
from pipeline.models.loading import pick_device
from pipeline.progress import Progress
from pipeline.run_record import differences, installed_versions
from storage_schema.publish import temporary_path


@dataclass(frozen=True, slots=True)
class Answers:
    """A model's answers.

    Attributes:
        predictions: one for each example, in the dataset's order.
        made_with: device, batch size and versions of the run that began them.
    """

    predictions: list[Prediction]
    made_with: dict[str, Any]


def generate_answers(
    model: ModelInputs,
    in_use: ModelInUse,
    config: EvaluateStudentConfig,
    engine: str,
    output: Path,
    costs: Costs,
) -> Answers:
    """Return the model's answers; those that its file lacks are generated and appended.

    Args:
        model: which, and its prompts.
        in_use: loads it for engine transformers; vLLM has its own copy, gone when this returns.
        config: how to generate.
        engine: "vllm" or "transformers".
        output: the scores file.
        costs: gets the time of `generation`, and of `loading`.

    Raises:
        DataError: a line of the file is no answer to a prompt of the dataset.
        EngineError: vLLM does not start, or stops.
        ModelError: the model does not load.
        OutputExistsError: the file was made otherwise, or another process is writing it.
    """
    path = answers_path(output, model.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    identity = _identity(model, config, engine)
    with open_growing(path) as (file, lines):
        made_with, found = _parse(path, lines, model, identity)
        if not lines:
            made_with = {
                "device": pick_device(),
                "batch_size": config.batch_size if engine == "transformers" else None,
                "versions": installed_versions(),
            }
            append(file, {"identity": identity, "made_with": made_with})
        _generate_rest(model, in_use, config, engine, file, found, costs)
    return Answers([found[place] for place in range(len(found))], made_with)


def read_answers(
    model: ModelInputs, config: EvaluateStudentConfig, engine: str, output: Path
) -> Answers:
    """Return the answers that `generate_answers` has finished; nothing is generated.

    Raises:
        DataError: the file is gone, unfinished or damaged.
        OutputExistsError: the file was made otherwise.
    """
    path = answers_path(output, model.name)
    lines = path.read_bytes().splitlines() if path.exists() else []
    made_with, found = _parse(path, lines, model, _identity(model, config, engine))
    if len(found) < len(model.dataset.examples):
        raise DataError(
            f"{path} holds {len(found)} answers, expected {len(model.dataset.examples)}: delete "
            f"the entry {model.name!r} of {output.name} to evaluate the model again"
        )
    return Answers([found[place] for place in range(len(found))], made_with)


def _identity(model: ModelInputs, config: EvaluateStudentConfig, engine: str) -> dict[str, Any]:
    return {
        **model.identity,
        "decoding": describe_decoding(config, engine),
        "dtype": config.dtype,
    }


def _parse(
    path: Path, lines: Sequence[bytes], model: ModelInputs, identity: dict[str, Any]
) -> tuple[dict[str, Any], dict[int, Prediction]]:
    """Return the file's `made_with`, and the answers by their place in the dataset."""
    if not lines:
        return {}, {}
    places = {one.example_id.hex(): place for place, one in enumerate(model.dataset.examples)}
    found: dict[int, Prediction] = {}
    try:
        head, *rows = (json.loads(line) for line in lines)
        there, made_with = dict(head["identity"]), dict(head["made_with"])
        _refuse_other(path, there, identity)
        for row in rows:
            place = places[row.pop("example_id")]
            found[place] = Prediction(**row)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}, behind {len(found)} answers: not what this dataset's answers look like "
            f"({error!r}); delete the file to generate them again"
        ) from error
    return made_with, found


def _refuse_other(path: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    lines = differences(there, json.loads(json.dumps(asked)))
    if lines:
        raise OutputExistsError(
            f"{path} holds answers made otherwise:\n  "
            + "\n  ".join(lines)
            + "\nchoose another --output, or delete that file to generate them again"
        )


def _generate_rest(
    model: ModelInputs,
    in_use: ModelInUse,
    config: EvaluateStudentConfig,
    engine: str,
    file: TextIO,
    found: dict[int, Prediction],
    costs: Costs,
) -> None:
    """Generate what `found` lacks into it and into the file."""
    examples = model.dataset.examples
    if len(found) == len(examples):
        return
    prompts = [example.input_ids[: example.response_start].tolist() for example in examples]
    requests = [
        Request(prompt, config.max_new_tokens, derive_seed(config.seed, prompt, 0))
        for prompt in prompts
    ]
    decoding = Decoding(tuple(model.stop_ids), config.stop, config.temperature, config.top_p)
    generator = _start(model, in_use, config, engine, requests, Path(file.name), costs)
    num_missing = len(examples) - len(found)
    try:
        with (
            timed(costs, "generation", num_missing),
            Progress(f"{model.name}: generate", num_missing, "documents") as progress,
        ):
            for place, prediction in generator.generate(requests, decoding, frozenset(found)):
                found[place] = prediction
                append(file, {"example_id": examples[place].example_id.hex(), **asdict(prediction)})
                progress.advance()
    finally:
        generator.close()


def _start(
    model: ModelInputs,
    in_use: ModelInUse,
    config: EvaluateStudentConfig,
    engine: str,
    requests: Sequence[Request],
    path: Path,
    costs: Costs,
) -> Generator:
    if engine == "transformers":
        return TransformersGenerator(in_use.load(costs), model.tokenizer, config.batch_size)
    with timed(costs, "starting_vllm", 0):
        return start_vllm_generator(
            model.checkpoint,
            model.tokenizer,
            requests,
            dtype=config.dtype,
            merged_path=temporary_path(path.with_suffix(".merged-model")),
            gpu_memory_utilization=config.gpu_memory_utilization,
            trust_remote_code=config.trust_remote_code,
        )
