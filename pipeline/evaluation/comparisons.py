"""Every model of a scores file against its baseline: corrected p-values and plain sentences.

Models named ARM@SEED are one arm trained with several seeds and compared seed by seed. What
cannot be compared (other documents, other tokenizer, other seeds) is named, not guessed.

The primary figures of all models form one family, corrected by Holm's procedure; all other
figures are exploratory and corrected by Benjamini and Hochberg's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

from pipeline.errors import DataError
from pipeline.evaluation.bootstrap import Figure
from pipeline.evaluation.comparison import Comparison, compare, compare_over_seeds, describe
from pipeline.evaluation.config import split_name
from pipeline.evaluation.correction import benjamini_hochberg, holm
from pipeline.evaluation.figures import (
    COMPARED_RESCALED,
    COMPARED_TOKENS,
    Compared,
    Row,
    compared_documents,
    document_figures,
    rescaled_figures,
    token_figures,
)

Model = TypeVar("Model")
NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One model's figures, and what decides which of them another's can be compared with.

    Attributes:
        records: the ids of its records, sorted.
        examples: the ids of its token sequences, sorted: another tokenizer has others.
        figures: over documents, and over tokens.
        token_names: the figures that are per token.
        rescaled: the per-token figures at the fitted temperature.
    """

    records: tuple[str, ...]
    examples: tuple[str, ...]
    figures: Mapping[str, Figure]
    token_names: frozenset[str]
    rescaled: Mapping[str, Figure]


@dataclass(frozen=True, slots=True)
class Found:
    """One comparison with its names."""

    model: str
    baseline: str
    figure: str
    how: Compared
    result: Comparison


def read_scored(rows: Sequence[Row], num_bins: int, more: Mapping[str, Figure] = NONE) -> Scored:
    """Return what comparisons need of one model's rows.

    Args:
        rows: the model's.
        num_bins: of the calibration errors.
        more: figures over the same documents that the rows alone do not give.

    Raises:
        DataError: there are no rows, or a number is not finite or no probability.
    """
    tokens = token_figures(rows, num_bins)
    return Scored(
        records=tuple(sorted(row["record_id"] for row in rows)),
        examples=tuple(sorted(row["example_id"] for row in rows)),
        figures={**document_figures(rows), **more, **tokens},
        token_names=frozenset(tokens),
        rescaled=rescaled_figures(rows, num_bins),
    )


def compare_models(
    scored: Mapping[str, Scored], baseline: str, baseline_of: Mapping[str, str] = NONE
) -> dict[str, Any]:
    """Return {"baseline", "baseline_of", "results", "not_compared"} of all arms.

    A result holds model, baseline, figure, family ("primary" or "exploratory"), correction, the
    fields of a Comparison in the figure's own unit, and the sentence.

    Args:
        scored: the models by name.
        baseline: the arm that the others are compared with.
        baseline_of: {arm: the arm that it is compared with in place of `baseline`}.

    Raises:
        DataError: there is no arm of a baseline's name.
    """
    arms = group_seeds(scored)
    for name in (baseline, *baseline_of.values()):
        if name not in arms:
            raise DataError(f"no model {name!r} to compare with: there are {', '.join(arms)}")
    found: list[Found] = []
    not_compared: list[str] = []
    for arm, seeds in arms.items():
        own = baseline_of.get(arm, baseline)
        if arm != own:
            try:
                found += _compare_arms(arm, seeds, own, arms[own])
            except DataError as error:
                not_compared.append(str(error))
    results = [
        *_corrected([one for one in found if one.how.primary], "primary", "holm"),
        *_corrected([o for o in found if not o.how.primary], "exploratory", "benjamini-hochberg"),
    ]
    return {
        "baseline": baseline,
        "baseline_of": dict(baseline_of),
        "results": results,
        "not_compared": not_compared,
    }


