"""Puts the page together: one HTML file with its style, script, pictures and data inside.

Everything that comes from data goes through the template engine's escaping, after characters
that hide or reorder text were made visible. The page may load nothing (Content-Security-Policy)
and run only the one script whose hash it names.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.report.answers import choose_answers
from pipeline.report.config import BuildReportConfig
from pipeline.report.cost import cost_note, cost_summary, recorded_seconds, run_costs
from pipeline.report.documents import Document
from pipeline.report.drawing import COLOURS, Chart
from pipeline.report.failure_signs import claim_requirements, find_signs
from pipeline.report.findings import (
    answer,
    describe_baseline,
    describe_basis,
    describe_pairs,
    opening,
)
from pipeline.report.inputs import Evaluation, Inputs
from pipeline.report.measures import FACTUAL_RATE, find_measures
from pipeline.report.predictions import Rows
from pipeline.report.provenance import (
    cache_rows,
    commands,
    data_rows,
    model_rows,
    seed_rows,
    version_rows,
)
from pipeline.report.sources import Sources
from pipeline.report.tables import headline, other_comparisons
from pipeline.report.token_text import visible
from storage_schema import LogitCache


@dataclass(frozen=True, slots=True)
class EvaluationPart:
    """One evaluation with its charts and answers."""

    evaluation: Evaluation
    runs: list[Chart]
    pareto: Chart | None
    curves: list[Chart]
    reliability: Chart | None
    rows: Rows
    missing: list[str]
    sources: Sources

    def charts(self) -> list[Chart]:
        """Return all charts there are."""
        single = [chart for chart in (self.pareto, self.reliability) if chart is not None]
        return [*self.runs, *self.curves, *single]


@dataclass(frozen=True, slots=True)
class Page:
    """The file's text, and the answers it opens with."""

    text: str
    answers: list[str]


def render(
    config: BuildReportConfig,
    inputs: Inputs,
    parts: list[EvaluationPart],
    training: list[Chart],
    tokens: Document | None,
    cache: LogitCache | None,
) -> Page:
    """Return the page.

    Args:
        config: the report's settings.
        inputs: what was read.
        parts: the evaluations.
        training: the training curves.
        tokens: the token view; None leaves it out.
        cache: the cache; None where none was named.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=_shown,
    )  # fmt: skip
    script = _resource("page.js")
    evaluations = [_evaluation(part, config, tokens) for part in parts]
    train, evaluate = recorded_seconds(inputs)
    text = environment.from_string(_resource("page.html")).render(
        style=Markup(_palette() + _resource("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        evaluations=evaluations,
        training=training,
        baseline=_asked_against(parts),
        tokens=None if tokens is None else Markup(_data(tokens)),
        token_choice=_choice(config, tokens),
        token_models=[] if tokens is None else tokens["models"],
        exact_entropy=tokens is not None and tokens["exact_entropy"],
        cost_summary=cost_summary(inputs),
        run_costs=run_costs(inputs),
        cost_note=cost_note(inputs),
        train_seconds=train,
        evaluate_seconds=evaluate,
        failed=[cell for cell in inputs.cells if cell.document.get("state") == "failed"],
        models=model_rows(inputs),
        data=data_rows(inputs),
        cache=cache_rows(inputs, cache),
        versions=version_rows(inputs),
        seeds=seed_rows(inputs),
        commands=commands(inputs),
    )
    answers = [f"{e['name']}: {f.lead}. {f.text}" for e in evaluations for f in e["findings"]]
    return Page(text, answers)


def _asked_against(parts: Sequence[EvaluationPart]) -> str:
    """Return what the page's question names: plain fine-tuning, unless it is not the baseline."""
    names = {describe_baseline(part.evaluation) for part in parts}
    if all(name.startswith("plain fine-tuning") for name in names):
        return "plain fine-tuning"
    return " or ".join(sorted(names))


def _evaluation(
    part: EvaluationPart, config: BuildReportConfig, tokens: Document | None
) -> dict[str, Any]:
    evaluation = part.evaluation
    findings = answer(evaluation)
    columns, rows = headline(evaluation)
    shown = [] if tokens is None else [example["id"] for example in tokens["examples"]]
    return {
        "name": evaluation.name,
        "opening": opening(findings),
        "findings": findings,
        "basis": describe_basis(evaluation),
        "baseline": describe_pairs(evaluation),
        "columns": columns,
        "rows": rows,
        "signs": find_signs(evaluation, part.rows),
        "requirements": claim_requirements(evaluation),
        "not_measured": _not_measured(evaluation),
        "comparisons": other_comparisons(evaluation),
        "not_compared": evaluation.scores["comparisons"].get("not_compared") or [],
        "runs": part.runs,
        "pareto": part.pareto,
        "curves": part.curves,
        "reliability": part.reliability,
        "answers": choose_answers(
            evaluation, part.rows, config.token_examples, shown, part.sources
        ),
        "missing": part.missing,
    }


def _not_measured(evaluation: Evaluation) -> list[str]:
    found = find_measures(evaluation.models.values())
    reasons = []
    if FACTUAL_RATE not in found:
        reasons.append("factual rate (evaluate-student --lookback-lens)")
    if not any("consistency" in measure.label for measure in found):
        reasons.append("factual consistency (evaluate-student --judge)")
    return reasons


def _choice(config: BuildReportConfig, tokens: Document | None) -> str:
    if tokens is None:
        return ""
    if config.example:
        return "named on the command line"
    return "evenly spaced through the cache, so that nobody picked them"


def _palette() -> str:
    """Return the colours as CSS variables for light and dark, chosen by system or by hand."""
    light = "".join(f"--{role}:{pair[0]};" for role, pair in COLOURS.items())
    dark = "".join(f"--{role}:{pair[1]};" for role, pair in COLOURS.items())
    return (
        f":root{{{light}color-scheme:light}}\n"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}"
        f"color-scheme:dark}}}}\n:root[data-theme=dark]{{{dark}color-scheme:dark}}\n"
    )


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _data(document: Document) -> str:
    """Return JSON that no HTML parser can take for markup."""
    text = json.dumps(document, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _resource(name: str) -> str:
    return (files("pipeline.report") / "templates" / name).read_text(encoding="utf-8")
