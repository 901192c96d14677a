"""Makes what a report reads, without training anything: scores files, sweeps, token views."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

FIGURES = {
    "rougeL_f1": 0.2,
    "hhem_consistency": 0.7,
    "factual_rate": 0.6,
    "novel_entity_rate": 0.15,
    "novel_number_rate": 0.1,
    "overconfidence_gap": 0.05,
    "ece": 0.06,
    "response_nll_nats": 3.0,
    "density": 3.0,
    "mean_prediction_words": 12.0,
}
VERSIONS = {"smoothkd": "0.1.0", "torch": "2.13.0"}


def make_entry(rng: np.random.Generator, name: str, **figures: float | None) -> dict[str, Any]:
    """An entry of a scores file; figures given replace random ones."""
    values: dict[str, Any] = {k: v * float(rng.uniform(0.9, 1.1)) for k, v in FIGURES.items()}
    values |= figures
    bins = [
        {
            "min_confidence": i / 15,
            "max_confidence": (i + 1) / 15,
            "num_tokens": 100 + i,
            "mean_confidence": (i + 0.5) / 15,
            "accuracy": float(min(1.0, (i + rng.uniform(0, 1)) / 15)),
        }
        for i in range(15)
    ]
    return {
        "checkpoint": f"models/{name}",
        "fingerprint": name.encode().hex().ljust(64, "0")[:64],
        "num_documents": 200,
        "judges": {"hhem": {"threshold": 0.5}},
        **values,
        "intervals": {k: None if v is None else [v * 0.9, v * 1.1] for k, v in values.items()},
        "reliability": {"equal_width": bins, "equal_mass": bins},
        "seconds": 10.0,
        "made_with": {"dtype": "float32", "device": "cpu", "batch_size": 8, "versions": VERSIONS},
    }


def make_result(
    model: str, figure: str, difference: float, half: float = 0.01, *, baseline: str = "alpha-0"
) -> dict[str, Any]:
    """A comparison; resolved where the interval leaves 0 out."""
    low, high = difference - half, difference + half
    return {
        "model": model,
        "baseline": baseline,
        "figure": figure,
        "family": "primary",
        "correction": "holm",
        "difference": difference,
        "interval": [low, high],
        "p_value": 0.01,
        "num_documents": 200,
        "by_seed": None,
        "corrected_p_value": 0.04,
        "resolved": low > 0 or high < 0,
        "sentence": f"{model} against {baseline}: {figure} {difference:+.3f}",
    }


def make_scores(
    names: Iterable[str], results: list[dict[str, Any]] | None = None, seed: int = 0
) -> dict[str, Any]:
    """A scores file of these models, compared with alpha-0."""
    rng = np.random.default_rng(seed)
    models = {name: make_entry(rng, name) for name in names}
    arms = dict.fromkeys(name.partition("@")[0] for name in models)
    if results is None:
        results = [
            make_result(arm, figure, float(rng.normal(0, 0.02)))
            for arm in arms
            for figure in FIGURES
            if arm != "alpha-0"
        ]
    return {
        "settings": {
            "dataset": {"fingerprint": "ab" * 32, "num_records": 200},
            "template": "chat",
            "limits": {"max_examples": 200},
            "decoding": {"strategy": "greedy", "max_new_tokens": 64},
            "calibration": {"bins": 15},
        },
        "models": models,
        "references": {},
        "comparisons": {"baseline": "alpha-0", "results": results, "not_compared": []},
    }


def make_rows(
    count: int, text: str = "Paris has 42 towers and the Eiffel Tower."
) -> list[dict[str, Any]]:
    """Rows of a predictions file."""
    return [
        {
            "example_id": f"{number:064x}",
            "record_id": f"{number:064x}",
            "document_id": f"{number:064x}",
            "prediction": text,
            "references": [f"Reference {number}."],
            "hit_token_limit": False,
            "overlap": {"novel_entities": ["Eiffel Tower"], "novel_numbers": ["42"]},
        }
        for number in range(count)
    ]


def write_scores(path: Path, scores: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write a scores file with the same predictions for each of its models."""
    folder = path.parent / "predictions" / path.stem
    folder.mkdir(parents=True)
    path.write_text(json.dumps(scores))
    for name in scores["models"]:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_record(alpha: float, seed: int, steps: int = 300) -> dict[str, Any]:
    """A run.json of train-student."""
    history = [
        {"step": s, "ce": 4.0 / (1 + s / 50), "kl": 1.0 / (1 + s / 50) if alpha else None}
        for s in range(1, steps + 1)
    ]
    return {
        "command": "train-student",
        "finished": True,
        "identity": {"alpha": alpha, "seed": seed, "merge": False, "cache_fingerprint": "cd" * 32},
        "inputs": {"student": "models/student", "cache": "cache"},
        "versions": VERSIONS,
        "seconds": 60.0,
        "tokens_per_second": 500.0,
        "history": history,
    }


