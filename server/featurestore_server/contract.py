"""The HTTP contract. This docstring is its specification, the models below are its JSON.

    route                            request                    answer
    POST /v1/online-features         JSON or Arrow              JSON or Arrow    the newest values of some entities
    POST /v1/historical-features     JSON, Arrow or Parquet     the same three   a training set for a spine
    POST /v1/training-sets           JSON, Arrow or Parquet     JSON             the same as a job: computed and kept
    GET  /v1/training-sets                                      JSON             the jobs, newest first
    GET  /v1/training-sets/<set_id>                             JSON             one of them, and how far it is
    GET  /v1/training-sets/<set_id>/data                        Parquet          its rows, once it is completed
    POST /v1/training-sets/<set_id>/cancel                      JSON             end it
    DELETE /v1/training-sets/<set_id>                           JSON             remove it with its files
    POST /v1/push/<source>           JSON or Arrow              JSON             rows of a push source
    GET  /v1/registry                                           JSON             what is applied, by name
    GET  /v1/registry/<kind>         <kind> is entities, sources, feature-views, aliases,
                                     on-demand-feature-views or feature-services
    GET  /v1/registry/<kind>/<name>                             JSON             one of them, as its definition says
    GET  /v1/registry/versions       ?view=                     JSON             versions of views, coverage and online loads
    GET  /v1/registry/runs           ?view= ?limit=             JSON             materializations, newest first
    GET  /v1/registry/freshness                                 JSON             how far each view's watermark is behind now
    GET  /healthz                                               JSON             the process is up
    GET  /readyz                                                JSON             what it is wired to answers, plans are compiled
    GET  /metrics                                               text             counters and gauges for Prometheus
    GET  /docs, /openapi.json                                                    this contract as OpenAPI

Media types
    JSON     application/json, UTF-8
    Arrow    application/vnd.apache.arrow.stream: an IPC stream
    Parquet  application/vnd.apache.parquet
    A body states its own in Content-Type, uncompressed (any Content-Encoding is a 415). Accept chooses the answer's; where it
    leaves the choice (`*/*`, or no Accept) the answer has the type of the request. Problems are `application/problem+json` always.

Parameters
    `feature_service` (a name) or `features` (texts `view:feature`), exactly one of them; `metadata` (online), `timestamp_column`,
    `incomplete` and `availability` (historical). They are members of a JSON body. An Arrow or Parquet body holds the columns alone,
    and the parameters come in the query: `?features=a:x&features=a:y&metadata=true`. A JSON request has no query; unknown
    parameters are refused.

Columns
    Requests and answers are columns: `{"entities": {"origin": ["EWR", "JFK"]}}`. Features are named `view__feature` and come in the
    service's order; row `i` answers row `i`. Online takes exactly the key columns, and the request
    columns that on-demand views of the service take. A historical spine has both, the timestamp column, and any others, which come
    back untouched.
    Online JSON: `{"features": {name: […]}}`; with `metadata` also `{"metadata": {view: {"status": […], "event_time": […]}}}`.
    Historical JSON: `{"entities": {spine column: […]}, "features": {name: […]}}`.
    Online Arrow: the features; with `metadata` then `__<view>__status` and `__<view>__event_time` of each view. The schema's
    metadata has the keys and their types: `featurestore.keys` is `{"origin": "String"}`.
    Historical Arrow and Parquet: the spine's columns, then the features.
    A status is PRESENT, NOT_FOUND or OUTSIDE_MAX_AGE; where it is not PRESENT every feature of the view is null. `event_time` is
    null in static views and where nothing was found.

Values in JSON. They are exact: what goes in on one side comes out on the other, bit for bit but for the payloads of NaN.
    Bool               true, false
    Int32, Int64       a number without fraction or exponent, all 64 bits of it: read it as an integer, not as a double
    Float32, Float64   a number, the shortest that gives the same double (a Float32 is widened, which is exact); and, as JSON has
                       no other numbers, the texts "NaN", "Infinity", "-Infinity". null always means: no value
    String             a text
    Bytes              base64 (RFC 4648, padded), in a text
    Date               "2013-06-01"
    Timestamp          "2013-06-01T12:00:00Z", with six digits of a second where there is a fraction; always UTC. Requests may have
                       another offset, or none, which is UTC. Years beyond 9999 have more digits
    Array(T)           an array
    Keys and request columns are read by their declared types, strictly: 1.0 is no Int64, 5 is no String, true is no number; 5 is
    a Float64. Other columns of a spine have no declared type, and hold booleans; integers (of 64 bits); numbers, among which
    "NaN", "Infinity" and "-Infinity" may stand; texts; or arrays of these. Kinds are not mixed within a column. What an Arrow or
    Parquet spine has beyond this comes back as: decimals and times of day in a text, timestamps with the digits of their unit,
    structs as objects. Other types (maps, durations, unions) have no JSON form: a 422 says so, and Arrow and Parquet answers have
    them.

Locks. A request may carry the fingerprint of a feature service's lock in `Feature-Service-Fingerprint`. If what is served has
another one, the answer is a 409, `/problems/lock`, whose `differences` say in what it differs; nothing is looked up. A service's
own fingerprint stands at `/v1/registry/feature-services/<name>`.

Pushes. `{"columns": {"tail_number": ["N14228"], "rested": [true], "at": ["2013-06-01T12:00:00Z"]}}`, or the columns as Arrow, with
    the types that the push source declares; its created time may be left out. Arrow rows whose types were found for Python values
    say so in the schema's metadata, and are read as the Python API reads such: `featurestore.python_rows` is `{"lacks": {}}`, or
    has the first row that lacks a column, by its name. All rows are logged, or none and the answer is a
    problem. `arrival` is when they arrived: training sees them from that instant on. `online` false: they are logged, and not
    written online yet, as the online store did not answer; the next push or run does that. With the header `Idempotency-Key` a push
    can be sent again, for a week: the first is done, and every one gets its answer. The key of other rows is a 422.

Streams. Historical answers are computed and sent in batches, each in a process of its own, no faster than the client reads; the
    process ends when the client goes away. Bodies of spines go to the disk while they come. What can be known before is found
    before the first byte and is a problem with its status; if a later batch fails, the connection ends without the end of the
    body, which clients see as an error. What is beyond `server.training_processes` and `server.training_queue` is a 503.

Jobs. What `POST /v1/historical-features` takes makes a job: what can be known is refused at once, the rest is computed when its
    turn comes, by whichever server has room. It outlives the request and the server: one whose process is lost begins anew, up to
    three times. Its state is waiting, running, cancelling, completed, failed or cancelled. The rows stay in the offline store as
    Parquet, with a manifest, until the job is deleted. Requests with one `Idempotency-Key` make one job, that of the first.

Problems (RFC 9457): `{"type", "title", "status", "detail"}`; `type` is `/problems/<code>` and stable, of the codes in `PROBLEMS`.
`name` is the offender where it has a name (a feature, a key column, a parameter), `nearest` the known names closest to it, best
first. `errors` lists all faults of parameters and of a JSON body's members, `checks` what readiness found; `limit` is the number
that a request is beyond, where `name` is the setting that says so. 503 comes with Retry-After, 401 with WWW-Authenticate, 405 with
Allow, 415 with Accept-Post. What is wrong inside the service is in its log, never in an answer.

Keys. Once there is an API key (`featurestore keys create`) a request needs one: `Authorization: Bearer KEY`. Online features need
the role read-online; historical features and training sets read-offline; push write; the registry and the metrics any role; admin
is all of them. A key restricted to services reads these by name, no lists of features, and of the registry only their pages.
Health, readiness and this contract need none. A revocation takes effect within six seconds.

Headers. `X-Request-Id` of a request (1 to 128 letters, digits and `._:/+=-`) comes back, or a new one; the log has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "ARROW",
    "JSON",
    "KEYS",
    "LOCK_HEADER",
    "PARQUET",
    "PATH",
    "PROBLEM",
    "PROBLEMS",
    "PYTHON_ROWS",
    "Columns",
    "Freshness",
    "Health",
    "HistoricalAnswer",
    "HistoricalOptions",
    "HistoricalRequest",
    "OnlineAnswer",
    "OnlineOptions",
    "OnlineRequest",
    "Overview",
    "Problem",
    "ProblemType",
    "PushAnswer",
    "PushRequest",
    "Readiness",
    "Runs",
    "TrainingSetRecord",
    "TrainingSetRecords",
    "Versions",
]

PATH = "/v1/online-features"
"""The hot route."""

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
PROBLEM = "application/problem+json"
LOCK_HEADER = "Feature-Service-Fingerprint"
KEYS = "featurestore.keys"
"""What the metadata of an online Arrow answer calls the keys."""
PYTHON_ROWS = "featurestore.python_rows"
"""What the metadata of Arrow rows calls what is said of Python values, if they were such."""


@dataclass(frozen=True)
class ProblemType:
    """What all problems with one code share."""

    status: int
    title: str


PROBLEMS = {
    "malformed": ProblemType(400, "The body is not what its Content-Type says"),
    "unauthorized": ProblemType(401, "An API key is needed"),
    "forbidden": ProblemType(403, "The API key does not allow it"),
    "not-found": ProblemType(404, "A name is not known"),
    "no-route": ProblemType(404, "No route has this path"),
    "method-not-allowed": ProblemType(405, "The route does not take this method"),
    "not-acceptable": ProblemType(406, "The answer has none of the accepted types"),
    "conflict": ProblemType(409, "The registry has moved"),
    "run-in-progress": ProblemType(409, "Another run holds the view"),
    "coverage": ProblemType(409, "What is materialized does not allow it"),
    "gap": ProblemType(409, "The run would leave a gap"),
    "pending": ProblemType(409, "The name waits for candidate versions"),
    "rollback": ProblemType(409, "The version before cannot serve again"),
    "incomplete": ProblemType(409, "The spine reaches beyond what is materialized"),
    "lock": ProblemType(409, "What is served is not what the model was trained on"),
    "too-large": ProblemType(413, "The request is beyond a limit of the service"),
    "training-set": ProblemType(409, "The training set's state does not allow it"),
    "unsupported-media-type": ProblemType(415, "The body's type is not understood"),
    "input": ProblemType(422, "The request is not valid"),
    "spine": ProblemType(422, "The spine is not valid"),
    "error": ProblemType(500, "The feature store cannot do it"),
    "settings": ProblemType(500, "The repo's settings are wrong"),
    "definition": ProblemType(500, "The definitions are faulty"),
    "source": ProblemType(500, "A source cannot be read"),
    "on-demand": ProblemType(500, "An on-demand function failed"),
    "code": ProblemType(500, "The code of an on-demand view cannot be loaded"),
    "offline-store": ProblemType(500, "The offline store cannot be read or written"),
    "runs-failed": ProblemType(500, "Some runs failed"),
    "missing-dependency": ProblemType(500, "A package is not installed"),
    "service": ProblemType(502, "Another service does not do what is asked of it"),
    "internal": ProblemType(500, "The service failed unexpectedly"),
    "registry": ProblemType(503, "The registry cannot be used"),
    "online-store": ProblemType(503, "The online store does not answer"),
    "busy": ProblemType(503, "As many training queries as may be are computed and waiting"),
    "not-ready": ProblemType(503, "The service is not ready"),
    "too-slow": ProblemType(503, "The answer took too long"),
}
"""Every problem by its code: those of `featurestore.errors`, and the service's own."""

