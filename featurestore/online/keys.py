"""The key layout of the online store. This docstring is its specification.

    <uid>{<tag>}<key bytes>     the row of one entity in one view version
    <uid>:loaded                the marker: the number of the run of the last completed load, in decimal digits

`uid` is the version's, 8 hexadecimal digits that no other version of any registry has, so versions, views and projects share a
server without meeting. `tag` is three characters of base64url, the 18 low bits of the CRC-32 of the key bytes: all views of one
entity share a slot of a cluster, and entities spread over all slots.

Key bytes are the key columns from left to right: fixed widths as in the slots of `rows.py`; Strings (UTF-8) and Bytes with their
length before them as a little-endian uint32, except in the last column, where they end with the key. So no two keys have the same
bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pyarrow as pa

from featurestore.online.rows import fixed_bytes
from featurestore.types import ValueType

__all__ = ["key_bytes", "marker", "online_key", "pattern"]

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def online_key(uid: str, key: bytes) -> bytes:
    """Return the key of an entity's row in a view version."""
    tag = zlib.crc32(key)
    return b"%s{%c%c%c}%s" % (uid.encode(), _BASE64[tag >> 12 & 63], _BASE64[tag >> 6 & 63], _BASE64[tag & 63], key)


def marker(uid: str) -> str:
    """Return the key of a version's marker."""
    return f"{uid}:loaded"


def pattern(uid: str) -> str:
    """Return the pattern that matches the keys of a version's rows, and nothing else."""
    return uid + "{*"


def key_bytes(columns: Sequence[pa.ChunkedArray], types: Sequence[ValueType]) -> list[bytes]:
    """Return the key bytes of each row. Columns have the declared types and no nulls."""
    last = len(columns) - 1
    parts = [_part(column, type_, is_last=index == last) for index, (column, type_) in enumerate(zip(columns, types, strict=True))]
    return parts[0] if len(parts) == 1 else [b"".join(each) for each in zip(*parts, strict=True)]


def _part(column: pa.ChunkedArray, type_: ValueType, *, is_last: bool) -> list[bytes]:
    if type_.is_fixed_width:
        rows = fixed_bytes(column, type_)
        width, content = rows.shape[1], rows.tobytes()
        return [content[start : start + width] for start in range(0, len(content), width)]
    values: list[bytes] = column.cast(pa.large_binary()).to_pylist()
    return values if is_last else [len(value).to_bytes(4, "little") + value for value in values]
