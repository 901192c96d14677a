"""Every model of a scores file against its baseline: corrected p-values and plain sentences.

Models named ARM@SEED are one arm trained with several seeds and compared seed by seed. What
cannot be compared (other documents, other tokenizer, other seeds) is named, not guessed.

The primary figures of all models form one family, corrected by Holm's procedure; all other
figures are exploratory and corrected by Benjamini and Hochberg's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

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


def read_scored(
    rows: Sequence[Row], num_bins: int, more: Mapping[str, Figure] = MappingProxyType({})
) -> Scored:
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


def compare_models(scored: Mapping[str, Scored], baseline: str) -> dict[str, Any]:
    """Return {"baseline", "results", "not_compared"} of all arms against the arm `baseline`.

    A result holds model, baseline, figure, family ("primary" or "exploratory"), correction, the
    fields of a Comparison in the figure's own unit, and the sentence.

    Raises:
        DataError: there is no arm of that name.
    """
    arms: dict[str, dict[str, Scored]] = {}
    for name, model in scored.items():
        arm, seed = split_name(name)
        arms.setdefault(arm, {})[seed] = model
    if baseline not in arms:
        raise DataError(f"no model {baseline!r} to compare with: there are {', '.join(arms)}")
    found: list[Found] = []
    not_compared: list[str] = []
    for arm, seeds in arms.items():
        if arm != baseline:
            try:
                found += _compare_arms(arm, seeds, baseline, arms[baseline])
            except DataError as error:
                not_compared.append(str(error))
    results = [
        *_corrected([one for one in found if one.how.primary], "primary", "holm"),
        *_corrected([o for o in found if not o.how.primary], "exploratory", "benjamini-hochberg"),
    ]
    return {"baseline": baseline, "results": results, "not_compared": not_compared}


def _compare_arms(
    arm: str, models: Mapping[str, Scored], baseline: str, baselines: Mapping[str, Scored]
) -> list[Found]:
    pairs = _pair_seeds(arm, models, baseline, baselines)
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


def _pair_seeds(
    arm: str, models: Mapping[str, Scored], baseline: str, baselines: Mapping[str, Scored]
) -> list[tuple[Scored, Scored]]:
    """Return the pairs to compare; a model without a seed is the partner of every seed."""
    if len(models) > 1 and len(baselines) == 1:
        (other,) = baselines.values()
        return [(model, other) for model in models.values()]
    if len(baselines) > 1 and len(models) == 1:
        (model,) = models.values()
        return [(model, other) for other in baselines.values()]
    if len(models) > 1 and set(models) != set(baselines):
        raise DataError(
            f"{arm} is not compared with {baseline}: seeds {', '.join(sorted(models))} and "
            f"{', '.join(sorted(baselines))}; seeds are compared pair by pair"
        )
    if len(models) == 1:
        return list(zip(models.values(), baselines.values(), strict=True))
    return [(models[seed], baselines[seed]) for seed in models]


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
