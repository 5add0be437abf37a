from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from featurestore import FeatureStore, errors
from featurestore.errors import FeatureStoreError
from featurestore_server.app import create_app
from featurestore_server.contract import ARROW, JSON, PARQUET, PROBLEMS
from featurestore_server.problems import handle_errors
from featurestore_server.tables import encoded
from tests.service import HISTORICAL, SPINE, ended, of_bytes, problem, request_of, write_repo


def test_every_error_of_the_library_is_a_problem() -> None:
    """Each error class has a status and a title of its own in the contract."""
    classes = [getattr(errors, name) for name in errors.__all__]
    codes = {each.code for each in classes if isinstance(each, type) and issubclass(each, FeatureStoreError)}

    assert codes <= PROBLEMS.keys()


def test_unexpected_errors_tell_nothing_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A bug is a 500 problem without the exception's text, which the log has with its traceback."""
    app = FastAPI()
    handle_errors(app)

    @app.get("/bug")
    def bug() -> None:
        raise ZeroDivisionError("secret")

    response = TestClient(app).get("/bug")

    assert "secret" not in response.text
    assert problem(response, 500, "internal")["title"]
    [record] = [each for each in caplog.records if each.name == "featurestore_server"]
    assert record.getMessage() == "GET /bug failed"
    assert record.exc_info is not None
    assert "secret" in str(record.exc_info[1])


def test_a_response_that_has_begun_is_cut_off() -> None:
    """What fails after the first byte ends the response without its end, so no client takes a part for the whole."""
    app = FastAPI()
    handle_errors(app)

    def chunks() -> Iterator[bytes]:
        yield b"part"
        raise ZeroDivisionError

    @app.get("/stream")
    def stream() -> StreamingResponse:
        return StreamingResponse(chunks())

    with pytest.raises(ZeroDivisionError):
        TestClient(app).get("/stream")


@pytest.mark.parametrize("type_", [ARROW, PARQUET])
def test_a_training_set_that_fails_half_way_has_no_end(type_: str) -> None:
    """Chunks that were made before a failure are no complete stream or file."""
    table = pa.table({"a": list(range(20_000))})

    def batches() -> Iterator[pa.RecordBatch]:
        yield from table.to_batches()
        raise ZeroDivisionError

    sent = b""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 (what was made before the failure is the point)
        for chunk in encoded(type_, table.schema, batches(), ["a"]):
            sent += chunk

    assert sent
    if type_ == PARQUET:
        with pytest.raises(pa.ArrowInvalid):
            of_bytes(sent, PARQUET)
    else:
        assert not sent.endswith(b"\xff\xff\xff\xff\0\0\0\0")


def test_a_table_that_is_lost_is_found_before_the_first_byte(tmp_path: Path) -> None:
    """If the offline tables cannot be read the answer is a 500 problem, in all types."""
    with ended(FeatureStore(write_repo(tmp_path / "repo").folder)) as store:
        store.apply()
        store.materialize(["every_type"])
        for file in (store.settings.offline_folder / "every_type").rglob("*.parquet"):
            file.unlink()
        client = TestClient(create_app(store))
        for type_ in (JSON, ARROW, PARQUET):
            request = request_of(SPINE, JSON, feature_service="everything") | {"headers": {"Accept": type_}}
            problem(client.post(HISTORICAL, **request), 500, "offline-store")
