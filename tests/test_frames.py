"""The bytes on the wire, literally: what another client would have to send."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import hiredis
import numpy as np
import pyarrow as pa
import pytest

from featurestore.definitions import Field
from featurestore.online.frames import command, mget, setting, writing
from featurestore.online.keys import key_codec
from featurestore.online.packed import PackedRows
from featurestore.online.rows import codec_of, deleted_row
from featurestore.online.scripts import WRITE_SHA
from featurestore.types import Int64, String

KEYS = np.frombuffer(b"0123abcd{21y}EWR0123abcd{aGf}JFK", np.uint8).reshape(2, 16)
WHOLE = [slice(0, 2)]


def packed(*values: int) -> PackedRows:
    """Return rows of one Int64, at event times 1, 2, …, of run 5."""
    table = pa.table({"gusts": pa.array(values, pa.int64())})
    return codec_of((Field("gusts", Int64),)).pack(table, np.arange(1, len(values) + 1), 5)


FIRST = bytes.fromhex("01 0100000000000000 0500000000000000 00 0700000000000000")
SECOND = bytes.fromhex("01 0200000000000000 0500000000000000 00 0800000000000000")


def test_the_keys_are_those_of_the_layout() -> None:
    """The keys of the table are what the codec makes, at once and one by one."""
    codec = key_codec("0123abcd", (String,))
    [block] = codec.blocks([pa.chunked_array([["EWR", "JFK"]])])

    assert block.to_list() == codec.plain([["EWR", "JFK"]]) == [bytes(key) for key in KEYS]


def test_a_command_is_an_array_of_strings() -> None:
    """A command is the number of its parts, then each with its length; they may hold anything."""
    assert command(b"PING") == b"*1\r\n$4\r\nPING\r\n"
    assert command(b"ECHO", b"\r\n\0") == b"*2\r\n$4\r\nECHO\r\n$3\r\n\r\n\0\r\n"


def test_reading_is_one_mget() -> None:
    """All keys of a lookup are one MGET."""
    assert mget([b"0123", b"\r\n$4"]) == b"*3\r\n$4\r\nMGET\r\n$4\r\n0123\r\n$4\r\n\r\n$4\r\n"
    assert mget([b"0123"]) == b"*2\r\n$4\r\nMGET\r\n$4\r\n0123\r\n"
    assert mget([b"0123abcd{21y}EWR", b"x"]) == b"*3\r\n$4\r\nMGET\r\n$16\r\n0123abcd{21y}EWR\r\n$1\r\nx\r\n"


def test_a_plain_write_is_an_mset() -> None:
    """The first load of a version sends pairs of key and row."""
    [frame] = setting(KEYS, packed(7, 8), WHOLE)

    assert frame.rows == 2
    assert frame.payload == (
        b"*5\r\n$4\r\nMSET\r\n$16\r\n0123abcd{21y}EWR\r\n$26\r\n%b\r\n$16\r\n0123abcd{aGf}JFK\r\n$26\r\n%b\r\n" % (FIRST, SECOND)
    )


def test_a_conditional_write_is_an_evalsha() -> None:
    """Keys, the run as int64, the lives as int64, and the rows go to the script."""
    [frame] = writing(KEYS, packed(7, 8), 5, np.array([1000, 2**33]), WHOLE)
    order, lives = bytes.fromhex("0500000000000000"), bytes.fromhex("e803000000000000 0000000002000000")

    assert frame.payload == (
        b"*9\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n2\r\n$16\r\n0123abcd{21y}EWR\r\n$16\r\n0123abcd{aGf}JFK\r\n"
        b"$8\r\n%b\r\n$16\r\n%b\r\n$26\r\n%b\r\n$26\r\n%b\r\n" % (WRITE_SHA, order, lives, FIRST, SECOND)
    )


def test_a_deletion_sends_its_row_once() -> None:
    """One row and one life stand for all keys; without a life there is none."""
    [frame] = writing(KEYS, deleted_row(6), 6, 86_400_000, WHOLE)
    [pushed] = writing(KEYS[:1], packed(7), None, 0, [slice(0, 1)])

    assert frame.payload.endswith(
        b"$8\r\n%b\r\n$8\r\n%b\r\n$17\r\n%b\r\n"
        % tuple(map(bytes.fromhex, ("0600000000000000", "005c260500000000", "00 0000000000000080 0600000000000000")))
    )
    assert pushed.payload.endswith(b"$0\r\n\r\n$0\r\n\r\n$26\r\n%b\r\n" % FIRST)


@pytest.mark.parametrize("texts", [["a", "bb", "", "é"], ["aa", "bb", "cc", "dd"]], ids=["of many lengths", "of one length"])
def test_frames_are_commands_whatever_the_lengths(texts: Iterable[str]) -> None:
    """Rows of one length are assembled as a matrix, others as a list: cut anyhow, a parser finds the same keys and rows in both."""
    table = pa.table({"text": pa.array(texts)})
    rows = codec_of((Field("text", String),)).pack(table, np.arange(4), 5)
    keys = np.frombuffer(b"k0k1k2k3", np.uint8).reshape(4, 2)
    parts = [slice(0, 1), slice(1, 3), slice(3, 4)]
    expected = list(zip([b"k0", b"k1", b"k2", b"k3"], rows.to_list(), strict=True))
    for frames in (setting(keys, rows, parts), itertools.chain.from_iterable(f.single() for f in setting(keys, rows, parts))):
        found: list[tuple[bytes, bytes]] = []
        for frame in frames:
            _, *flat = parsed(frame.payload)
            found += zip(flat[::2], flat[1::2], strict=True)
            assert len(flat) == 2 * frame.rows
        assert found == expected
    whole = list(writing(keys, rows, 5, 0, parts))
    for cut in (whole, itertools.chain.from_iterable(frame.single() for frame in whole)):
        found = []
        for frame in cut:
            _, _, count, *flat = parsed(frame.payload)
            assert int(count) == frame.rows
            found += zip(flat[: frame.rows], flat[frame.rows + 2 :], strict=True)
        assert found == expected


def parsed(payload: bytes) -> list[bytes]:
    """Read one command as hiredis does."""
    reader = hiredis.Reader()
    reader.feed(payload)
    parts: list[bytes] = reader.gets()
    assert reader.gets() is False
    return parts
