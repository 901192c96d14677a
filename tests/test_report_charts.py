"""The charts of build-report: what they show, and that many arms stay apart."""

from pathlib import Path

import pytest
from sweep_factory import (
    make_rows,
    make_scores,
    make_sweep,
    write_scores,
)

from pipeline.report.arm_charts import pareto_chart, pareto_front, pool_bins, reliability_chart
from pipeline.report.arms import group_arms
from pipeline.report.charts import alpha_chart, run_groups, spread
from pipeline.report.drawing import legend_height, marker, shorten, wrap
from pipeline.report.inputs import Evaluation, read_evaluation
from pipeline.report.measures import (
    ROUGE,
)
from pipeline.report.training_charts import mean_curve


def evaluation(tmp_path: Path, scores: dict, rows: list | None = None) -> Evaluation:
    return read_evaluation(write_scores(tmp_path / "xsum.json", scores, rows or make_rows(3)))


def test_pareto_front_keeps_what_nothing_beats_in_both() -> None:
    assert pareto_front([(1, 1), (2, 0.5), (0.5, 2), (0.9, 0.9), (1, 1)]) == [0, 1, 2, 4]


GRID = [
    f"alpha-{alpha},learning-rate-{rate},batch-size-{size}@0"
    for alpha in (0, 0.01, 0.1, 1, 10)
    for rate in ("5e-06", "1e-05")
    for size in (4, 8)
]


def uncompared(folder: Path, names: list[str]) -> Evaluation:
    folder.mkdir()
    scores = make_scores(names, [])
    scores["comparisons"]["baseline"] = names[0].partition("@")[0]
    return evaluation(folder, scores)


@pytest.mark.filterwarnings("error")  # matplotlib warns where marks are squeezed to nothing
def test_many_arms_have_their_legend_below_and_marks_of_their_own(tmp_path: Path) -> None:
    few = uncompared(tmp_path / "few", ["alpha-0@0", "alpha-1@0"])
    many = uncompared(tmp_path / "many", [*GRID, "teacher", "x" * 90])
    assert legend_height([arm.label for arm in few.arms]) == 0
    for make in (pareto_chart, lambda e: alpha_chart(e, ROUGE), reliability_chart):
        small, large = make(few), make(many)
        assert small is not None
        assert large is not None
        heights = [
            float(c.svg.split('viewBox="')[1].split()[3].rstrip('"')) for c in (small, large)
        ]
        assert heights[1] > heights[0] + 50
        assert "learning-rate-5e-06, batch-size-8" in large.svg
    assert len({tuple(marker(n).values()) for n in range(60)}) == 60
    assert max(len(line) for line in wrap("alpha 1, learning-rate-5e-06, " * 5).split("\n")) <= 50
    assert shorten("x" * 90) == "x" * 23 + "…"


def test_plain_fine_tuning_is_not_called_distilled(tmp_path: Path) -> None:
    names = ["alpha-0@0", "alpha-1,tail-ghost@0", "alpha-1,tail-renormalize@0"]
    chart = alpha_chart(uncompared(tmp_path / "a", names), ROUGE)
    assert chart is not None
    assert ">SFT<" in chart.svg
    assert "distilled" not in chart.svg
    names = ["alpha-0,rate-1@0", "alpha-1,rate-1@0", "alpha-0,rate-2@0", "alpha-1,rate-2@0"]
    chart = alpha_chart(uncompared(tmp_path / "b", names), ROUGE)
    assert chart is not None
    assert ">rate-1<" in chart.svg
    assert ">SFT" not in chart.svg


def test_runs_are_grouped_as_sft_all_distilled_and_each_alpha(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "s", seeds=2)
    found = run_groups(read_evaluation(sweep / "scores" / "xsum.json"), ROUGE)
    assert [(label, len(values)) for label, _, values, _ in found] == [
        ("SFT", 2),
        ("KD, all", 4),
        ("α 0.1", 2),
        ("α 1", 2),
    ]


def test_bins_of_seeds_are_pooled_by_tokens() -> None:
    def entry(accuracy: float, tokens: int) -> dict:
        part = {"mean_confidence": 0.5, "accuracy": accuracy, "num_tokens": tokens}
        return {"reliability": {"equal_width": [part]}}

    models = {"alpha-1@0": entry(0.4, 100), "alpha-1@1": entry(0.8, 300)}
    (arm,) = group_arms(models)
    assert pool_bins(models, arm, 15) == [(7, pytest.approx(0.5), pytest.approx(0.7), 400)]


def test_thinning_keeps_both_ends_and_curves_share_steps() -> None:
    assert spread(list(range(10)), 4) == [0, 3, 6, 9]
    assert spread([1, 2], 5) == [1, 2]
    curves = [[(1, 1.0), (2, 2.0)], [(2, 4.0), (3, 9.0)], []]
    assert mean_curve(curves) == [(2, 3.0)]
