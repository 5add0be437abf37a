"""What the client pushes is what a FeatureStore pushes, whatever Python values it comes as."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import decimal
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from featurestore import AsyncFeatureStoreClient, FeatureStore, FeatureStoreClient
from featurestore.client import TrainingSetJob
from featurestore.errors import InputError, NotFoundError, OfflineStoreError, ServiceError
from tests.conftest import NOON, Repo, at
from tests.service import serving
from tests.test_client import Given, answering

DEFINITIONS = """
user = Entity("user", join_keys={"user_id": Int64})
values = PushSource(
    "values", event_time="at", created_time="written",
    fields={
        "user_id": Int64, "flag": Bool, "small": Int32, "large": Int64, "single": Float32, "double": Float64, "text": String,
        "blob": Bytes, "day": Date, "moment": Timestamp, "vector": Array(Float64),
    },
)
seen = FeatureView(
    "seen", entities=[user], source=values,
    fields={
        "flag": Bool, "small": Int32, "large": Int64, "single": Float32, "double": Float64, "text": String, "blob": Bytes,
        "day": Date, "moment": Timestamp, "vector": Array(Float64),
    },
)
all_seen = FeatureService("all_seen", features=[seen])
"""
NAMES = ("flag", "small", "large", "single", "double", "text", "blob", "day", "moment", "vector")
NS = np.array(["2013-05-01T10:30:00.123456789", "NaT"], "datetime64[ns]")
GIVEN: dict[str, dict[str, Any]] = {
    "nulls": {},
    "pandas text": {"text": pd.Series(["a", None])},
    "pandas objects": {"text": pd.Series(["a", None], dtype=object), "double": pd.Series([1.5, None])},
    "pandas nullable": {"small": pd.Series([1, None], dtype="Int32"), "flag": pd.Series([True, None], dtype="boolean")},
    "pandas times": {"moment": pd.Series(NS), "day": pd.Series([dt.date(2013, 6, 1), None])},
    "numpy": {"moment": NS, "double": np.array([math.nan, -0.0]), "large": np.array([2**63 - 1, -(2**63)])},
    "numpy scalars": {"large": [np.int64(1), np.int32(2)], "double": [np.float64(0.1), 1], "flag": [np.bool_(True), False]},
    "numpy items": {"vector": [np.array([1.0, math.nan]), np.array([])]},
    "not numbers": {"double": [math.inf, -math.inf], "single": [math.nan, 0.1], "vector": [[math.nan, None], []]},
    "texts that look like others": {"text": ["NaN", "2013-06-01"]},
    "bytes": {"blob": [b"\x00\xff", bytearray(b"x")]},
    "a time without a zone": {"moment": [at(NOON).replace(tzinfo=None), None]},
    "an array's types": {"small": pa.array([1, 2], pa.int8()), "text": pa.chunked_array([["a"], ["b"]])},
    "text as a time": {"moment": ["2013-06-01T12:00:00Z", None]},
    "text as bytes": {"blob": ["QQ==", None]},
    "text as a date": {"day": ["2013-06-01", None]},
    "a text and a number": {"text": ["a", math.nan]},
    "numbers as text": {"text": [1, 2]},
    "floats as integers": {"large": [1.5, 2.0]},
    "too large": {"small": [2**31, 0]},
    "far too large": {"large": [2**70, 0]},
    "decimals": {"double": [decimal.Decimal("1.5"), None]},
    "a surrogate": {"text": ["\ud800", "a"]},
    "a time of day": {"text": [dt.time(1), None]},
    "no list": {"text": "ab"},
    "another length": {"text": ["a"]},
    "no column": {"txt": ["a", "b"]},
}


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FeatureStore, FeatureStoreClient]]:
    """A store with a push source of every type, and a client of its service."""
    repo = Repo(tmp_path_factory.mktemp("pushes"))
    (repo.folder / "featurestore.toml").write_text('project = "test"\nnow = "2013-06-01T12:00:00Z"\n')
    repo.define(DEFINITIONS)
    with FeatureStore(repo.folder) as store:
        store.apply()
        with serving(repo.folder, "--json") as (_, line), FeatureStoreClient(json.loads(line)["url"]) as client:
            yield store, client
        store.stop()


def pushed(store: FeatureStore, side: Any, key: int, rows: Any) -> Any:
    """Push rows by one side, and return what can be looked up afterwards, or the error."""
    try:
        receipt = side.push("values", rows)
    except InputError as error:
        return type(error), error.name
    found = store.get_online_features({"user_id": [key, key + 1]}, "all_seen").to_dict()
    return receipt.rows, receipt.is_online, repr({name: column for name, column in found.items() if name != "user_id"})


@pytest.mark.parametrize("case", GIVEN)
def test_both_sides_push_the_same(sides: tuple[FeatureStore, FeatureStoreClient], case: str) -> None:
    """Columns of any kind are stored bit for bit as by a FeatureStore, or refused by the same class of error."""
    place = 10 * list(GIVEN).index(case)
    defaults = {name: [None, None] for name in NAMES}
    found = []
    for key, side in zip((place, place + 5), sides, strict=True):
        rows = {"user_id": [key, key + 1], "at": [at(NOON)] * 2, **defaults, **GIVEN[case]}
        found.append(pushed(sides[0], side, key, rows))

    assert found[0] == found[1]


def test_dicts_that_lack_a_column(sides: tuple[FeatureStore, FeatureStoreClient]) -> None:
    """Rows may lack the created time alone, on both sides; the error names the row and the column."""
    row = {"user_id": 901, "at": at(NOON), **dict.fromkeys(NAMES), "text": "x"}
    short = {name: value for name, value in row.items() if name != "text"}
    for side in sides:
        assert side.push("values", [{**row, "written": at(NOON)}, row]).rows == 2
        with pytest.raises(InputError, match="row 1 lacks column 'text'") as error:
            side.push("values", [row, short])
        assert error.value.name == "text"
        with pytest.raises(InputError, match="there are no rows"):
            side.push("values", {})
        with pytest.raises(InputError):
            side.push("values", [1])


# Answers that are no feature store's, or were lost


PAGE: Given = (200, {"Content-Type": "text/html"}, b"<html>Log in</html>")


@pytest.mark.parametrize("answer", [PAGE, (204, {}, b""), (301, {"Location": "https://elsewhere/"}, b"")])
def test_what_no_feature_store_answers(tmp_path: Path, answer: Given) -> None:
    """A page to log in, a redirect or nothing is an error that says so, whatever was asked for, and no file becomes of it."""
    target = tmp_path / "rows.parquet"
    target.write_bytes(b"before")
    spine = pa.table({"user_id": [1], "event_timestamp": [at(NOON)]})
    calls: list[Callable[[FeatureStoreClient], Any]] = [
        lambda client: client.get_online_features({"user_id": [1]}, "all_seen"),
        lambda client: client.get_historical_features(spine, "all_seen"),
        lambda client: client.push("values", [{"user_id": 1}]),
        lambda client: client.overview(),
        lambda client: client.fetch_training_set("a" * 32, target),
    ]
    for call in calls:
        expected = pytest.raises(ServiceError, match=f"was answered with {answer[0]}.*, and not by a feature store")
        with answering(answer) as (url, _), FeatureStoreClient(url) as client, expected:
            call(client)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
    assert target.read_bytes() == b"before"


def test_a_deletion_whose_answer_was_lost(tmp_path: Path) -> None:
    """What is gone when it is deleted again was deleted; what never was is not found."""
    fields = dict.fromkeys(field.name for field in dataclasses.fields(TrainingSetJob))
    job: Given = (200, {"Content-Type": "application/json"}, json.dumps(fields | {"id": "x", "state": "failed"}).encode())
    gone: Given = (404, {}, b'{"type": "/problems/not-found", "title": "x", "status": 404, "detail": "there is none"}')
    with answering(job, None, gone) as (url, _), FeatureStoreClient(url) as client:
        assert client.delete_training_set("x").id == "x"
    with answering(gone) as (url, _), FeatureStoreClient(url) as client, pytest.raises(NotFoundError):
        client.delete_training_set("x")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that is not there is an error of the library's, of both clients, and names the file."""
    rows: Given = (200, {"Content-Type": "application/vnd.apache.parquet"}, b"PAR1")

    async def fetch(url: str) -> None:
        async with AsyncFeatureStoreClient(url) as client:
            await client.fetch_training_set("x", tmp_path / "none" / "rows.parquet")

    with answering(rows, rows) as (url, _):
        with FeatureStoreClient(url) as client, pytest.raises(OfflineStoreError, match=r"cannot write .*none/rows.parquet"):
            client.fetch_training_set("x", tmp_path / "none" / "rows.parquet")
        with pytest.raises(OfflineStoreError, match=r"cannot write .*none/rows.parquet"):
            asyncio.run(fetch(url))
