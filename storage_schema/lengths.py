"""The lengths of a shard's responses as one line of text in the manifest.

    int32le.zlib.base64:eJzjYGBg0GFkYAAAAPsANg==        [8, 300]

The prefix says how to read the rest, from right to left: base64, then zlib, then little-endian
int32. A million lengths as JSON numbers would take seconds to read; as text they take
milliseconds, and are decoded only where they are asked for.
"""

import base64
import binascii
import zlib

import numpy as np

from storage_schema.errors import CacheDamagedError
from storage_schema.response import Int32Array

PREFIX = "int32le.zlib.base64:"


def encode_lengths(lengths: Int32Array) -> str:
    """Return int32 lengths as text."""
    packed = zlib.compress(np.asarray(lengths, "<i4").tobytes())
    return PREFIX + base64.b64encode(packed).decode("ascii")


def check_encoding(text: str, where: str) -> None:
    """Refuse text in another encoding, without decoding it.

    Raises:
        CacheDamagedError: it does not start with PREFIX.
    """
    if not text.startswith(PREFIX):
        raise CacheDamagedError(f"{where} starts with {text[:40]!r}, expected {PREFIX!r}")


def decode_lengths(text: str, count: int, where: str) -> Int32Array:
    """Return the `count` lengths in `text`, int32 [count], each from 1 to 2^31 - 1.

    Never allocates more than `count` lengths take, whatever the text claims.

    Args:
        text: of encode_lengths.
        count: how many there must be.
        where: names the field in messages.

    Raises:
        CacheDamagedError: the text does not decode to exactly so many lengths above 0.
    """
    check_encoding(text, where)
    inflater = zlib.decompressobj()
    try:
        packed = base64.b64decode(text[len(PREFIX) :], validate=True)
        data = inflater.decompress(packed, 4 * count + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise CacheDamagedError(f"{where} cannot be decoded ({error})") from error
    if len(data) != 4 * count or not inflater.eof or inflater.unused_data:
        rest = "" if inflater.eof and not inflater.unused_data else " and more or a torn end"
        raise CacheDamagedError(
            f"{where} holds {len(data) // 4} lengths{rest}, expected exactly {count}"
        )
    lengths = np.frombuffer(data, "<i4").astype(np.int32)
    if lengths.min(initial=1) < 1:
        bad = int(np.argmin(lengths))
        raise CacheDamagedError(f"{where}: length {bad} is {lengths[bad]}, expected 1 to 2^31 - 1")
    return lengths
