"""What an answer takes from its source and adds to it: vectors by hand, a slow twin, bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.records import Record
from pipeline.errors import DataError
from pipeline.evaluation.extractiveness import fragment_lengths, measure_extractiveness, words
from pipeline.evaluation.figures import overlap_figures
from pipeline.evaluation.novelty import find_entities, find_numbers, measure_novelty
from pipeline.evaluation.refusals import is_refusal
from pipeline.evaluation.scores import document_id, measure_overlap, measure_references

SOURCE = (
    "Angela Merkel met Emmanuel Macron in Berlin on Monday. They agreed on 1,000 flats for "
    "$2.50 each, said the BBC."
)


def test_extractiveness_by_hand() -> None:
    found = measure_extractiveness("the cat sat today quietly", "the cat sat on the mat today")
    assert (found.coverage, found.density, found.compression) == (0.8, 2.0, 1.4)
    assert (found.num_words, found.longest_copied_words, found.lead_copy) == (5, 3, False)
    # Of 5, 4, 3 and 2 n-grams: "quietly"; then everything but "the cat" and "cat sat" ...
    assert found.novel_ngrams == ((1, 5), (2, 4), (2, 3), (2, 2))


def test_the_longest_run_wins_not_the_first() -> None:
    assert fragment_lengths("a b c".split(), "a b x a b c".split()) == [3]
    assert fragment_lengths("a b a b".split(), "a b".split()) == [2, 2]
    assert fragment_lengths("x y".split(), "a b".split()) == []
    assert fragment_lengths([], ["a"]) == []


def test_a_copied_lead() -> None:
    found = measure_extractiveness("The cat SAT,", "the cat sat on the mat")
    assert found.lead_copy
    assert (found.coverage, found.density) == (1.0, 3.0)
    assert not measure_extractiveness("cat sat", "the cat sat").lead_copy


def test_words_are_normalised() -> None:
    assert words("\uff34he \ufb01sh's Zo\u00eb\u2019s 3.5%") == [
        *("the", "fish", "s", "zo\u00eb", "s", "3", "5")
    ]


def test_an_empty_answer_has_lengths_but_no_shares() -> None:
    found = measure_extractiveness(" ... ", "a source")
    assert (found.num_words, found.longest_copied_words, found.lead_copy) == (0, 0, False)
    assert found.coverage is found.density is found.compression is None
    assert found.novel_ngrams == ((0, 0),) * 4


def slow_fragments(answer: list[str], source: list[str]) -> list[int]:
    """The definition word for word: at each place the longest run found anywhere."""
    lengths, start = [], 0
    while start < len(answer):
        length = 0
        while start + length < len(answer) and any(
            source[at : at + length + 1] == answer[start : start + length + 1]
            for at in range(len(source))
        ):
            length += 1
        if length:
            lengths.append(length)
        start += max(1, length)
    return lengths


short_texts = st.lists(st.sampled_from("abcd"), max_size=12)


@given(short_texts, st.lists(st.sampled_from("abcd"), min_size=1, max_size=12))
def test_extractiveness_of_any_text(answer: list[str], source: list[str]) -> None:
    assert fragment_lengths(answer, source) == slow_fragments(answer, source)
    found = measure_extractiveness(" ".join(answer), " ".join(source))
    if answer:
        assert 0 <= found.coverage <= 1
        assert found.coverage**2 <= found.density + 1e-9
        assert found.density <= found.longest_copied_words <= len(answer)
        # Every word that the source has lies in a fragment, and no other.
        assert found.coverage == pytest.approx(1 - found.novel_ngrams[0][0] / len(answer))
    rates = [novel / count for novel, count in found.novel_ngrams if count]
    assert all(0 <= rate <= 1 for rate in rates)
    itself = measure_extractiveness(" ".join(source), " ".join(source))
    assert (itself.coverage, itself.density, itself.lead_copy) == (1.0, len(source), True)
    assert all(novel == 0 for novel, _ in itself.novel_ngrams)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,000 and 1000 and 12,345,678.90", ["1000", "1000", "12345678.9"]),
        ("2.50 2.5 2.0 2 007 0 0.0", ["2.5", "2.5", "2", "2", "7", "0", "0"]),
        ("3,5 and 1,00 and 1.2.3", ["3,5", "1,00", "1.2.3"]),  # ambiguous: as written
        ("Dec 25, 2020.", ["25", "2020"]),
        ("\u00a31.5bn, 10k, 1st, 50%", ["1.5", "10", "1", "50"]),
        ("three of them", []),
        ("\uff11\uff12", ["12"]),
    ],
)
def test_numbers(text: str, numbers: list[str]) -> None:
    assert find_numbers(text) == numbers


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("The minister met Angela Merkel in Berlin.", ["Angela Merkel", "Berlin"]),
        ("Angela Merkel spoke. Berlin listened.", ["Merkel"]),  # a sentence's first word is none
        ("He said: I met Macron, Merkel and O'Brien.", ["Macron", "Merkel", "O Brien"]),
        ('He left. "Paris is far," she said.', []),
        ("See the U.S. Navy and Jean-Luc.", ["U S Navy", "Jean Luc"]),
        ("He met Mr. Smith and St. John.", ["Mr Smith", "St John"]),
        ("He met Gen. Smith.", ["Gen"]),  # an abbreviation not known ends the sentence
        ("all lower case", []),
        ("line one\nBerlin is new", []),
        ("The year 2020 and the BBC", ["BBC"]),
        ("\u00c9mile and \u00c9mile Zola", ["\u00c9mile Zola"]),
        ("", []),
    ],
)
def test_entities(text: str, entities: list[str]) -> None:
    assert find_entities(text) == entities


def test_novelty_by_hand() -> None:
    answer = "On Monday Angela Merkel met Boris Johnson about 1000 flats, 2.5 each, and 7 ships."
    found = measure_novelty(answer, SOURCE)
    assert found.entities == ("Monday Angela Merkel", "Boris Johnson")
    assert found.novel_entities == ("Boris Johnson",)
    assert found.numbers == ("1000", "2.5", "7")
    assert found.novel_numbers == ("7",)
    assert not found.lower_case
    # In any case, and by each word: "MERKEL" is known, "Mrs" is not.
    assert measure_novelty("Talks with MERKEL", SOURCE).novel_entities == ()
    assert measure_novelty("Talks with Mrs Merkel", SOURCE).novel_entities == ("Mrs Merkel",)


def test_lower_case_answers_are_marked() -> None:
    assert measure_novelty("boris johnson", SOURCE).lower_case
    assert not measure_novelty("Boris", SOURCE).lower_case
    assert not measure_novelty("123 ...", SOURCE).lower_case


@given(st.text(max_size=80), st.text(max_size=30))
def test_novelty_of_any_text(answer: str, more: str) -> None:
    source = f"word {answer} {more}"
    itself = measure_novelty(answer, source)
    assert itself.novel_entities == ()
    found = measure_novelty(answer, "word")
    assert set(found.novel_entities) <= set(found.entities)
    assert set(found.novel_numbers) == set(found.numbers)


@pytest.mark.parametrize("measure", [measure_extractiveness, measure_novelty])
@pytest.mark.parametrize("source", ["", " -- "])
def test_a_source_without_words_is_refused(measure: object, source: str) -> None:
    with pytest.raises(DataError, match=f"the source '{source}' has no words"):
        measure("an answer", source)  # type: ignore[operator]


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry",
        '"I am unable to summarise this."',
        "I cannot answer.",
        "As an AI language model, I do not know",
        "As a language model",
        "Sorry, I can't",
        "Unfortunately, I cannot",
        "I apologize for",
    ],
)
def test_refusals(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A man who said he was sorry has been jailed.",
        "I can help with that.",
        "As an aide to the minister",
        "Sorry sight at the docks",
        "It cannot be seen. I'm sorry.",
        "I candidly agree",
    ],
)
def test_no_refusals(answer: str) -> None:
    assert not is_refusal(answer)


def record(context: str | None, response: str = "An answer.") -> Record:
    return Record(instruction="Summarize.", context=context, response=response)


def test_rows_without_a_source_have_no_overlap() -> None:
    assert measure_overlap("text", record(None)) is None
    assert measure_overlap("text", record("...")) is None
    assert measure_overlap("text", record(SOURCE)) is not None


def test_means_leave_out_documents_without_the_quantity() -> None:
    overlaps = [
        measure_overlap("Talks with Boris in Berlin about 7 ships", record(SOURCE)),
        measure_overlap("agreed on 1000 flats", record(SOURCE)),
        measure_overlap("", record(SOURCE)),
        None,
    ]
    figures = {name: figure.estimate for name, figure in overlap_figures(overlaps).items()}
    assert figures["novel_entity_rate"] == 0.5  # one document has names
    assert figures["novel_number_rate"] == 0.5  # 1 of 1, 0 of 1
    # "in", "berlin" of 8 words; "agreed", "on", "flats" of 4.
    assert figures["coverage"] == pytest.approx((2 / 8 + 3 / 4) / 2)
    assert figures["lead_copy_rate"] == 0.0
    none = overlap_figures([None, None])
    assert {figure.estimate for figure in none.values()} == {None}


def test_records_about_one_document_share_its_id() -> None:
    assert document_id(record("a", "x")) == document_id(record("a", "y"))
    assert document_id(record("a")) != document_id(record("b"))
    assert document_id(record(None)) != document_id(
        Record(instruction="Other.", context=None, response="x")
    )
    texts = [Record(instruction=None, context=None, response=text) for text in "aba"]
    ids = [document_id(text) for text in texts]
    assert ids[0] == ids[2] != ids[1]


def test_references_are_measured_as_answers_are() -> None:
    records = [record(SOURCE, "Merkel met Macron"), record("one two", "one two"), record(None)]
    found = measure_references(records)
    assert found["num_documents"] == 3
    assert found["mean_words"] == pytest.approx((3 + 2 + 2) / 3)
    assert found["lead_copy_rate"] == 0.5
    assert found["intervals"]["coverage"] is None
