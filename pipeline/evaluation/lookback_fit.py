"""The stage `fit-lookback-lens`: marked responses -> a classifier of unsupported text.

The model reads every response teacher-forced; a logistic regression learns from the lookback
ratios of windows which text people marked as unsupported. It is validated on documents it was not
fitted on, beside baselines that need no fitting, and then fitted on all of them.
"""

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.tokenization import TokenizedDataset, tokenize_dataset
from pipeline.errors import DataError, OutputExistsError
from pipeline.evaluation.bootstrap import DRAWS, SEED
from pipeline.evaluation.lookback import Ratios, attention_layers, num_heads
from pipeline.evaluation.lookback_config import FitLookbackLensConfig
from pipeline.evaluation.lookback_lens import (
    LookbackLens,
    read_architecture,
    read_lens,
    write_lens,
)
from pipeline.evaluation.lookback_samples import (
    MarkedText,
    load_spans,
    mark_tokens,
    read_ratios,
)
from pipeline.evaluation.lookback_validation import (
    INVERSE_PENALTY,
    Windows,
    assign_folds,
    best_threshold,
    cut_windows,
    fit_classifier,
    validate,
    validate_responses,
)
from pipeline.evaluation.spans import Span
from pipeline.models.checkpoint import Checkpoint, find_checkpoint, fingerprint_checkpoint
from pipeline.models.loading import load_model, load_tokenizer, pick_device
from pipeline.models.vocabulary import fingerprint_vocabulary
from pipeline.run_record import differences, installed_versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run(config: FitLookbackLensConfig) -> dict[str, Any]:
    """Fit a lens, print what it is worth, write it, and return the report with its path.

    Raises:
        DataError: the dataset cannot be read, spans do not fit their responses, all text has one
            label, or there are fewer documents than folds.
        MissingPackageError: scikit-learn is not installed.
        ModelError: the model or tokenizer is not found, does not load, or gives no attention
            weights or character offsets.
        OutputExistsError: the lens file is there and was made with other settings.
    """
    output = Path(config.output).expanduser()
    checkpoint = find_checkpoint(config.model)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=config.trust_remote_code)
    spans, num_contradicted = load_spans(config)
    dataset = tokenize_dataset(config, tokenizer)
    print(dataset.describe(), file=sys.stderr)
    settings = _settings(config, checkpoint, dataset, spans)
    if output.exists():
        return _already_there(output, settings)
    texts = mark_tokens(dataset, tokenizer, spans)
    _check_labels(texts, config)
    lens = _fit(config, checkpoint, tokenizer, dataset, texts, settings)
    lens.provenance["counts"]["repeated_with_other_spans"] = num_contradicted
    write_lens(output, lens)
    lens = read_lens(output)
    _print_summary(lens, output)
    return _result(output, lens)


def _fit(
    config: FitLookbackLensConfig,
    checkpoint: Checkpoint,
    tokenizer: "PreTrainedTokenizerBase",
    dataset: TokenizedDataset,
    texts: list[MarkedText],
    settings: dict[str, Any],
) -> LookbackLens:
    """Return the lens, validated and fitted on all texts."""
    start = time.monotonic()
    model: Any = load_model(
        checkpoint, dtype=config.dtype, trust_remote_code=config.trust_remote_code
    ).to(pick_device())
    layers, heads = tuple(attention_layers(model)), num_heads(model)
    ratios = read_ratios(model, texts, checkpoint.name)
    made_with = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "responses_per_second": round(len(texts) / (time.monotonic() - start), 3),
        "versions": installed_versions(),
    }
    del model
    windows = cut_windows(texts, ratios, config.window)
    validation, threshold = _validate(windows, texts, ratios, config)
    intercept, coefficients = fit_classifier(windows.features_WF, windows.labels_W)
    return LookbackLens(
        model=Path(checkpoint.name).name,
        model_fingerprint=settings["model_fingerprint"],
        architecture=read_architecture(checkpoint),
        vocabulary_fingerprint=fingerprint_vocabulary(tokenizer),
        template_fingerprint=dataset.template_fingerprint,
        layers=layers,
        num_heads=heads,
        window=config.window,
        threshold=threshold,
        intercept=intercept,
        coefficients=tuple(coefficients.tolist()),
        provenance={
            "settings": settings,
            "counts": _counts(dataset, texts, config.window),
            "threshold_rule": "highest balanced accuracy of held-out windows",
            "validation": validation,
            "made_with": made_with,
        },
    )


