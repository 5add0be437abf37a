"""The key layout of the online store. This docstring is its specification.

    <uid>{<tag>}<key bytes>     the row of one entity in one view version
    <uid>:loaded                the marker: the number of the run of the last completed load, in decimal digits
    <uid>:writing               the fence: the number of the run that last began to write, in decimal digits
    <uid>:pushed                of a push view: until which arrival, in decimal digits, all pushes have been written
    <uid>:loaded{<tag>}         the same on a cluster, one of each for every primary: the tag belongs to its first slot
    <uid>:writing{<tag>}
    <uid>:pushed{<tag>}

`uid` is the version's, 8 hexadecimal digits that no other version of any registry has, so versions, views and projects share a
server without meeting. `tag` is three characters of base64url, the 18 low bits of the CRC-32 of the key bytes: all views of one
entity share a slot of a cluster, and entities spread over all slots.

Key bytes are the key columns from left to right: fixed widths as in the slots of `rows.py`; Strings (UTF-8) and Bytes with their
length before them as a little-endian uint32, except in the last column, where they end with the key. So no two keys have the same
bytes.
"""

from __future__ import annotations

import datetime as dt
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.online.tails import contiguous, fixed_bytes, fixed_column, lengths_of
from featurestore.types import ValueType

__all__ = ["KeyBlock", "KeyCodec", "cursor", "fence", "key_bytes", "key_codec", "marker", "online_key", "pattern", "slot", "slots"]

SLOTS = 16384
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
_PLAIN: dict[str, tuple[type, Callable[[Any], bytes]]] = {
    "String": (str, str.encode),
    "Bytes": (bytes, bytes),
    "Int64": (int, struct.Struct("<q").pack),
    "Int32": (int, struct.Struct("<i").pack),
    "Bool": (bool, struct.Struct("<?").pack),
    "Date": (dt.date, lambda day: struct.pack("<i", day.toordinal() - _EPOCH_DAY)),
}
"""The Python type whose values are keys as they are, and their bytes; what is of another type Arrow converts or refuses."""

_FIRST = [b"{%c%c" % (_BASE64[pair >> 6], _BASE64[pair & 63]) for pair in range(4096)]
_LAST = [b"%c}" % each for each in _BASE64]


def online_key(uid: str, key: bytes) -> bytes:
    """Return the key of an entity's row in a view version."""
    hashed = zlib.crc32(key)
    return b"".join((uid.encode(), _FIRST[hashed >> 6 & 4095], _LAST[hashed & 63], key))


def marker(uid: str, first_slot: int | None = None) -> str:
    """Return the key of a version's marker, on a cluster that of the primary whose first slot is given."""
    return f"{uid}:loaded" + _tag_in(first_slot)


def fence(uid: str, first_slot: int | None = None) -> str:
    """Return the key of a version's fence, on a cluster that of the primary whose first slot is given."""
    return f"{uid}:writing" + _tag_in(first_slot)


def cursor(uid: str, first_slot: int | None = None) -> str:
    """Return the key that says how far pushes have been written, on a cluster that of the primary whose first slot is given."""
    return f"{uid}:pushed" + _tag_in(first_slot)


def pattern(uid: str) -> str:
    """Return the pattern that matches the keys of a version's rows, and nothing else."""
    return uid + "{*"


def key_bytes(columns: Sequence[pa.ChunkedArray], types: Sequence[ValueType]) -> list[bytes]:
    """Return the key bytes of each row. Columns have the declared types and no nulls."""
    keys: list[bytes] = [b""] * len(columns[0])
    for block in key_codec("", tuple(types)).blocks(columns):
        width = block.keys.shape[1]
        blob = np.ascontiguousarray(block.keys).tobytes()
        for place, row in enumerate(block.rows.tolist()):
            keys[row] = blob[place * width + _TAG_BYTES : (place + 1) * width]
    return keys


# Slots of a cluster


def slot(key: bytes) -> int:
    """Return the slot of a key that holds a tag."""
    first, table, crc = key.index(b"{") + 1, _crc16_list(), 0
    for letter in key[first : first + 3]:
        crc = (crc << 8 & 0xFFFF) ^ table[crc >> 8 ^ letter]
    return crc % SLOTS


