"""Lengths as text: round trips, damage, and text that lies about its size."""

import base64
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_schema.errors import CacheDamagedError
from storage_schema.lengths import PREFIX, decode_lengths, encode_lengths


def text_of(data: bytes) -> str:
    return PREFIX + base64.b64encode(data).decode()


@given(st.lists(st.integers(1, 2**31 - 1), max_size=50))
def test_lengths_travel_through_text(lengths: list[int]) -> None:
    found = decode_lengths(encode_lengths(np.array(lengths, np.int32)), len(lengths), "here")
    assert found.dtype == np.int32
    assert found.tolist() == lengths


GOOD = zlib.compress(np.array([8, 300], "<i4").tobytes())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base64:AAAA", "here starts with 'base64:AAAA', expected 'int32le.zlib.base64:'"),
        (PREFIX + "€", "here cannot be decoded .*ASCII"),
        (PREFIX + "e J z", "here cannot be decoded"),
        (text_of(b"no zlib"), "here cannot be decoded .*incorrect header check"),
        (text_of(GOOD[:-1] + b"x"), "here cannot be decoded .*incorrect data check"),
        (text_of(GOOD[:-5]), "here holds 2 lengths and more or a torn end, expected exactly 2"),
        (text_of(GOOD + b"x"), "here holds 2 lengths and more or a torn end, expected exactly 2"),
        (text_of(b""), "expected exactly 2"),
        (encode_lengths(np.array([5], np.int32)), "here holds 1 lengths, expected exactly 2"),
        (encode_lengths(np.array([5, 6, 7], np.int32)), "here holds .*expected exactly 2"),
        (text_of(zlib.compress(b"1234567")), "expected exactly 2"),
        (encode_lengths(np.array([5, 0], np.int32)), r"here: length 1 is 0, expected 1 to 2\^31"),
        (encode_lengths(np.array([-5, 3], np.int32)), "here: length 0 is -5, expected 1"),
    ],
)
def test_other_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(CacheDamagedError, match=message):
        decode_lengths(text, 2, "here")


def test_text_that_inflates_without_end_takes_no_memory() -> None:
    bomb = text_of(zlib.compress(bytes(2**26)))
    tracemalloc.start()
    with pytest.raises(CacheDamagedError, match="expected exactly 4"):
        decode_lengths(bomb, 4, "here")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(bomb)
