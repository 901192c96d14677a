"""Known-answer controls: how the texts are made, and what is said of judges by them."""

import json
from pathlib import Path

import pytest

import pipeline.evaluation.evaluate as evaluate
from pipeline.errors import DataError
from pipeline.evaluation.config import EvaluateStudentConfig
from pipeline.evaluation.controls import measure_controls
from pipeline.evaluation.known_answers import (
    MAX_DOCUMENTS,
    change_number,
    make_known_answers,
    negate,
    swap_entity,
)
from pipeline.evaluation.labelled_pairs import LabelledPair

DOCUMENT = (
    "The mayor of Paris opened 12 parks in 2016. Later Anna Berg was seen there with 3 friends. "
    "It did not rain."
)


@pytest.mark.parametrize(
    ("change", "text", "expected"),
    [
        (swap_entity, "The mayor of Paris is glad.", "The mayor of Anna Berg is glad."),
        (swap_entity, "She and Anna Berg were seen.", "She and Paris were seen."),
        (swap_entity, "Then Paris was seen.", None),  # "Then Paris" may be one name
        (swap_entity, "Mr. Paris was seen.", None),
        (swap_entity, "Seen in Paris with Anna Berg.", None),  # no other name is left
        (swap_entity, "all in lower case", None),
        (change_number, "It opened 12 parks.", "It opened 13 parks."),
        (change_number, "In 2016 it was.", "In 2017 it was."),
        (change_number, "With 2 friends.", "With 4 friends."),  # the document has a 3
        (change_number, "About 1,209 of 12.", "About 1,200 of 12."),
        (change_number, "No digits.", None),
        (negate, "She was seen there.", "She was not seen there."),
        (negate, "It did not rain.", "It did rain."),
        (negate, "Was she there?", "Was not she there?"),
        (negate, "It was never seen.", None),
        (negate, "It wasn't seen and is here.", None),
        (negate, "They sing.", None),
    ],
)
def test_changes_by_hand(change, text, expected):
    assert change(text, DOCUMENT) == expected


def test_a_name_of_as_many_words_is_preferred():
    document = "We met Anna Berg and Paris and Ms Eva Lind."
    assert swap_entity("They saw John Smith.", document) == "They saw Anna Berg."
    assert swap_entity("They saw Bob.", document) == "They saw Paris."


def test_every_number_taken_leaves_no_change():
    assert change_number("7 men", " ".join(str(n) for n in range(10))) is None


def pairs() -> list[LabelledPair]:
    return [
        LabelledPair(DOCUMENT, "A lie about Paris.", False),
        LabelledPair(DOCUMENT, "Today, Paris was given 12 parks.", True),
        LabelledPair("One short line.", "A line.", True),
    ]


def test_the_texts_of_a_document():
    found = {
        (one.control, one.source): (one.text, one.changed)
        for one in make_known_answers(pairs())
        if one.document == DOCUMENT
    }
    first, second = "The mayor of Paris opened 12 parks in 2016.", "Later Anna Berg was seen there"
    second += " with 3 friends."
    assert found == {
        ("source_sentence", ""): (first, None),
        ("empty", ""): ("", None),
        ("other_summary", ""): ("A line.", None),
        ("itself", ""): (DOCUMENT, None),
        ("entity_swap", "source_sentence"): (first, first.replace("Paris", "Anna Berg")),
        ("number_change", "source_sentence"): (first, first.replace("12", "13")),
        # The first sentence has no auxiliary verb, so it is the second.
        ("negation", "source_sentence"): (second, second.replace("was", "was not")),
        # Of the faithful summary, not of the first.
        ("entity_swap", "summary"): (pairs()[1].summary, "Today, Anna Berg was given 12 parks."),
        ("number_change", "summary"): (pairs()[1].summary, "Today, Paris was given 13 parks."),
        ("negation", "summary"): (pairs()[1].summary, "Today, Paris was not given 12 parks."),
    }


