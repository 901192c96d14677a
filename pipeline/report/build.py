"""The stage `build-report`: reads results, draws them, and writes one page with PNGs beside it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.report.arm_charts import pareto_chart, reliability_chart
from pipeline.report.charts import alpha_chart, runs_chart
from pipeline.report.config import BuildReportConfig
from pipeline.report.documents import Document
from pipeline.report.drawing import Chart, require_matplotlib
from pipeline.report.inputs import Evaluation, Inputs, read_inputs
from pipeline.report.measures import ECE, GAP, ROUGE, find_measures
from pipeline.report.page import EvaluationPart, render
from pipeline.report.predictions import read_answers
from pipeline.report.sources import read_sources
from pipeline.report.token_view import token_view, view_path
from pipeline.report.training_charts import training_charts
from storage_schema import LogitCache, open_cache
from storage_schema.publish import publish, writing


def run(config: BuildReportConfig) -> dict[str, Any]:
    """Write the page and its PNGs, and return where they are and what the page answers.

    Charts and token view of an earlier report of this name, which this one has not, are deleted.

    Raises:
        CacheError: the cache is missing or damaged.
        ConfigError: a place to write is a directory, or a token view is asked without a cache.
        DataError: an input is missing, damaged or of another version.
        MissingPackageError: matplotlib is not installed.
        ModelError: a student of the token view does not load or is not the one evaluated.
    """
    output = Path(config.output).expanduser()
    if output.is_dir():
        raise ConfigError(f"--output {output} is a directory: expected a file name")
    require_matplotlib()
    inputs = read_inputs(config)
    if config.example and inputs.cache is None:
        raise ConfigError("--example shows cached examples: give their --cache too")
    cache = None if inputs.cache is None else open_cache(inputs.cache)
    output.parent.mkdir(parents=True, exist_ok=True)
    tokens = _tokens(config, inputs, cache)
    parts = [
        make_part(evaluation, inputs, with_answers=config.token_examples > 0)
        for evaluation in inputs.evaluations
    ]
    training = training_charts(inputs.cells)
    charts = [chart for part in parts for chart in part.charts()] + training
    page = render(config, inputs, parts, training, tokens, cache)
    folder = output.with_name(f"{output.stem}-charts")
    paths = _write_charts(folder, charts)
    if tokens is None:
        view_path(config).unlink(missing_ok=True)
    data = page.text.encode("utf-8")
    _write(output, data)
    for line in page.answers:
        print(line)
    print(f"report: {output} ({len(data) / 1e6:.2f} MB), {len(charts)} charts in {folder}")
    return {
        "report": str(output),
        "bytes": len(data),
        "charts": [str(path) for path in paths],
        "answers": page.answers,
    }


def _write_charts(folder: Path, charts: Sequence[Chart]) -> list[Path]:
    """Write the PNGs into the report's own folder, delete others, and return their paths."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{chart.name}.png" for chart in charts]
    for path, chart in zip(paths, charts, strict=True):
        _write(path, chart.png)
    for stale in set(folder.glob("*.png")).difference(paths):
        stale.unlink()
    return paths


def _write(path: Path, data: bytes) -> None:
    def write(temporary: Path) -> None:
        with writing(path):
            temporary.write_bytes(data)

    publish(path, write)


def _tokens(config: BuildReportConfig, inputs: Inputs, cache: LogitCache | None) -> Document | None:
    if not config.token_examples:
        return None
    if cache is None:
        print("no --cache given: the report has no token view", file=sys.stderr)
        return None
    return token_view(config, inputs, cache)


def make_part(evaluation: Evaluation, inputs: Inputs, *, with_answers: bool) -> EvaluationPart:
    """Return one evaluation's charts and answers.

    Args:
        evaluation: the scores.
        inputs: names the evaluation's data.
        with_answers: answers will be shown, so their documents are read.

    Raises:
        DataError: a predictions file is damaged.
    """
    # A figure that is the same everywhere (often 0) stands in the table; there is nothing to draw.
    measures = [
        measure
        for measure in find_measures(evaluation.models.values())
        if len({entry.get(measure.name) for entry in evaluation.models.values()}) > 1
    ]
    shown = [m for m in measures if m.faithful or m in (ROUGE, GAP, ECE)]
    boxes = [m for m in measures if m.faithful or m is ROUGE]
    rows, missing = read_answers(evaluation)
    settings = ((inputs.plan or {}).get("evaluations") or {}).get(evaluation.name)
    return EvaluationPart(
        evaluation=evaluation,
        runs=_there(runs_chart(evaluation, measure) for measure in boxes),
        pareto=pareto_chart(evaluation),
        curves=_there(alpha_chart(evaluation, measure) for measure in shown),
        reliability=reliability_chart(evaluation),
        rows=rows,
        missing=missing,
        sources=read_sources(evaluation.name, settings) if with_answers else {},
    )


def _there(charts: Any) -> list[Chart]:
    return [chart for chart in charts if chart is not None]
