"""Student and cache must share a vocabulary, and the student must read the longest sequence."""

import pytest
from cache_factory import make_plan, random_responses
from transformers import AutoConfig

from pipeline.errors import ModelError
from pipeline.models.checkpoint import find_checkpoint
from pipeline.models.loading import load_tokenizer
from pipeline.student.fit import StudentFacts, check_fit, read_student_facts


def facts(**changes) -> StudentFacts:
    fields = {
        "vocabulary_fingerprint": "test-vocabulary",
        "vocabulary_size": 1000,
        "vocabulary_rows": 1000,
        "max_positions": 256,
        **changes,
    }
    return StudentFacts(**fields)


@pytest.fixture(scope="module")
def plan():
    return make_plan(random_responses(2), vocabulary_size=1000, k=8)


def test_equal_vocabularies_fit(plan):
    check_fit(facts(), plan, 256, None)
    check_fit(facts(max_positions=None), plan, 10**6, 8)


def test_padding_rows_are_no_difference(plan):
    check_fit(facts(vocabulary_rows=1024), plan, 10, None)


@pytest.mark.parametrize(
    ("changes", "longest", "top_k", "message"),
    [
        ({"vocabulary_fingerprint": "b" * 64}, 10, None, r"test-vocabulary… \(1000 .*bbbbb…"),
        ({"vocabulary_rows": 999}, 10, None, "cache has 1000 tokens, the student predicts 999"),
        ({}, 10, 9, "--top-k asks for 9, the cache stores 8"),
        ({}, 257, None, "has 257 tokens, the student reads at most 256"),
    ],
)
def test_each_difference_is_named_with_both_values(plan, changes, longest, top_k, message):
    with pytest.raises(ModelError, match=message):
        check_fit(facts(**changes), plan, longest, top_k)


def test_all_differences_are_listed_at_once(plan):
    student = facts(vocabulary_fingerprint="c" * 64, vocabulary_rows=10, max_positions=5)
    with pytest.raises(ModelError) as caught:
        check_fit(student, plan, 300, 20)
    assert len(str(caught.value).splitlines()) == 5


def test_facts_are_read_from_the_checkpoint(tiny_model):
    checkpoint = find_checkpoint(str(tiny_model))
    found = read_student_facts(
        checkpoint, load_tokenizer(checkpoint), AutoConfig.from_pretrained(tiny_model)
    )
    assert found.vocabulary_rows >= found.vocabulary_size > 256
    assert found.max_positions == 256
    assert len(found.vocabulary_fingerprint) == 64
