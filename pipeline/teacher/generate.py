"""generate-responses: a model's own responses to a dataset's prompts, as a dataset.

For sequence-level distillation (arXiv 1606.07947): what a teacher writes replaces the gold
responses. Resumable at any moment, recorded in run.json.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from pipeline.data.prompts import TokenizedPrompts, tokenize_prompts
from pipeline.errors import ConfigError, DataError
from pipeline.generation.engines import (
    Generator,
    TransformersGenerator,
    start_vllm_generator,
)
from pipeline.generation.growing_file import append
from pipeline.generation.requests import Decoding, Prediction, Request, derive_seed
from pipeline.models.checkpoint import (
    Checkpoint,
    find_checkpoint,
    fingerprint_checkpoint,
    max_positions,
)
from pipeline.models.engines import pick_engine
from pipeline.models.loading import load_model, load_tokenizer, pick_device
from pipeline.progress import Progress
from pipeline.run_record import find_finished, finish_output, open_output, read_record
from pipeline.teacher.generate_config import GenerateConfig
from pipeline.teacher.generate_rows import (
    account,
    count_answers,
    describe_origin,
    to_answer,
    to_rows,
)
from pipeline.teacher.responses_file import (
    DATASET,
    UNFINISHED,
    Answer,
    open_unfinished,
    write_dataset,
)
from storage_schema.publish import temporary_path

COMMAND = "generate-responses"
# What the machine gives; it has no part in what is asked for.
NOT_COMPARED = {"output", "model", "data", "engine", "batch_size", "tensor_parallel_size"}
NOT_COMPARED |= {"gpu_memory_utilization"}


def run(config: GenerateConfig) -> dict[str, Any]:
    """Generate what is missing, write the dataset, and return the run record with its path.

    Raises:
        DataError: the dataset cannot be read, or no prompt or no response is left.
        ConfigError: prompt and response exceed the model's positions.
        ModelError: the model is missing or does not load.
        EngineError: vLLM does not start, or stops.
        OutputExistsError: the output holds another run, or another process writes it.
    """
    output = Path(config.output)
    engine, reason = pick_engine(config.engine)
    checkpoint = find_checkpoint(config.model, config.revision)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
    prompts = tokenize_prompts(config, tokenizer)
    print(prompts.describe())
    requests = make_requests(config, prompts)
    _check_length(checkpoint, requests)
    identity = {
        name: getattr(config, name)
        for name in config.__dataclass_fields__
        if name not in NOT_COMPARED
    }
    identity["engine"] = engine
    identity["model_fingerprint"] = fingerprint_checkpoint(checkpoint)
    identity["prompts_fingerprint"] = prompts.fingerprint
    identity["template_fingerprint"] = prompts.template_fingerprint
    if find_finished(output, COMMAND, identity):
        print(f"{output} is finished already: nothing to do")
    else:
        open_output(output, COMMAND, identity, {"model": config.model, "data": config.data})
        print(f"engine: {engine} ({reason})")
        _generate(config, engine, checkpoint, tokenizer, prompts, requests, identity)
    return {"output": str(output), "dataset": str(output / DATASET), **read_record(output)}


def make_requests(config: GenerateConfig, prompts: TokenizedPrompts) -> list[Request]:
    """Return the requests, a prompt's samples one after the other.

    A response is limited so that, with its prompt and its end token, it is not cut by the same
    --max-sequence-tokens when it is read, unless its text becomes more tokens than it had.
    """
    end_token = 1 if config.keep_cut else 0  # a response that ended by itself has it already
    return [
        Request(
            prompt,
            min(
                config.max_new_tokens, max(1, config.max_sequence_tokens - len(prompt) - end_token)
            ),
            derive_seed(config.seed, prompt, sample),
        )
        for prompt in prompts.prompts
        for sample in range(config.samples_per_prompt)
    ]


def _check_length(checkpoint: Checkpoint, requests: list[Request]) -> None:
    limit = max_positions(checkpoint)
    longest = max(len(request.prompt_ids) + request.max_new_tokens for request in requests)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"a prompt and its response may take {longest} tokens, {checkpoint.name} reads at "
            f"most {limit}; lower --max-new-tokens, --max-prompt-tokens or --max-sequence-tokens"
        )


def _generate(
    config: GenerateConfig,
    engine: str,
    checkpoint: Checkpoint,
    tokenizer: Any,
    prompts: TokenizedPrompts,
    requests: list[Request],
    identity: dict[str, Any],
) -> None:
    output = Path(config.output)
    stop_ids = {prompts.end_token_id}
    if tokenizer.eos_token_id is not None:
        stop_ids.add(int(tokenizer.eos_token_id))
    decoding = Decoding(
        tuple(sorted(stop_ids)), tuple(config.stop), config.temperature, config.top_p
    )
    with open_unfinished(output) as (file, answers):
        speed: dict[str, Any] = {"resumed_responses": len(answers)}
        if len(answers) < len(requests):
            generator = _start_generator(engine, config, checkpoint, tokenizer, requests)
            try:
                found = generator.generate(requests, decoding, frozenset(answers))
                num_missing = len(requests) - len(answers)
                speed |= _collect(found, num_missing, file, answers, config.template, tokenizer)
            finally:
                generator.close()
        counts = count_answers(answers, prompts, config)
        if not counts["written"]:
            raise DataError(
                f"{config.output}: no response is left; {account(counts, config)}; where the "
                "limit cut them, raise --max-new-tokens or give --keep-cut, with another --output"
            )
        provenance = describe_origin(config, identity)
        path = write_dataset(output, to_rows(answers, prompts, config, provenance))
        finish_output(output, counts=counts, decoding=provenance, **speed)
        (output / UNFINISHED).unlink()
    speed_text = f", {speed['tokens_per_second']:.0f} tokens/s" if "seconds" in speed else ""
    print(
        f"{counts['written']} responses, {counts['tokens']} tokens{speed_text}, written to {path}\n"
        f"  {account(counts, config)}"
    )


def _start_generator(
    engine: str,
    config: GenerateConfig,
    checkpoint: Checkpoint,
    tokenizer: Any,
    requests: list[Request],
) -> Generator:
    if engine == "vllm":
        return start_vllm_generator(
            checkpoint,
            tokenizer,
            requests,
            dtype=config.dtype,
            merged_path=temporary_path(Path(config.output) / "merged-model"),
            tensor_parallel_size=config.tensor_parallel_size,
            gpu_memory_utilization=config.gpu_memory_utilization,
            trust_remote_code=config.trust_remote_code,
        )
    from pipeline.training.quiet import quiet_transformers

    quiet_transformers()
    model: Any = load_model(
        checkpoint, dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    return TransformersGenerator(model.to(pick_device()), tokenizer, config.batch_size)


def _collect(
    found: Iterator[tuple[int, Prediction]],
    num_missing: int,
    file: TextIO,
    answers: dict[int, Answer],
    template: str,
    tokenizer: Any,
) -> dict[str, Any]:
    """Store each answer as it comes, in the file and in `answers`; return time and speed."""
    start, tokens = time.monotonic(), 0
    with Progress(COMMAND, num_missing, "responses") as progress:
        for index, prediction in found:
            answers[index] = to_answer(index, prediction, template, tokenizer)
            append(file, asdict(answers[index]))
            tokens += len(prediction.token_ids)
            progress.advance(note=f"{tokens / (time.monotonic() - start):.0f} tokens/s")
    seconds = time.monotonic() - start
    return {"seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds, 1)}
