"""Commands as the bytes that go over the wire (RESP): one at a time, or those of many rows assembled by numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import numpy.typing as npt

from featurestore.online.packed import PackedRows
from featurestore.online.scripts import WRITE_SHA

__all__ = ["Frame", "command", "mget", "setting", "writing"]

Matrix = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """A command that writes some rows: its bytes, how many rows they are, and what makes a frame of each row alone."""

    payload: bytes
    rows: int
    single: Callable[[], Iterator[Frame]]


def command(*parts: bytes) -> bytes:
    """Return one command."""
    return b"*%d\r\n" % len(parts) + _strings(parts)


def mget(keys: Sequence[bytes]) -> bytes:
    """Return the command that reads keys."""
    head = b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1)
    lengths = set(map(len, keys))
    if len(lengths) > 1:
        return head + _strings(keys)
    before = b"$%d\r\n" % lengths.pop()  # the same before each: one join does it, in a seventh of the time
    return b"%b%b%b\r\n" % (head, before, (b"\r\n" + before).join(keys))


def writing(
    keys: Matrix, rows: PackedRows | bytes, order: int | None, lives: npt.NDArray[np.int64] | int, parts: Iterable[slice]
) -> Iterator[Frame]:
    """Give the conditional writes of rows (see `scripts.py`), a frame for each part.

    `rows` may be one row for all keys. `order` is none where each row is compared by its own header. `lives` are milliseconds, one
    for all or one for each, zero for ever.
    """
    names = _Strings(keys)
    contents = rows if isinstance(rows, bytes) else _Strings.of(rows)
    again = partial(writing, keys, rows, order, lives)
    compared = b"" if order is None else order.to_bytes(8, "little", signed=True)
    for part in parts:
        count = len(range(*part.indices(len(keys))))
        body, given = (_strings([contents]), 1) if isinstance(contents, bytes) else (contents.part(part), count)
        head = b"*%d\r\n" % (5 + count + given) + _strings([b"EVALSHA", WRITE_SHA, b"%d" % count])
        arguments = _strings([compared, _lives(lives if isinstance(lives, int) else lives[part])])
        yield Frame(head + names.part(part) + arguments + body, count, partial(_singly, again, part, len(keys)))


def setting(keys: Matrix, rows: PackedRows, parts: Iterable[slice]) -> Iterator[Frame]:
    """Give plain MSETs of rows that live for ever, a frame for each part."""
    pairs = _Strings(keys).beside(_Strings.of(rows))
    for part in parts:
        count = len(range(*part.indices(len(keys))))
        payload = b"*%d\r\n$4\r\nMSET\r\n" % (2 * count + 1) + pairs.part(part)
        yield Frame(payload, count, partial(_singly, partial(setting, keys, rows), part, len(keys)))


def _singly(again: Callable[[Iterable[slice]], Iterator[Frame]], part: slice, count: int) -> Iterator[Frame]:
    return again(slice(row, row + 1) for row in range(*part.indices(count)))


def _strings(values: Iterable[bytes]) -> bytes:
    return b"".join([b"$%d\r\n%b\r\n" % (len(value), value) for value in values])


def _lives(lives: npt.NDArray[np.int64] | int) -> bytes:
    if isinstance(lives, int):
        return lives.to_bytes(8, "little") if lives else b""
    return lives.astype("<i8").tobytes()


class _Strings:
    """Bulk strings, a line for each row: as a matrix where all are of one length, or else as a list."""

    def __init__(self, values: Matrix | Sequence[bytes]) -> None:
        self._matrix = _framed(values) if isinstance(values, np.ndarray) else None
        self._list = [] if isinstance(values, np.ndarray) else [b"$%d\r\n%b\r\n" % (len(value), value) for value in values]

    @classmethod
    def of(cls, rows: PackedRows) -> Self:
        matrix = rows.matrix
        return cls(rows.to_list() if matrix is None else matrix)

    def beside(self, others: Self) -> Self:
        """Put each line of the others after the own one."""
        both = object.__new__(type(self))
        is_matrix = self._matrix is not None and others._matrix is not None
        both._matrix = np.concatenate([self._matrix, others._matrix], axis=1) if is_matrix else None
        both._list = [] if is_matrix else [one + other for one, other in zip(self._lines(), others._lines(), strict=True)]
        return both

    def part(self, rows: slice) -> bytes:
        return b"".join(self._list[rows]) if self._matrix is None else self._matrix[rows].tobytes()

    def _lines(self) -> list[bytes]:
        return self._list if self._matrix is None else [line.tobytes() for line in self._matrix]


def _framed(values: Matrix) -> Matrix:
    count, width = values.shape
    head = b"$%d\r\n" % width
    framed = np.empty((count, len(head) + width + 2), np.uint8)
    framed[:, : len(head)] = np.frombuffer(head, np.uint8)
    framed[:, len(head) : -2] = values
    framed[:, -2:] = np.frombuffer(b"\r\n", np.uint8)
    return framed