Columns = dict[str, list[Any]]
"""Lists of equal length, by column."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Wanted(_Model):
    """What is asked for."""

    feature_service: Annotated[str | None, Field(description="The name of a feature service")] = None
    features: Annotated[list[str] | None, Field(description="Features as `view:feature`, instead of a service")] = None

    @model_validator(mode="after")
    def _check(self) -> _Wanted:
        if (self.feature_service is None) == (self.features is None):
            raise ValueError("name a feature_service or list features, exactly one of them")
        return self

    @property
    def wanted(self) -> str | list[str]:
        """A service's name, or features."""
        return self.feature_service if self.feature_service is not None else self.features or []


class OnlineOptions(_Wanted):
    """The parameters of an online request."""

    metadata: Annotated[bool, Field(description="Whether to say per view what became of each row, and how old it is")] = False


class OnlineRequest(OnlineOptions):
    """An online request in JSON."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "feature_service": "departure_delay_v1",
                    "entities": {"origin": ["EWR"], "destination": ["MIA"], "tail_number": ["N14228"], "carrier": ["UA"]},
                    "metadata": False,
                },
                {"features": ["airport_weather:temperature"], "entities": {"origin": ["EWR", "JFK"]}, "metadata": True},
            ]
        }
    )

    entities: Annotated[Columns, Field(description="A list of values for each key and each request column, one value for each row")]


class ViewMetadata(_Model):
    """What became of each row in one view."""

    status: list[Literal["PRESENT", "NOT_FOUND", "OUTSIDE_MAX_AGE"]]
    event_time: list[str | None]


class OnlineAnswer(_Model):
    """Feature vectors in JSON."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "features": {"airport_weather__temperature": [28.94, None]},
                    "metadata": {
                        "airport_weather": {"status": ["PRESENT", "NOT_FOUND"], "event_time": ["2013-12-30T23:00:00Z", None]}
                    },
                }
            ]
        }
    )

    features: Annotated[Columns, Field(description="The features in the service's order, a value for each row")]
    metadata: Annotated[dict[str, ViewMetadata], Field(description="By view; there only if asked for")] = {}