def slots(tags: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Return the slots of tags, shape (rows, 3): their CRC-16 (XMODEM) modulo 16384."""
    table = _crc16_table()
    crc = np.zeros(len(tags), np.uint16)
    for place in range(3):
        crc = (crc << np.uint16(8)) ^ table[(crc >> np.uint16(8)) ^ tags[:, place]]
    return crc % np.uint16(SLOTS)


@cache
def _crc16_table() -> npt.NDArray[np.uint16]:
    table = np.arange(256, dtype=np.uint16) << np.uint16(8)
    for _ in range(8):
        table = np.where(table & 0x8000, (table << np.uint16(1)) ^ np.uint16(0x1021), table << np.uint16(1)).astype(np.uint16)
    return table


@cache
def _crc16_list() -> list[int]:
    numbers: list[int] = _crc16_table().tolist()
    return numbers


@lru_cache(maxsize=SLOTS)
def _tag_in(first_slot: int | None) -> str:
    if first_slot is None:
        return ""
    every = np.arange(1 << 18)
    letters = np.frombuffer(_BASE64, np.uint8)
    tags = np.stack([letters[every >> 12], letters[every >> 6 & 63], letters[every & 63]], axis=1)
    return "{" + tags[int(np.argmax(slots(tags) == first_slot))].tobytes().decode() + "}"


# Keys of many rows


_TAG_BYTES = 5


@dataclass(frozen=True)
class KeyBlock:
    """Keys of one length of a version: their bytes, shape (n, length), and to which rows they belong, shape (n,)."""

    uid: str
    rows: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint8]

    def slots(self) -> npt.NDArray[np.uint16]:
        """Return the slot of each key."""
        return slots(self.keys[:, len(self.uid) + 1 : len(self.uid) + 4])

    def to_list(self) -> list[bytes]:
        """Return each key."""
        width, blob = self.keys.shape[1], self.keys.tobytes()
        return [blob[first : first + width] for first in range(0, len(blob), width)]


@lru_cache(maxsize=4096)
def key_codec(uid: str, types: tuple[ValueType, ...]) -> KeyCodec:
    """Return the codec of a version's keys, compiled once."""
    return KeyCodec(uid, types)


class KeyCodec:
    """Key columns of one view version to the keys of its rows."""

    def __init__(self, uid: str, types: Sequence[ValueType]) -> None:
        self.uid = uid
        self._types = tuple(types)
        self._uid = uid.encode()
        self._plain = [_PLAIN.get(type_.name) for type_ in types]
        self._has_length = [not type_.is_fixed_width and place < len(types) - 1 for place, type_ in enumerate(types)]

    def plain(self, columns: Sequence[Sequence[Any]]) -> list[bytes | None] | None:
        """Return the key of each row of Python values, none for a row with a null.

        The answer as a whole is none where a value is not of the very type that its column needs.
        """
        endings = self.endings(columns)
        return None if endings is None else self.ending_in(endings)

    def ending_in(self, endings: Sequence[bytes | None]) -> list[bytes | None]:
        """Return the keys that end so, none for none."""
        uid = self._uid
        if None in endings:
            return [None if ending is None else uid + ending for ending in endings]
        return [uid + ending for ending in cast("Sequence[bytes]", endings)]

    def endings(self, columns: Sequence[Sequence[Any]]) -> list[bytes | None] | None:
        """Return the same as `plain` without what is the version's, so versions with the same key columns share them."""
        parts: list[list[bytes | None]] = []
        try:
            for column, known, has_length in zip(columns, self._plain, self._has_length, strict=True):
                if known is None:
                    return None
                kind, encode = known
                if not {kind, type(None)}.issuperset(map(type, column)):
                    return None
                part = [None if value is None else encode(value) for value in column]
                parts.append([_with_length(each) for each in part] if has_length else part)
        except (struct.error, UnicodeError):
            return None
        keys = parts[0] if len(parts) == 1 else [None if None in row else b"".join(row) for row in zip(*parts, strict=True)]
        crc32, first, last = zlib.crc32, _FIRST, _LAST
        return [None if key is None else first[(hashed := crc32(key)) >> 6 & 4095] + last[hashed & 63] + key for key in keys]

    def names(self, columns: Sequence[pa.ChunkedArray]) -> list[bytes | None]:
        """Return the key of each row of columns of the declared types, none for a row with a null."""
        return self.ending_in(self.endings_of(columns))

    def endings_of(self, columns: Sequence[pa.ChunkedArray]) -> list[bytes | None]:
        """Return the same as `names` without what is the version's, as `endings` does."""
        keys: list[bytes | None] = [None] * len(columns[0])
        if any(column.null_count for column in columns):
            present = np.flatnonzero(np.logical_and.reduce([column.is_valid().to_numpy() for column in columns]))
            columns = [column.take(pa.array(present)) for column in columns]
        else:
            present = np.arange(len(keys))
        for block in key_codec("", self._types).blocks(columns):
            for row, key in zip(present[block.rows].tolist(), block.to_list(), strict=True):
                keys[row] = key
        return keys

    def columns(self, names: Sequence[bytes]) -> tuple[list[pa.ChunkedArray], list[int]]:
        """Return the key columns of stored keys, and which of the keys these are: what no lookup could ask for is left out."""
        known, parts = [], []
        for place, name in enumerate(names):
            part = self._parts(name)
            if part is not None:
                known.append(place)
                parts.append(part)
        columns = [_key_column([part[place] for part in parts], type_) for place, type_ in enumerate(self._types)]
        again = self.names(columns) if known else []
        is_ours = [name == names[place] for name, place in zip(again, known, strict=True)]
        if not all(is_ours):
            columns = [column.filter(pa.array(is_ours)) for column in columns]
        return columns, [place for place, is_it in zip(known, is_ours, strict=True) if is_it]

    def _parts(self, name: bytes) -> list[bytes] | None:
        """Cut a stored key into the bytes of its columns; none if it ends too early or too late, or holds what is no text."""
        place, parts = len(self._uid) + _TAG_BYTES, []
        for type_, has_length in zip(self._types, self._has_length, strict=True):
            length = np.dtype(type_.numpy).itemsize if type_.is_fixed_width else len(name) - place
            if has_length:
                length, place = int.from_bytes(name[place : place + 4], "little"), place + 4
            part = name[place : place + length]
            if len(part) != length or (type_.name == "String" and not _is_text(part)):
                return None
            parts.append(part)
            place += length
        return parts if place == len(name) else None

    def blocks(self, columns: Sequence[pa.ChunkedArray]) -> Iterator[KeyBlock]:
        """Give the keys of columns of the declared types without nulls, those of one length at a time."""
        whole = [contiguous(column) for column in columns]
        if not len(whole[0]):
            return
        parts = [_Part(*each) for each in zip(whole, self._types, self._has_length, strict=True)]
        for rows in _groups([part.lengths for part in parts if part.lengths is not None], len(whole[0])):
            key = np.concatenate([part.of(rows) for part in parts], axis=1)
            yield KeyBlock(self.uid, rows, np.concatenate([self._heads(key), key], axis=1))

    def _heads(self, keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        hashed = _crc32(keys)
        prefix = np.frombuffer(self._uid + b"{", np.uint8)
        heads = np.empty((len(keys), len(self._uid) + _TAG_BYTES), np.uint8)
        heads[:, : len(prefix)] = prefix
        letters = np.frombuffer(_BASE64, np.uint8)
        for place, shift in enumerate((12, 6, 0)):
            heads[:, len(prefix) + place] = letters[hashed >> np.uint32(shift) & np.uint32(63)]
        heads[:, -1] = ord("}")
        return heads


def _is_text(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True


def _key_column(parts: Sequence[bytes], type_: ValueType) -> pa.ChunkedArray:
    if type_.is_fixed_width:
        column = fixed_column(np.frombuffer(b"".join(parts), type_.numpy), None, type_.arrow)
    else:
        column = pa.array(parts, pa.binary()).cast(type_.arrow)
    return pa.chunked_array([column])


def _with_length(value: bytes | None) -> bytes | None:
    return None if value is None else len(value).to_bytes(4, "little") + value


class _Part:
    """The bytes of one key column."""

    def __init__(self, column: pa.Array, type_: ValueType, has_length: bool) -> None:  # noqa: FBT001 (private)
        self.has_length = has_length
        self.lengths: npt.NDArray[np.int64] | None = None
        if type_.is_fixed_width:
            self.fixed = fixed_bytes(column, type_)
            return
        binary = column.cast(pa.large_binary())
        _, offsets, content = binary.buffers()
        self.lengths = lengths_of(binary)
        self.starts = np.frombuffer(offsets, "<i8")[binary.offset : binary.offset + len(binary)]
        self.content = np.frombuffer(content, np.uint8) if content is not None else np.zeros(0, np.uint8)

    def of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return the bytes of some rows, which have one length, shape (rows, length)."""
        if self.lengths is None:
            return self.fixed[rows] if len(rows) < len(self.fixed) else self.fixed
        length = int(self.lengths[rows[0]])
        content = self.content[self.starts[rows][:, None] + np.arange(length)]
        if not self.has_length:
            return content
        head = np.broadcast_to(np.frombuffer(length.to_bytes(4, "little"), np.uint8), (len(rows), 4))
        return np.concatenate([head, content], axis=1)


def _groups(lengths: Sequence[npt.NDArray[np.int64]], count: int) -> Iterator[npt.NDArray[np.int64]]:
    """Give the rows of each combination of lengths."""
    if not lengths:
        yield np.arange(count)
        return
    kinds = np.unique(lengths[0], return_inverse=True) if len(lengths) == 1 else np.unique(lengths, axis=1, return_inverse=True)
    group = kinds[1].reshape(-1)
    order = np.argsort(group, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


_FEW_KEYS = 64


def _crc32(keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    if len(keys) < _FEW_KEYS:
        return np.array([zlib.crc32(key.tobytes()) for key in keys], np.uint32)
    table = _crc32_table()
    crc = np.full(len(keys), 0xFFFFFFFF, np.uint32)
    for place in range(keys.shape[1]):
        crc = table[(crc ^ keys[:, place]) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
    return ~crc


@cache
def _crc32_table() -> npt.NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(0xEDB88320), table >> np.uint32(1)).astype(np.uint32)
    return table