def test_long_documents_are_read_in_part_and_many_are_cut():
    long = " ".join(f"This is sentence number {n} of a long text." for n in range(50))
    (itself,) = [one for one in make_known_answers([LabelledPair(long, "x", True)])
                 if one.control == "itself"]  # fmt: skip
    assert itself.document == itself.text == long[: len(itself.text)]
    assert itself.text.endswith("long text.")
    assert 90 < len(itself.text.split()) <= 100
    many = [LabelledPair(f"{DOCUMENT} {n}", f"s {n}", True) for n in range(MAX_DOCUMENTS + 5)]
    made = make_known_answers(many)
    assert sum(one.control == "empty" for one in made) == MAX_DOCUMENTS
    assert make_known_answers(many) == made


class Copies:
    """Supports what stands in the document word for word, and half of what is short."""

    threshold = 0.5

    def score(self, given):
        return [1.0 if text in document else 0.25 for document, text in given]


def test_figures_by_hand():
    found = measure_controls("j", Copies(), make_known_answers(pairs()))
    assert found["unchanged"]["source_sentence"]["mean_score"] == 1
    assert found["unchanged"]["itself"]["consistent_rate"] == 1
    assert found["unchanged"]["other_summary"]["mean_score"] == 0.25
    assert found["unchanged"]["empty"] == {
        "num_texts": 2,
        "mean_score": 0,
        "consistent_rate": 0,
        "intervals": {"mean_score": None, "consistent_rate": None},
    }
    assert found["changed"]["source_sentence"]["negation"] == {
        "num_texts": 1,
        "mean_score_before": 1,
        "mean_drop": 0.75,
        "falls": 1,
        "intervals": {"mean_score_before": None, "mean_drop": None, "falls": None},
    }
    # This judge does not see that the summary was changed: it never found it supported.
    assert found["changed"]["summary"]["number_change"]["falls"] == 0
    nothing = measure_controls("j", Copies(), [])
    assert nothing["unchanged"]["itself"] is None
    assert nothing["changed"]["summary"]["negation"] is None


JUDGE = """
class Copies:
    threshold = 0.5

    def score(self, pairs):
        return [1.0 if text in document else 0.25 for document, text in pairs]
"""


@pytest.mark.parametrize("labelled", [True, False])
def test_controls_stand_in_the_validation_with_and_without_labels(
    tmp_path: Path, labelled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"document": f"{DOCUMENT} And {n} more are to come.", "summary": f"Paris has {n} parks."}
        for n in range(12)
    ]
    if labelled:
        rows = [{**row, "label": place % 2} for place, row in enumerate(rows)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "judge.py").write_text(JUDGE)
    settings = {
        "validate_judge": str(tmp_path / "pairs.jsonl"),
        "output": str(tmp_path / "judges.json"),
        "judge": (f"j:python={tmp_path / 'judge.py'}:Copies",),
    }
    result = evaluate.run(EvaluateStudentConfig(**settings))
    judge = result["judges"]["j"]
    changes = judge["controls"]["changed"]["source_sentence"]
    assert changes["entity_swap"]["num_texts"] == 12
    assert changes["entity_swap"]["intervals"]["falls"] == (1.0, 1.0)
    assert ("whole" in judge, result["pairs"]["labelled"]) == (labelled, labelled)
    assert judge["cost"]["known_answers"]["rows_per_second"] > 0
    assert ("labelled_pairs" in judge["cost"]) is labelled
    printed = capsys.readouterr().out
    assert "entity swap in a source sentence: falls in 100 % of 12, by 0.750 on av" in printed
    assert "other summary: mean score 0.250 (near 0 is right), 12 texts" in printed
    assert ("no labels: known answers only" in printed) is not labelled


def test_a_dataset_without_sources_or_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    config = EvaluateStudentConfig(
        validate_judge=str(tmp_path / "rows.jsonl"), output=str(tmp_path / "o.json")
    )
    with pytest.raises(DataError, match=r"rows\.jsonl: no row has a source to judge against, nor"):
        evaluate.run(config)