def _settings(
    config: FitLookbackLensConfig,
    checkpoint: Checkpoint,
    dataset: TokenizedDataset,
    spans: Mapping[str, tuple[Span, ...]],
) -> dict[str, Any]:
    """Return what determines the lens, compared by a second run over the same file."""
    text = json.dumps(sorted((name, list(found)) for name, found in spans.items()))
    return {
        "model_fingerprint": fingerprint_checkpoint(checkpoint),
        "examples_fingerprint": dataset.fingerprint,
        "spans_fingerprint": hashlib.sha256(text.encode()).hexdigest(),
        "template": config.template,
        "window": config.window,
        "folds": config.folds,
        "inverse_penalty": INVERSE_PENALTY,
        "dtype": config.dtype,
        "intervals": {"draws": DRAWS, "seed": SEED},
    }


def _already_there(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        lens = read_lens(output)
        lines = differences(lens.provenance.get("settings", {}), json.loads(json.dumps(settings)))
    except DataError as error:
        raise OutputExistsError(f"--output: {error}; or choose another --output") from error
    if lines:
        raise OutputExistsError(
            f"{output} is a lens made with other settings:\n  "
            + "\n  ".join(lines)
            + "\nchoose another --output, or delete that file"
        )
    print("already there, not fitted again")
    _print_summary(lens, output)
    return _result(output, lens)


def _check_labels(texts: list[MarkedText], config: FitLookbackLensConfig) -> None:
    """Refuse too few documents and labels of one class before the model is loaded."""
    assign_folds([text.document for text in texts], config.folds)
    labels = {bool(label) for text in texts for label in text.labels_N}
    if len(labels) < 2:
        raise DataError(
            f"{config.data}: of {len(texts)} responses no token is "
            f"{'unsupported' if True in labels else 'supported'}: a lens needs text of both kinds "
            f"(field {config.spans_field!r} marks the unsupported)"
        )


def _counts(dataset: TokenizedDataset, texts: list[MarkedText], window: int) -> dict[str, int]:
    return {
        **dataset.counts,
        "documents": len({text.document for text in texts}),
        "tokens": sum(len(text.token_ids) for text in texts),
        "unsupported_tokens": sum(int((~text.labels_N).sum()) for text in texts),
        "responses_shorter_than_a_window": sum(len(text.token_ids) < window for text in texts),
    }


def _validate(
    windows: Windows, texts: list[MarkedText], ratios: list[Ratios], config: FitLookbackLensConfig
) -> tuple[dict[str, Any], float]:
    """Return the validation of windows, single tokens and responses, and the tuned threshold."""
    of_windows, probs_W = validate(windows, config.folds)
    of_tokens, _ = validate(cut_windows(texts, ratios, 1), config.folds)
    report = {
        "windows": of_windows,
        "tokens": of_tokens,
        "responses": validate_responses(windows, probs_W),
    }
    return report, best_threshold(probs_W, windows.labels_W)


def _result(output: Path, lens: LookbackLens) -> dict[str, Any]:
    return {
        "lens": str(output),
        "fingerprint": lens.fingerprint,
        "window": lens.window,
        "threshold": lens.threshold,
        **lens.provenance,
    }


def _print_summary(lens: LookbackLens, output: Path) -> None:
    counts, validation = lens.provenance["counts"], lens.provenance["validation"]
    print(
        f"{counts['kept']} responses about {counts['documents']} documents, {counts['tokens']} "
        f"tokens of which {counts['unsupported_tokens']} are marked unsupported"
    )
    if counts["repeated_with_other_spans"]:
        print(
            f"note: {counts['repeated_with_other_spans']} rows repeat another row's texts with "
            "other spans: the first row counts"
        )
    print("AUROC on documents not fitted on [95 %, documents resampled]:")
    for level, found in validation.items():
        if found is None:
            print(f"  {level}: none, all have a mark or none has")
            continue
        print(f"  {found['items']} {level}, {100 * found['supported_share']:.1f} % supported")
        for name, value in found["auroc"].items():
            ends = found["auroc_intervals"][name]
            shown = "" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]"
            print(f"    {name:<11} {value:.3f}{shown}")
    found = validation["windows"]
    print(
        f"windows of {lens.window} tokens: AUROC on seen documents "
        f"{found['auroc_on_seen_documents']:.3f}; balanced accuracy "
        f"{found['balanced_accuracy']:.3f} at the tuned threshold ({lens.threshold:.3f}), "
        f"{found['balanced_accuracy_at_half']:.3f} at 0.5"
    )
    print(f"lens: {output}")
