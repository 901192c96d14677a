"""Texts whose faithfulness is known by how they are made; no label, no model, English only.

A sentence of the source is supported by it, the summary of another document is not; a supported
text with a name of the source in another's place, another number, or a negation is not any more.
Each change is the first that can be made, so the same file gives the same texts everywhere.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.evaluation.extractiveness import words
from pipeline.evaluation.judges.sentences import split_lines
from pipeline.evaluation.labelled_pairs import LabelledPair
from pipeline.evaluation.novelty import NUMBER, find_entities, find_numbers

# More would cost a judge much and say little.
MAX_DOCUMENTS = 200
SENTENCE_WORDS = range(6, 41)
# The text that a judge compares with itself: whole sentences of at most so many words.
ITSELF_WORDS = 100
# Their negation contradicts; "may not" or "should not" would not.
AUXILIARY = re.compile(r"\b(is|are|was|were|will|has|had|does|did)\b( not\b)?", re.IGNORECASE)
CAPITALISED_BEFORE = re.compile(r"\b[^\W\d_a-z]\w*\.?\s+$")
NEGATED = re.compile(r"n['\u2019]t\b|\b(?:no|never|nor|none|nothing|nobody|neither)\b", re.I)


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """One control.

    Attributes:
        control: its name; of a change, "entity_swap" and so on.
        source: what stands in the text's place: "source_sentence" or "summary"; "" for no change.
        document: the premise.
        text: the hypothesis, before a change.
        changed: the hypothesis after it; None where nothing is changed.
    """

    control: str
    source: str
    document: str
    text: str
    changed: str | None = None


def make_known_answers(pairs: Sequence[LabelledPair]) -> list[KnownAnswer]:
    """Return the controls over the first MAX_DOCUMENTS distinct documents of the pairs.

    Of a document without a fitting sentence, number, name or auxiliary verb some are missing.
    """
    summaries: dict[str, str] = {}
    faithful: dict[str, str] = {}
    for pair in pairs:
        if words(pair.summary):
            summaries.setdefault(pair.document, pair.summary)
            if pair.faithful:
                faithful.setdefault(pair.document, pair.summary)
    documents = list(summaries)[:MAX_DOCUMENTS]
    found: list[KnownAnswer] = []
    for place, document in enumerate(documents):
        sentences = [s for s in split_lines(document) if len(words(s)) in SENTENCE_WORDS]
        found += [KnownAnswer("source_sentence", "", document, text) for text in sentences[:1]]
        found += _whole_texts(document, summaries[document], summaries[documents[place - 1]])
        found += _changes("source_sentence", document, sentences)
        found += _changes("summary", document, [faithful[document]] if document in faithful else [])
    return found


def _whole_texts(document: str, own: str, other: str) -> list[KnownAnswer]:
    found = [KnownAnswer("empty", "", document, "")]
    if other != own:
        found.append(KnownAnswer("other_summary", "", document, other))
    head = ""
    for sentence in split_lines(document):
        if len(words(f"{head} {sentence}")) > ITSELF_WORDS:
            break
        head = f"{head} {sentence}".strip()
    if words(head):
        found.append(KnownAnswer("itself", "", head, head))
    return found


def _changes(source: str, document: str, texts: Sequence[str]) -> list[KnownAnswer]:
    """Return each change of the first of the texts that it can be made to."""
    found = []
    for name, change in CHANGES.items():
        for text in texts:
            changed = change(text, document)
            if changed is not None:
                found.append(KnownAnswer(name, source, document, text, changed))
                break
    return found


def swap_entity(text: str, document: str) -> str | None:
    """Return the text with its first name replaced by one of the document; None without any.

    The other name shares no word with the text and has as many words where there is such a one.
    A name right behind a capitalised word is left alone: it may go on from there. Names:
    `novelty.find_entities`.
    """
    here = set(words(text))
    others = [name for name in find_entities(document) if here.isdisjoint(words(name))]
    for name in find_entities(text) if others else ():
        for match in re.finditer(rf"\b{re.escape(name)}\b", text):
            if not CAPITALISED_BEFORE.search(text[: match.start()]):
                other = min(others, key=lambda one: len(one.split()) != len(name.split()))
                return text[: match.start()] + other + text[match.end() :]
    return None


def change_number(text: str, document: str) -> str | None:
    """Return the text with the last digit of its first number changed; None without a number.

    The new number occurs nowhere in the document.
    """
    match = NUMBER.search(text)
    if match is None:
        return None
    known = set(find_numbers(document))
    number = match.group()
    for step in range(1, 10):
        changed = f"{number[:-1]}{(int(number[-1]) + step) % 10}"
        if not known.intersection(find_numbers(changed)):
            return text[: match.start()] + changed + text[match.end() :]
    return None


def negate(text: str, document: str) -> str | None:
    """Return the text with "not" behind its first auxiliary verb, or without the one there.

    None without such a verb, and where the text negates in another way.
    """
    match = AUXILIARY.search(text)
    if match is None or NEGATED.search(text):
        return None
    verb = match.group(1)
    return text[: match.start()] + (verb if match.group(2) else f"{verb} not") + text[match.end() :]


CHANGES: dict[str, Callable[[str, str], str | None]] = {
    "entity_swap": swap_entity,
    "number_change": change_number,
    "negation": negate,
}