class HistoricalOptions(_Wanted):
    """The parameters of a historical request."""

    timestamp_column: Annotated[str, Field(description="The spine's column of times")] = "event_timestamp"
    incomplete: Annotated[
        Literal["error", "stale", "null"],
        Field(description="For rows beyond a view's watermark: refuse, answer from what is there, or answer with nulls"),
    ] = "error"
    availability: Annotated[
        Literal["declared", "measured"],
        Field(description="When rows could be read: by their views' declaration, or by the record of what was loaded online when"),
    ] = "declared"


class HistoricalRequest(HistoricalOptions):
    """A historical request in JSON."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "features": ["airport_weather:temperature"],
                    "entities": {"origin": ["EWR", "JFK"], "event_timestamp": ["2013-06-01T12:00:00Z", "2013-06-01T13:00:00Z"]},
                }
            ]
        }
    )

    entities: Annotated[Columns, Field(description="The spine: keys, times and any other columns")]


class HistoricalAnswer(_Model):
    """A training set in JSON."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "entities": {"origin": ["EWR", "JFK"], "event_timestamp": ["2013-06-01T12:00:00Z", "2013-06-01T13:00:00Z"]},
                    "features": {"airport_weather__temperature": [75.92, 73.04]},
                }
            ]
        }
    )

    entities: Annotated[Columns, Field(description="The spine as it was sent")]
    features: Annotated[Columns, Field(description="The features in the service's order, a value for each row of the spine")]


