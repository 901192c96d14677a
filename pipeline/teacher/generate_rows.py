"""Turn generated answers into dataset rows, and count what became of each."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.data.prompts import TokenizedPrompts
from pipeline.data.templates import unrender_response
from pipeline.data.tokenization import encode_responses
from pipeline.generation.requests import Prediction
from pipeline.models.checkpoint import describe_place
from pipeline.teacher.generate_config import GenerateConfig
from pipeline.teacher.responses_file import Answer


def to_answer(index: int, prediction: Prediction, template: str, tokenizer: Any) -> Answer:
    """Return the answer to one request, its text as a record holds it under the template."""
    # The last token may hold a stop string too, so the text's own are the first of the generated.
    (ids,) = encode_responses([prediction.text], tokenizer)
    generated = prediction.token_ids
    return Answer(
        request=index,
        text=unrender_response(template, prediction.text),
        finish_reason=prediction.finish_reason,
        num_tokens=len(generated),
        reads_back=ids == generated[: len(ids)] and len(ids) > 0,
    )


def _is_kept(answer: Answer, config: GenerateConfig) -> bool:
    return bool(answer.text.strip()) and (config.keep_cut or answer.finish_reason == "stop")


def count_answers(
    answers: dict[int, Answer], prompts: TokenizedPrompts, config: GenerateConfig
) -> dict[str, int]:
    """Return the counts of prompts and answers; generated = written + what was dropped."""
    empty = [answer for answer in answers.values() if not answer.text.strip()]
    cut = [a for a in answers.values() if a.text.strip() and a.finish_reason == "length"]
    written = [answer for answer in answers.values() if _is_kept(answer, config)]
    repeats = Counter(
        (index // config.samples_per_prompt, answer.text)
        for index, answer in answers.items()
        if _is_kept(answer, config)
    )
    return {
        **prompts.counts,
        "generated": len(answers),
        "empty": len(empty),
        "cut_at_limit": len(cut),
        "written": len(written),
        "repeated_among_written": len(written) - len(repeats),
        "tokenized_otherwise": sum(not answer.reads_back for answer in written),
        "tokens": sum(answer.num_tokens for answer in written),
    }


def account(counts: dict[str, int], config: GenerateConfig) -> str:
    """Return the counts in words."""
    return (
        f"of {counts['generated']} generated: {counts['empty']} empty (dropped), "
        f"{counts['cut_at_limit']} cut at the token limit "
        f"({'kept' if config.keep_cut else 'dropped'}); of those written "
        f"{counts['repeated_among_written']} repeat another of their prompt, "
        f"{counts['tokenized_otherwise']} are not tokenised as they were generated"
    )


def describe_origin(config: GenerateConfig, identity: dict[str, Any]) -> dict[str, Any]:
    """Return what every row says of the run that made it."""
    return {
        "model": describe_place(config.model),
        "model_fingerprint": identity["model_fingerprint"],
        "engine": identity["engine"],
        "temperature": config.temperature,
        "top_p": config.top_p,
        "seed": config.seed,
    }


def to_rows(
    answers: dict[int, Answer],
    prompts: TokenizedPrompts,
    config: GenerateConfig,
    provenance: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield the dataset's rows in the order of the prompts and their samples."""
    for index in sorted(answers):
        answer = answers[index]
        if not _is_kept(answer, config):
            continue
        place, sample = divmod(index, config.samples_per_prompt)
        record = prompts.records[place]
        if record.messages is not None:
            response = {"role": "assistant", "content": answer.text}
            fields: dict[str, Any] = {"messages": [*record.messages, response]}
        else:
            fields = {
                "instruction": record.instruction or "",
                "context": record.context or "",
                "response": answer.text,
            }
        made = {"row": prompts.rows[place], "sample": sample, "finish_reason": answer.finish_reason}
        yield {**fields, "generation": {**provenance, **made}}