def make_sweep(
    folder: Path,
    *,
    alphas: tuple[float, ...] = (0.0, 0.1, 1.0),
    seeds: int = 3,
    documents: int = 20,
    evaluations: tuple[str, ...] = ("xsum",),
    cache: str = "",
) -> Path:
    """A finished sweep without weights: plan, cells, scores, predictions, cost."""
    cells = [(f"alpha-{alpha:g}", alpha, seed) for seed in range(seeds) for alpha in alphas]
    plan = {
        "format": {"name": "smoothkd-sweep", "version": 1},
        "axes": {"alpha": list(alphas), "seed": list(range(seeds))},
        "cells": [
            {"name": f"{arm}@{seed}", "arm": arm, "seed": seed, "settings": {"alpha": alpha}}
            for arm, alpha, seed in cells
        ],
        "evaluations": {name: {"data": f"{name}.jsonl"} for name in evaluations},
        "baselines": {"student": "models/student", "teacher": "models/teacher"},
        "cache": {"name": cache, "fingerprint": "cd" * 32},
        "versions": VERSIONS,
    }
    totals = {"teacher_s": 100.0, "train_s": 1234.5, "evaluate_s": 90.0, "ratio": 0.41}
    totals |= {"from_cache_s": 1334.5, "online_s": 3254.0}
    cost = {"method": "as measured", "teacher_pass": {}, "cells": {}, "totals": totals}
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(plan))
    (folder / "cost.json").write_text(json.dumps(cost))
    for arm, alpha, seed in cells:
        cell = folder / "cells" / f"{arm}@{seed}"
        (cell / "student").mkdir(parents=True)
        done = {"name": f"{arm}@{seed}", "arm": arm, "seed": seed, "state": "done"}
        done |= {"train_s": 61.0, "evaluate_s": 9.0, "error": None}
        (cell / "cell.json").write_text(json.dumps(done))
        (cell / "student" / "run.json").write_text(json.dumps(make_record(alpha, seed)))
    names = ["student", "teacher", *(f"{arm}@{seed}" for arm, _, seed in cells)]
    for number, name in enumerate(evaluations):
        scores = make_scores(names, seed=number)
        path = folder / "scores" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        write_scores(path, scores, make_rows(documents))
    return folder


def make_token_view(
    identity: dict[str, Any], *, examples: int, tokens: int, models: int, texts: list[str]
) -> dict[str, Any]:
    """A token view in which every position has five entries: the largest there can be."""
    rng = np.random.default_rng(0)

    shape = (examples, tokens, models, 5)
    rows = np.empty((*shape[:3], 12), np.int64)
    rows[..., :2] = rng.integers(0, 9999, (*shape[:3], 2))
    rows[..., 2::2] = rng.integers(0, len(texts), shape)
    rows[..., 3::2] = rng.integers(50, 9999, shape)
    return {
        "identity": identity,
        "models": ["teacher", *(f"m{number}" for number in range(models - 1))],
        "names": ["teacher", *(f"m{number}" for number in range(models - 1))],
        "exact_entropy": False,
        "tokens": texts,
        "examples": [
            {
                "id": f"{number:064x}",
                "number": number,
                "prompt": "Summarise this. " * 60,
                "gold": [int(v) for v in rng.integers(0, len(texts), tokens)],
                "num_tokens": tokens + 1,
                "positions": rows[number].tolist(),
            }
            for number in range(examples)
        ],
    }