class PushRequest(_Model):
    """Rows to push, in JSON."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"columns": {"tail_number": ["N14228"], "rested": [True], "at": ["2013-06-01T12:00:00Z"]}}]}
    )

    columns: Annotated[Columns, Field(description="A list of values for each column of the push source, one value for each row")]


class PushAnswer(_Model):
    """What became of a push."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"source": "crew", "arrival": "2013-06-01T12:00:01.25Z", "rows": 1, "erased": 0, "online": True}]
        }
    )

    source: str
    arrival: Annotated[str, Field(description="When the rows arrived: the instant from which they are visible")]
    rows: Annotated[int, Field(description="How many rows were logged")]
    erased: Annotated[int, Field(description="How many rows were not taken, as their keys are erased")]
    online: Annotated[bool, Field(description="Whether they are written online by now")]


class Fault(_Model):
    """One fault of a request."""

    name: str | None
    message: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "/problems/not-found",
                    "title": "A name is not known",
                    "status": 404,
                    "detail": "no feature service 'departure_delay_v2'; did you mean 'departure_delay_v1'?",
                    "name": "departure_delay_v2",
                    "nearest": ["departure_delay_v1"],
                }
            ]
        }
    )

    type: Annotated[str, Field(description=f"`/problems/<code>`, of {', '.join(PROBLEMS)}")]
    title: str
    status: int
    detail: str
    name: Annotated[str | None, Field(description="What is wrong, where it has a name")] = None
    nearest: Annotated[list[str], Field(description="Known names closest to it")] = []
    differences: Annotated[list[str], Field(description="In what the features served differ from those of a lock")] = []
    errors: Annotated[list[Fault], Field(description="Every fault of a JSON body or of parameters")] = []
    checks: Annotated[dict[str, str], Field(description="What readiness found")] = {}
    limit: Annotated[int | None, Field(description="The limit that the request is beyond")] = None