def group_seeds(models: Mapping[str, Model]) -> dict[str, dict[str, Model]]:
    """Return {arm: {seed: model}} of models by name; the seed is "" where a name has none."""
    arms: dict[str, dict[str, Model]] = {}
    for name, model in models.items():
        arm, seed = split_name(name)
        arms.setdefault(arm, {})[seed] = model
    return arms


def _compare_arms(
    arm: str, models: Mapping[str, Scored], baseline: str, baselines: Mapping[str, Scored]
) -> list[Found]:
    pairs = pair_seeds(arm, models, baseline, baselines)
    for model, other in pairs:
        if model.records != other.records:
            shared = len(set(model.records) & set(other.records))
            raise DataError(
                f"{arm} is not compared with {baseline}: {len(model.records)} and "
                f"{len(other.records)} documents, {shared} of them shared; a paired comparison "
                "needs the same documents (the length limits keep others under another tokenizer)"
            )
    same_tokens = all(model.examples == other.examples for model, other in pairs)
    documents = compared_documents([one.figures for pair in pairs for one in pair])
    groups = [(documents, baseline, [other.figures for _, other in pairs])]
    if same_tokens:
        groups.append((COMPARED_TOKENS, baseline, [other.figures for _, other in pairs]))
        rescaled = [other.rescaled for _, other in pairs]
        groups.append((COMPARED_RESCALED, f"{baseline} rescaled", rescaled))
    found = []
    for how, name, others in groups:
        results = _compare_group(how, [model.figures for model, _ in pairs], others)
        found += [Found(arm, name, key, how[key], result) for key, result in results.items()]
    return found


def pair_seeds(
    arm: str, models: Mapping[str, Model], baseline: str, baselines: Mapping[str, Model]
) -> list[tuple[Model, Model]]:
    """Return the pairs to compare; a model without a seed is the partner of every seed.

    Args:
        arm: for the message.
        models: {seed: model} of the arm, of `group_seeds`.
        baseline: for the message.
        baselines: the same of the baseline.

    Raises:
        DataError: the two were trained with other seeds.
    """
    if set(baselines) == {""}:
        return [(model, baselines[""]) for model in models.values()]
    if set(models) == {""}:
        return [(models[""], other) for other in baselines.values()]
    if set(models) != set(baselines):
        raise DataError(
            f"{arm} is not compared with {baseline}: seeds {_seeds(models)} and "
            f"{_seeds(baselines)}; seeds are compared pair by pair"
        )
    return [(models[seed], baselines[seed]) for seed in models]


def _seeds(models: Mapping[str, Model]) -> str:
    return ", ".join(seed or "none" for seed in sorted(models))


def _compare_group(
    how: Mapping[str, Compared],
    models: Sequence[Mapping[str, Figure]],
    baselines: Sequence[Mapping[str, Figure]],
) -> dict[str, Comparison]:
    # Figures of a judge or lens are there only where one was given.
    chosen = [{name: one[name] for name in how if name in one} for one in models]
    if len(chosen) > 1:
        return compare_over_seeds(chosen, baselines)
    whole = [name for name, figure in how.items() if not figure.per_document]
    return compare(chosen[0], baselines[0], without_sign_test=whole)


def _corrected(found: Sequence[Found], family: str, correction: str) -> list[dict[str, Any]]:
    correct = holm if correction == "holm" else benjamini_hochberg
    p_values = correct([one.result.p_value for one in found])
    results = []
    for one, p_value in zip(found, p_values, strict=True):
        result = replace(one.result, corrected_p_value=p_value)
        results.append(
            {
                "model": one.model,
                "baseline": one.baseline,
                "figure": one.figure,
                "family": family,
                "correction": correction,
                **result.as_json(),
                "sentence": describe(
                    one.model,
                    one.baseline,
                    label=one.how.label,
                    unit=one.how.unit,
                    scale=one.how.scale,
                    found=result,
                ),
            }
        )
    return results
