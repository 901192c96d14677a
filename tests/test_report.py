"""What a report says: findings, failure signs, levels, token rows, and what it refuses to read."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sweep_factory import (
    make_entry,
    make_record,
    make_result,
    make_rows,
    make_scores,
    make_sweep,
    write_scores,
)

from pipeline.cli.build_report import main
from pipeline.errors import ConfigError, DataError
from pipeline.report.arms import first_model, group_arms
from pipeline.report.config import BuildReportConfig
from pipeline.report.failure_signs import claim_requirements, find_signs
from pipeline.report.findings import (
    answer,
    describe_basis,
    describe_pairs,
    join_first,
    opening,
)
from pipeline.report.inputs import Evaluation, Inputs, read_evaluation, read_inputs
from pipeline.report.levels import arm_level
from pipeline.report.marks import mark
from pipeline.report.measures import (
    FACTUAL_RATE,
    GAP,
    NEW_NAMES,
    NLL,
    ROUGE,
    Measure,
    format_change,
    format_value,
)
from pipeline.report.predictions import read_answers
from pipeline.report.token_text import token_texts, visible
from pipeline.report.training_charts import training_charts


def evaluation(tmp_path: Path, scores: dict, rows: list | None = None) -> Evaluation:
    return read_evaluation(write_scores(tmp_path / "xsum.json", scores, rows or make_rows(3)))


# ---- names out of data, and scores without a student -------------------------------------------


def test_a_charts_name_is_a_plain_file_name() -> None:
    from pipeline.report.drawing import draw

    chart = draw('x"><h1>/../y z', "t", "d", lambda figure: figure.add_subplot())
    assert chart.name == "x---h1--..-y-z"
    assert "<h1>" not in chart.svg


def test_scores_without_a_student_have_no_token_view(tmp_path: Path) -> None:
    from pipeline.report.inputs import Inputs
    from pipeline.report.token_view import token_view

    scores = make_scores(["teacher"], [])
    scores["comparisons"]["baseline"] = "teacher"
    inputs = Inputs([evaluation(tmp_path, scores)], [], None, None, "cache")
    with pytest.raises(DataError, match="holds no student to show tokens of, only a teacher"):
        token_view(BuildReportConfig(scores=("x.json",), output="r.html"), inputs, None)


# ---- arms and levels --------------------------------------------------------------------------


def test_models_are_grouped_by_arm_in_the_order_of_alpha() -> None:
    names = ["alpha-10@0", "alpha-0.01@0", "alpha-0@1", "alpha-0@0", "teacher", "student"]
    arms = group_arms([*names, "alpha-0.01,tail-ghost@0"])
    assert [arm.label for arm in arms] == [
        "student",
        "teacher",
        "SFT",
        "α 0.01",
        "α 0.01, tail-ghost",
        "α 10",
    ]
    assert [arm.role for arm in arms][:4] == ["untouched", "teacher", "sft", "kd"]
    assert arms[2].models == {"1": "alpha-0@1", "0": "alpha-0@0"}
    assert first_model(arms[2]) == "alpha-0@0"
    assert group_arms(["alpha-1e-3"])[0].alpha == 0.001


def trained(tmp_path: Path, alphas: dict[str, float | None], baseline: str) -> Inputs:
    """Scores of models with these alphas in the records beside their weights, if not None."""
    results = [make_result("kd", "hhem_consistency", 0.03, baseline=baseline)]
    scores = make_scores(alphas, results)
    scores["comparisons"]["baseline"] = baseline
    for name, alpha in alphas.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        scores["models"][name]["checkpoint"] = str(folder)
        if alpha is not None:
            (folder / "run.json").write_text(json.dumps(make_record(alpha, 0)))
    path = write_scores(tmp_path / "xsum.json", scores, make_rows(3))
    return read_inputs(BuildReportConfig(scores=(str(path),)))


def test_an_arm_of_any_name_has_the_alpha_of_its_record(tmp_path: Path) -> None:
    inputs = trained(tmp_path, {"base": None, "teacher": 1.0, "sft": 0.0, "kd": 1.0}, "sft")
    (found,) = inputs.evaluations
    described = [(arm.label, arm.role, arm.alpha) for arm in found.arms]
    assert described == [
        ("base", "untouched", None),
        ("teacher", "teacher", None),
        ("sft", "sft", 0.0),
        ("kd", "kd", 1.0),
    ]
    assert opening(answer(found)) == (
        "Yes",
        "better by the one figure: factual consistency (hhem), +3.0 points [2.0, 4.0] (kd).",
    )
    assert "Changes are against plain fine-tuning (sft)" in describe_basis(found)
    assert [cell.name for cell in inputs.cells] == ["sft", "kd"]
    assert [row[0] for row in training_charts(inputs.cells)[0].rows] == ["sft", "kd"]


def test_an_arm_whose_seeds_have_other_alphas_or_no_record_has_none(tmp_path: Path) -> None:
    alphas = {"kd@0": 1.0, "kd@1": 0.5, "sft@0": 0.0, "sft@1": None, "tuned": 2.0}
    trained(tmp_path, alphas, "sft")
    record = tmp_path / "runs" / "tuned" / "run.json"
    damage(record, command="finetune-teacher", identity={})
    found = read_evaluation(tmp_path / "xsum.json")
    assert {arm.role for arm in found.arms} == {"untouched"}
    text = answer(found)[0].text
    assert "holds no distilled arm: a model named alpha-X with X above 0, or one" in text
    damage(record, command="train-student", identity={"alpha": "1"})
    with pytest.raises(DataError, match=r"run\.json, identity: field 'alpha' is '1', expected"):
        read_evaluation(tmp_path / "xsum.json")


def test_level_of_one_seed_is_the_files_own() -> None:
    entry = {"rougeL_f1": 0.2, "intervals": {"rougeL_f1": [0.1, 0.4]}}
    (arm,) = group_arms(["alpha-1@0"])
    level = arm_level({"alpha-1@0": entry}, arm, ROUGE)
    assert level is not None
    assert level.mean == 0.2
    assert level.interval == pytest.approx((0.1, 0.4))


def test_level_of_several_seeds_adds_their_scatter_in_quadrature() -> None:
    models = {
        f"alpha-1@{seed}": {
            "rougeL_f1": value,
            "intervals": {"rougeL_f1": [value - 0.03, value + 0.05]},
        }
        for seed, value in enumerate((0.4, 0.5, 0.6))
    }
    (arm,) = group_arms(models)
    level = arm_level(models, arm, ROUGE)
    assert level is not None
    seeds = 1.96 * np.std([0.4, 0.5, 0.6], ddof=1) / math.sqrt(3)
    assert level.mean == pytest.approx(0.5)
    expected = (0.5 - math.hypot(0.03, seeds), 0.5 + math.hypot(0.05, seeds))
    assert level.interval == pytest.approx(expected)
    models["alpha-1@2"]["intervals"]["rougeL_f1"] = None
    level = arm_level(models, arm, ROUGE)
    assert level is not None
    assert level.interval is None
    assert arm_level(models, arm, FACTUAL_RATE) is None


@pytest.mark.parametrize(
    ("measure", "values", "expected"),
    [
        (NEW_NAMES, (0.01, 0.09), (0.0, 0.129)),
        (ROUGE, (0.9, 0.99), (0.856, 1.0)),
        (GAP, (-0.1, 0.1), (-0.196, 0.196)),
        (NLL, (0.5, 1.5), (0.02, 1.98)),
    ],
)
def test_a_level_keeps_to_the_figures_limits(
    measure: Measure, values: tuple[float, float], expected: tuple[float, float]
) -> None:
    models = {
        f"alpha-1@{seed}": {measure.name: value, "intervals": {measure.name: [value, value]}}
        for seed, value in enumerate(values)
    }
    (arm,) = group_arms(models)
    level = arm_level(models, arm, measure)
    assert level is not None
    assert level.interval == pytest.approx(expected, abs=1e-3)


def test_numbers_are_as_exact_as_their_intervals() -> None:
    assert format_change(ROUGE, 0.0123456, (0.001, 0.02)) == "+1.23 points [0.10, 2.00]"
    assert format_change(ROUGE, -0.12, (-0.3, 0.1)) == "−12.0 points [−30.0, 10.0]"
    assert format_value(ROUGE, None) == "–"


# ---- the answer -------------------------------------------------------------------------------


def judged(tmp_path: Path, *results: dict) -> tuple[str, list[str]]:
    scores = make_scores(["alpha-0", "alpha-0.1", "alpha-1"], list(results))
    findings = answer(evaluation(tmp_path, scores))
    return ": ".join(opening(findings)), [f"{f.lead}. {f.text}" for f in findings]


def test_noise_is_called_noise_with_its_largest_interval(tmp_path: Path) -> None:
    lead, lines = judged(
        tmp_path,
        make_result("alpha-0.1", "hhem_consistency", 0.004),
        make_result("alpha-1", "hhem_consistency", -0.006),
    )
    assert lead == (
        "Not measurably: the largest change is that of factual consistency (hhem), "
        "−0.6 points [−1.6, 0.4] (alpha-1)."
    )
    assert lines == [
        "Inside noise. None of 2 distilled arms differs measurably in factual consistency (hhem); "
        "the largest change is −0.6 points [−1.6, 0.4] (alpha-1)."
    ]


def test_a_gain_and_a_loss_are_both_in_the_opening(tmp_path: Path) -> None:
    lead, lines = judged(
        tmp_path,
        make_result("alpha-0.1", "hhem_consistency", 0.03),
        make_result("alpha-1", "hhem_consistency", 0.001),
        make_result("alpha-1", "novel_entity_rate", 0.05),
    )
    assert lead == (
        "Both better and worse: factual consistency (hhem), +3.0 points [2.0, 4.0] (alpha-0.1), "
        "but names not in the source, +5.0 points [4.0, 6.0] (alpha-1)."
    )
    assert lines[0] == (
        "Better. Factual consistency (hhem): alpha-0.1 +3.0 points [2.0, 4.0]; alpha-1 is inside "
        "noise."
    )
    assert lines[1].startswith("Worse. Names not in the source: alpha-1 +5.0 points")


def test_a_loss_alone_is_no_and_a_gain_alone_yes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    lead, _ = judged(tmp_path / "a", make_result("alpha-1", "factual_rate", -0.04))
    assert lead == "No: worse by the one figure: factual rate, −4.0 points [−5.0, −3.0] (alpha-1)."
    (tmp_path / "b").mkdir()
    lead, _ = judged(tmp_path / "b", make_result("alpha-1", "novel_entity_rate", -0.04))
    assert lead.startswith("Yes: better by the one figure: names not in the source, −4.0 points")


def test_a_gap_is_better_when_it_comes_closer_to_zero(tmp_path: Path) -> None:
    for number, (before, change, lead) in enumerate(
        [(0.05, -0.04, "Better"), (0.05, 0.04, "Worse"), (-0.05, 0.04, "Better")]
    ):
        scores = make_scores(
            ["alpha-0", "alpha-1"], [make_result("alpha-1", "overconfidence_gap", change)]
        )
        scores["models"]["alpha-0"]["overconfidence_gap"] = before
        (tmp_path / str(number)).mkdir()
        findings = answer(evaluation(tmp_path / str(number), scores))
        assert [f.lead for f in findings if f.measure is GAP] == [lead]


def test_without_evidence_the_answer_is_not_measured(tmp_path: Path) -> None:
    without = make_result("alpha-1", "novel_entity_rate", 0.2) | {"interval": None}
    lead, _ = judged(tmp_path, without)
    assert lead == (
        "Not measured: No difference in a figure of faithfulness has an interval: 200 documents "
        "are too few, or too few of them have names and numbers."
    )
    (tmp_path / "a").mkdir()
    lead, _ = judged(tmp_path / "a", make_result("alpha-1", "rougeL_f1", 0.2))
    assert lead == (
        "Not measured: No distilled arm is compared with alpha-0 in any figure of faithfulness."
    )
    (tmp_path / "b").mkdir()
    findings = answer(evaluation(tmp_path / "b", make_scores(["alpha-0", "student"], [])))
    assert "holds no distilled arm" in findings[0].text


def test_what_plain_fine_tuning_itself_is_compared_with_is_said(tmp_path: Path) -> None:
    names = [f"alpha-{alpha},rate-{rate}" for rate in (1, 2) for alpha in (0, 1)]
    scores = make_scores(names, [])
    scores["comparisons"]["baseline"] = names[0]
    scores["comparisons"]["baseline_of"] = {names[3]: names[2]}
    found = evaluation(tmp_path, scores)
    assert describe_pairs(found) == (
        "plain fine-tuning of the same further settings (alpha-0,rate-1 for that itself)"
    )
    (tmp_path / "one").mkdir()
    one = evaluation(tmp_path / "one", make_scores(["alpha-0", "alpha-1"], []))
    assert describe_pairs(one) == "plain fine-tuning (alpha-0)"


def test_of_many_arms_the_sentences_name_the_largest_changes(tmp_path: Path) -> None:
    names = ["alpha-0", *(f"alpha-{n}" for n in range(1, 12))]
    results = [make_result(f"alpha-{n}", "rougeL_f1", 0.01 * n) for n in range(1, 9)]
    results += [make_result(f"alpha-{n}", "rougeL_f1", 0.0, 0.5) for n in range(9, 12)]
    found = answer(evaluation(tmp_path, make_scores(names, results)))
    (text,) = [finding.text for finding in found if finding.measure is ROUGE]
    assert text.startswith("ROUGE-L: alpha-8 +8.0 points")
    assert "alpha-3 +3.0" in text
    assert "alpha-2 +2.0" not in text
    assert "; and 1 more; alpha-1, alpha-9, alpha-10, alpha-11 are inside noise." in text
    assert join_first("abcdefg", ", ") == "a, b, c, d, e, f, and 1 more"


# ---- failure signs ----------------------------------------------------------------------------


def signs(tmp_path: Path, *results: dict) -> dict[str, tuple[str, str]]:
    scores = make_scores(["teacher", "alpha-0", "alpha-0.1", "alpha-10"], list(results))
    rows = make_rows(4)
    found = evaluation(tmp_path, scores, rows)
    # alpha-10 invents what the teacher does; plain fine-tuning invents something else.
    path = found.predictions_path("alpha-0")
    other = [row | {"overlap": {"novel_entities": ["Oslo"], "novel_numbers": []}} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in other))
    answers, _ = read_answers(found)
    return {s.name.partition(":")[0]: (s.state, s.detail) for s in find_signs(found, answers)}


def test_failure_signs_are_seen_where_intervals_say_so(tmp_path: Path) -> None:
    found = signs(
        tmp_path,
        make_result("alpha-10", "rougeL_f1", 0.02),
        make_result("alpha-10", "factual_rate", -0.05),
        make_result("alpha-10", "density", 0.5, 0.1),
        make_result("alpha-10", "overconfidence_gap", 0.04),
    )
    assert found["Metrics diverge"] == (
        "seen",
        "alpha-10 +2.0 points [1.0, 3.0] ROUGE-L, but −5.0 points [−6.0, −4.0] factual rate",
    )
    assert found["Collapse at high alpha"][0] == "seen"
    assert found["Extractiveness rises"] == (
        "seen",
        "alpha-10 +0.50 words [0.40, 0.60] copied density",
    )
    assert found["Confidence moves the wrong way"][0] == "seen"
    state, detail = found["Students repeat the teacher's inventions"]
    assert state == "hint"
    assert "SFT: 0 of 4; α 0.1: 8 of 8; α 10: 8 of 8" in detail


def test_of_many_arms_those_that_repeat_the_teacher_are_named(tmp_path: Path) -> None:
    arms = ["alpha-0", *(f"alpha-{n}" for n in range(1, 10))]
    rows = make_rows(4)
    found = evaluation(tmp_path, make_scores(["teacher", *arms], []), rows)
    other = [row | {"overlap": {"novel_entities": ["Oslo"], "novel_numbers": []}} for row in rows]
    for arm in arms[:-1]:  # only the last repeats what the teacher invents
        text = "".join(json.dumps(row) + "\n" for row in other)
        found.predictions_path(arm).write_text(text)
    answers, _ = read_answers(found)
    (sign,) = [s for s in find_signs(found, answers) if s.name.startswith("Students repeat")]
    assert sign.state == "hint"
    assert "too: SFT: 0 of 4; α 9: 8 of 8; α 1: 0 of 4;" in sign.detail
    assert sign.detail.endswith("; and 4 more")


def test_failure_signs_inside_noise_are_hints_and_others_not_seen(tmp_path: Path) -> None:
    found = signs(
        tmp_path,
        make_result("alpha-0.1", "rougeL_f1", 0.002),
        make_result("alpha-0.1", "factual_rate", -0.005),
        make_result("alpha-10", "rougeL_f1", -0.005),
        make_result("alpha-10", "factual_rate", 0.05),
        make_result("alpha-10", "density", -0.5, 0.1),
        make_result("alpha-10", "overconfidence_gap", -0.02),
    )
    assert found["Metrics diverge"][0] == "hint"
    assert found["Metrics diverge"][1].startswith("inside noise: alpha-0.1 +0.2 points")
    assert found["Collapse at high alpha"][0] == "hint"
    assert found["Extractiveness rises"][0] == "not seen"
    assert found["Confidence moves the wrong way"][0] == "not seen"


def test_what_was_not_measured_is_said_so(tmp_path: Path) -> None:
    found = signs(tmp_path, make_result("alpha-10", "rougeL_f1", 0.02))
    assert found["Metrics diverge"][0] == "not measured"
    assert found["Confidence moves the wrong way"][0] == "not measured"
    assert found["Extractiveness rises"][0] == "not measured"
    (tmp_path / "b").mkdir()
    found = signs(tmp_path / "b", make_result("alpha-0.1", "rougeL_f1", 0.02))
    expected = ("not measured", "no difference of alpha 10 has an interval")
    assert found["Collapse at high alpha"] == expected


def test_a_claim_needs_more_than_one_figure(tmp_path: Path) -> None:
    names = [f"{arm}@{seed}" for arm in ("alpha-0", "alpha-1") for seed in range(3)]
    results = [
        make_result("alpha-1", "hhem_consistency", 0.03),
        make_result("alpha-1", "novel_entity_rate", -0.03),
        make_result("alpha-1", "overconfidence_gap", -0.03),
        make_result("alpha-1", "density", 0.0, 0.1),
    ]
    scores = make_scores(names, results)
    for name in names:
        scores["models"][name]["overconfidence_gap"] = 0.05
    needs = claim_requirements(evaluation(tmp_path, scores))
    assert [need.met for need in needs] == [True, True, True, True, True, None]
    fallen = {"model": "alpha-1", "task": "t", "difference": -0.03, "resolved": True}
    for place, (figure, met) in enumerate([("overconfidence_gap", None), ("acc_norm", False)]):
        (tmp_path / str(place)).mkdir()
        scores["comparisons"]["tasks"] = [{**fallen, "figure": figure}]
        needs = claim_requirements(evaluation(tmp_path / str(place), scores))
        assert needs[-1].met is met
    results[1] = make_result("alpha-1", "novel_entity_rate", 0.03)
    results[3] = make_result("alpha-1", "density", 0.5, 0.1)
    (tmp_path / "b").mkdir()
    needs = claim_requirements(evaluation(tmp_path / "b", make_scores(names[:2], results)))
    assert needs == []  # nothing distilled
    (tmp_path / "c").mkdir()
    needs = claim_requirements(
        evaluation(tmp_path / "c", make_scores(["alpha-0", "alpha-1"], results))
    )
    assert [need.met for need in needs][:4] == [False, False, True, False]


# ---- answers and tokens -----------------------------------------------------------------------


def test_inventions_are_marked_where_they_stand() -> None:
    text = "The Eiffel-Tower is 1,042.50 m; Paris has 42. Ann and Anna"
    parts, absent = mark(text, ["Eiffel Tower", "Ann", "Rome"], ["1042.5", "7"])
    assert "".join(part for part, _ in parts) == text
    assert [(part, kind) for part, kind in parts if kind != "plain"] == [
        ("Eiffel-Tower", "name"),
        ("1,042.50", "number"),
        ("Ann", "name"),
    ]
    assert absent == ["Rome", "7"]


def test_text_that_hides_or_reorders_is_made_visible() -> None:
    assert visible("a\u202eb\x00c\ud800\n\td") == "a⟨U+202E⟩b⟨U+0000⟩c⟨U+D800⟩\n\td"
    assert visible("שלום 🎉 é") == "שלום 🎉 é"


def test_tokens_that_are_no_whole_character_are_shown_as_bytes(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer("🎉é x", add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, [*ids, 10**6])
    assert texts[:4] == ["⟨F0⟩", "⟨9F⟩", "⟨8E⟩", "⟨89⟩"]
    assert texts[4:6] == ["⟨C3⟩", "⟨A9⟩"]
    assert "".join(texts[6:-1]) == " x"
    assert texts[-1] == "⟨id 1000000⟩"
    assert token_texts(tokenizer, [tokenizer.eos_token_id]) == ["<|im_end|>"]


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ([], "give either --sweep DIRECTORY or --scores FILE"),
        (["--scores", "a.json", "--sweep", "s"], "give either --sweep"),
        (["--scores", "a.json", "--token-examples", "-1"], "--token-examples -1: must be 0 to 500"),
        (["--scores", "a.json", "--output", "x.htm"], "--output 'x.htm': must be a file name"),
        (["--scores", "a.json", "--example", "xyz"], "--example 'xyz': expected 6 to 64 digits"),
        (["--sweep", "s3://b/s"], "--sweep s3://b/s is a URL"),
        (
            ["--scores", "a.json", "--token-examples", "0", "--example", "abcdef"],
            "--token-examples 0 leaves them out",
        ),
    ],
)
def test_bad_flags_are_refused_before_any_work(flags: list[str], match: str) -> None:
    result = CliRunner().invoke(main, flags)
    assert result.exit_code == 2, result.output
    assert match in " ".join(result.output.split()), result.output


def test_an_example_without_a_cache_and_a_folder_as_output_are_refused(tmp_path: Path) -> None:
    from pipeline.report.build import run

    path = write_scores(tmp_path / "a.json", make_scores(["alpha-0"], []), [])
    with pytest.raises(ConfigError, match="give their --cache"):
        run(BuildReportConfig(scores=(str(path),), example=("abcdef",)))
    (tmp_path / "d.html").mkdir()
    with pytest.raises(ConfigError, match=r"d\.html is a directory"):
        run(BuildReportConfig(scores=(str(path),), output=str(tmp_path / "d.html")))


def damage(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | changes))


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("missing", None, "does not exist: expected what evaluate-student writes"),
        ("torn", '{"settings": {', "is damaged or no file of evaluate-student"),
        ("nan", '{"settings": NaN}', "it holds NaN"),
        ("list", "[]", "holds a list, expected a JSON object"),
        ("other", '{"a": 1}', "field 'settings' is None, expected an object"),
        (
            "empty",
            '{"settings": {}, "models": {}, "comparisons": {}}',
            "holds no models",
        ),
    ],
)
def test_damaged_scores_are_named(tmp_path: Path, name: str, text: str | None, match: str) -> None:
    path = tmp_path / f"{name}.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=match) as error:
        read_evaluation(path)
    assert str(path) in str(error.value)


def test_scores_of_another_version_are_named_by_their_field(tmp_path: Path) -> None:
    scores = make_scores(["alpha-0", "alpha-1"])
    path = write_scores(tmp_path / "x.json", scores, [])

    def refused(match: str, **changes: object) -> None:
        path.write_text(json.dumps(scores | changes))
        with pytest.raises(DataError, match=match):
            read_evaluation(path)

    entry = make_entry(np.random.default_rng(0), "alpha-0")
    models = scores["models"]
    broken_entry = entry | {"rougeL_f1": None}
    refused("model 'alpha-0': field 'rougeL_f1' is None", models=models | {"alpha-0": broken_entry})
    refused(
        "the interval of 'ece' is .0., expected two numbers",
        models=models | {"alpha-0": {**entry, "intervals": {"ece": [0]}}},
    )
    refused(
        "field 'equal_width' is None", models=models | {"alpha-0": {**entry, "reliability": {}}}
    )
    comparisons = scores["comparisons"]
    refused("the baseline 'sft' is no model", comparisons=comparisons | {"baseline": "sft"})
    broken = make_result("alpha-1", "ece", 0.1) | {"difference": True}
    refused(
        "result 0: field 'difference' is True, expected a number",
        comparisons=comparisons | {"results": [broken]},
    )
    broken = make_result("alpha-1", "ece", 0.1) | {"interval": ["a", 1]}
    refused("interval of the difference", comparisons=comparisons | {"results": [broken]})


def test_damaged_predictions_are_named_by_line(tmp_path: Path) -> None:
    found = evaluation(tmp_path, make_scores(["alpha-0"], []))
    path = found.predictions_path("alpha-0")
    path.write_text(json.dumps(make_rows(1)[0]) + "\n{torn\n")
    with pytest.raises(DataError, match=r"alpha-0\.jsonl, line 2 is damaged"):
        read_answers(found)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"alpha-0\.jsonl is damaged"):
        read_answers(found)
    path.unlink()
    assert read_answers(found) == ({}, ["alpha-0"])


def test_damaged_sweeps_are_named(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "s", seeds=1)
    config = BuildReportConfig(sweep=str(sweep))
    assert len(read_inputs(config).cells) == 3
    damage(sweep / "cost.json", totals=None)
    with pytest.raises(DataError, match=r"cost\.json: field 'totals' is None"):
        read_inputs(config)
    damage(sweep / "cost.json", totals={})
    damage(sweep / "cells" / "alpha-1@0" / "cell.json", state=None)
    with pytest.raises(DataError, match=r"alpha-1@0/cell\.json: field 'state' is None"):
        read_inputs(config)
    damage(sweep / "sweep.json", format={"name": "smoothkd-sweep", "version": 2})
    with pytest.raises(DataError, match=r"sweep\.json is of format version 2, this release reads"):
        read_inputs(config)
    damage(sweep / "sweep.json", format={"name": "smoothkd-sweep", "version": 1})
    for path in (sweep / "scores").glob("*.json"):
        path.unlink()
    with pytest.raises(DataError, match="holds no scores file: the sweep has not finished"):
        read_inputs(config)
    with pytest.raises(DataError, match=r"sweep\.json does not exist"):
        read_inputs(BuildReportConfig(sweep=str(tmp_path / "none")))


def test_two_scores_files_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(str(write_scores(tmp_path / folder / "x.json", make_scores(["alpha-0"]), [])))
    with pytest.raises(DataError, match=r"two files are named x\.json"):
        read_inputs(BuildReportConfig(scores=tuple(paths)))