class TrainingSetRecord(_Model):
    """A training set as a job, and what has become of it."""

    id: str
    state: Literal["waiting", "running", "cancelling", "completed", "failed", "cancelled"]
    features: Annotated[str | list[str], Field(description="A feature service, or features as `view:feature`")]
    timestamp_column: str
    incomplete: Literal["error", "stale", "null"]
    availability: Literal["declared", "measured"]
    columns: Annotated[list[str], Field(description="Those of the result: the spine's, then the features")]
    spine_rows: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    attempts: Annotated[int, Field(description="How often it was begun")]
    rows_done: Annotated[int, Field(description="How many rows of the spine have been read")]
    rows: Annotated[int | None, Field(description="Of the result")]
    bytes: Annotated[int | None, Field(description="Of the result's file")]
    erased_rows: Annotated[int, Field(description="Rows that left the result because their entities were erased")]
    error: Annotated[dict[str, str] | None, Field(description="Why it failed: `code` and `detail`")]


class TrainingSetRecords(_Model):
    """The training sets that are kept, newest first."""

    training_sets: list[TrainingSetRecord]


class Overview(_Model):
    """What is applied, by name."""

    project: str
    revision: Annotated[int, Field(description="Grows with every apply")]
    entities: list[str]
    sources: list[str]
    feature_views: list[str]
    aliases: list[str]
    on_demand_feature_views: list[str]
    feature_services: list[str]


class Version(_Model):
    """One version of a feature view; `coverage_start` is null where coverage reaches back to the beginning."""

    view: str
    version: int
    uid: Annotated[str, Field(description="Names the version's table and its online rows")]
    state: Literal["candidate", "serving", "replaced", "dropped", "removing", "removed"]
    is_rollback: Annotated[bool, Field(description="Kept fed, and serves again after a rollback")]
    waits_for: Annotated[list[str], Field(description="What a candidate's takeover needs")]
    fingerprint: Annotated[str, Field(description="A hash of all that determines the values")]
    created_at: str
    coverage_start: str | None
    watermark: Annotated[str | None, Field(description="Materialized until then; null before the first run")]
    table_version: Annotated[int | None, Field(description="The Delta table's version; null before the first run")]
    online_run: Annotated[int | None, Field(description="The run of the last completed online load")]


class Versions(_Model):
    """Versions of feature views, oldest first."""

    versions: list[Version]


class Run(_Model):
    """One materialization of one version; `start` is null if it began at the beginning."""

    run: int
    view: str
    version: int
    status: Literal["running", "completed", "failed"]
    start: str | None
    end: str
    started_at: str
    finished_at: str | None
    report: Annotated[dict[str, Any], Field(description="What the run counted")]
    error: str | None


class Runs(_Model):
    """Materializations, newest first."""

    runs: list[Run]


class ViewFreshness(_Model):
    """How fresh one version is."""

    view: str
    version: int
    state: Literal["candidate", "serving"]
    watermark: str | None
    seconds_behind: Annotated[
        float | None,
        Field(description="From the watermark to now; null before the first run, and for push views"),
    ]
    online_run: int | None


class Freshness(_Model):
    """How far watermarks are behind now."""

    now: str
    feature_views: list[ViewFreshness]


class Health(_Model):
    """The process is up."""

    status: Literal["ok"]


class Readiness(_Model):
    """What the service is wired to answers."""

    status: Literal["ready"]
    checks: Annotated[dict[str, str], Field(description="`ok` for each thing that is wired")]
