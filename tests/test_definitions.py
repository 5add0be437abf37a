from __future__ import annotations

import ast
import dataclasses
import datetime as dt
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import featurestore
from featurestore import (
    Alias,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    aggregations,
    definitions,
    sources,
)
from featurestore import fields as fields_module
from featurestore.definitions import Projection
from featurestore.specs import METADATA, canonical_json, fingerprint, from_spec, to_reference_spec, to_spec
from featurestore.types import KEY_TYPES, Array, Bool, Float32, Float64, Int32, Int64, String

airport = Entity("airport", join_keys={"origin": String})
flight = Entity("flight", join_keys={"carrier": String, "number": Int32})
weather = FileSource("weather", path="weather.parquet", event_time="observed_at")
runways = FileSource("runways", path="runways.parquet")


def view(name: str = "airport_weather", **changes: Any) -> FeatureView:
    """Return a feature view over the weather, some of it changed."""
    declared: dict[str, Any] = {"entities": [airport], "source": weather, "fields": {"temperature": Float64, "gusts": Int64}}
    return FeatureView(name, **(declared | changes))


def source(**changes: Any) -> FileSource:
    """Return the weather's source, some of it changed."""
    return FileSource("weather", **({"path": "weather.parquet", "event_time": "observed_at"} | changes))


# Values


def test_the_name_is_positional() -> None:
    """The name of a definition comes first, the rest by keyword."""
    assert [Entity("a", join_keys={"k": Int64}).name, source().name, view("v").name] == ["a", "weather", "v"]
    with pytest.raises(ValidationError, match="Unexpected positional argument"):
        Entity("a", {"k": Int64})  # type: ignore[call-arg]


DEFINITIONS = [
    airport,
    weather,
    view(),
    view().alias("there", join_keys={"origin": "destination"}),
    view()["gusts"],
    FeatureService("service", features=[view()]),
    Field("gusts", Int64),
]


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda each: type(each).__name__)
def test_definitions_are_frozen_and_hashable(definition: Any) -> None:
    """No field of a definition can be set, so definitions can stand in sets."""
    for field in dataclasses.fields(definition):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(definition, field.name, None)
    assert {definition, dataclasses.replace(definition)} == {definition}


def test_sequences_become_tuples() -> None:
    """Lists, mappings and generators are kept as tuples, so that a definition cannot change through them."""
    fields = [Field("temperature", Float64)]
    made = view(entities=[airport], fields=fields, tags={"team": "ops", "area": "east"})
    fields.append(Field("gusts", Int64))

    assert made.entities == (airport,)
    assert made.fields == (Field("temperature", Float64),)
    assert made.tags == (("area", "east"), ("team", "ops"))
    assert view(fields=(Field(name, Int64) for name in "ab")).fields == (Field("a", Int64), Field("b", Int64))
    assert FeatureService("s", features=iter(["v:a"])).features == ("v:a",)  # type: ignore[arg-type]
    assert made.alias("there", join_keys={"origin": "destination"}).join_keys == (("origin", "destination"),)


SAME: list[tuple[Any, Any]] = [
    (Entity("a", join_keys={"x": Int64, "y": String}), Entity("a", join_keys=[Field("x", Int64), Field("y", String)])),
    (Entity("a", join_keys={"x": "Int64"}), Entity("a", join_keys={"x": Int64})),  # type: ignore[dict-item]
    (view(fields={"x": Array(Float32)}), view(fields=[Field("x", Array(Float32))])),
    (view(ttl="24h"), view(ttl="1d")),
    (view(ttl="1w"), view(ttl=dt.timedelta(days=7))),
    (view(refresh="60m", lookback="1440m"), view(refresh="1h", lookback="1d")),
    (source(delay="120s"), source(delay="2m")),
    (view(tags={"a": "1", "b": "2"}), view(tags={"b": "2", "a": "1"})),
    (view(history_start="2013-06-01"), view(history_start=dt.datetime(2013, 6, 1))),  # noqa: DTZ001 (naive is UTC)
    (view(history_start="2013-06-01T02:00:00+02:00"), view(history_start="2013-06-01T00:00:00Z")),
    (view()["gusts"], view()[["gusts"]]),
    (view()["gusts", "temperature"], Projection(view(), ["gusts", "temperature"])),
    (view().alias("b", join_keys={"origin": "z"}), Alias("b", view=view(), join_keys={"origin": "z"})),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_definitions_are_equal_by_value(one: Any, other: Any) -> None:
    """What is declared in another way is the same definition, with the same hash and the same JSON."""
    assert one == other
    assert hash(one) == hash(other)
    if not isinstance(one, Projection):
        assert canonical_json(to_spec(one)) == canonical_json(to_spec(other))


DIFFERENT = [
    (view(), view("other")),
    (view(), view(fields={"gusts": Int64, "temperature": Float64})),
    (view(ttl="1d"), view(ttl="25h")),
    (Entity("a", join_keys={"x": Int64}), Entity("a", join_keys={"x": Int32})),
    (view()["gusts"], view()["temperature"]),
    (Entity("same", join_keys={"x": Int64}), FileSource("same", path="x")),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_definitions_that_say_something_else_differ(one: Any, other: Any) -> None:
    """Order of fields, names, durations, types and kinds count."""
    assert one != other


def test_durations_print_as_one_text() -> None:
    """`24h` and `1d` are the same duration and are kept as `1d` (T1)."""
    spec = to_spec(view(ttl="24h", refresh="60m", lookback=dt.timedelta(seconds=90), source=source(delay="1000ms")))

    assert [spec["ttl"], spec["refresh"], spec["lookback"], spec["source"]["delay"]] == ["1d", "1h", "90s", "1s"]


def test_a_view_has_the_join_keys_of_all_its_entities_in_order() -> None:
    """The join keys of a view are those of its entities, from left to right."""
    assert [key.name for key in view(entities=[flight, airport]).join_keys] == ["carrier", "number", "origin"]


def test_an_alias_renames_some_key_columns_and_keeps_the_others() -> None:
    """An alias says which request column stands for which join key, in the view's order; keys can be swapped."""
    both = view(entities=[flight])

    assert both.alias("a", join_keys={"number": "connecting"}).key_columns == ("carrier", "connecting")
    assert both.alias("a", join_keys={"number": "carrier", "carrier": "number"}).key_columns == ("number", "carrier")
    assert both.alias("a", join_keys={}).key_columns == ("carrier", "number")


def test_a_projection_keeps_the_order_given() -> None:
    """`view[[…]]` names features in any order, of a view or of an alias."""
    assert view()[["gusts", "temperature"]].features == ("gusts", "temperature")
    assert view().alias("there", join_keys={"origin": "to"})["gusts"].view.name == "there"


def test_a_view_is_static_without_event_time() -> None:
    """A source without event time makes a static view (T13)."""
    assert view(source=runways).is_static
    assert not view().is_static


# Checks

NO_NAME = "is no name: a letter, then letters, digits and underscores, 63 at most"
Make = Callable[[], Any]
REFUSED: list[tuple[str, Make, str]] = [
    # names
    ("digit first", lambda: Entity("1x", join_keys={"k": Int64}), f"'1x' {NO_NAME}"),
    ("empty name", lambda: view(""), f"'' {NO_NAME}"),
    ("64 characters", lambda: view("a" * 64), f"'{'a' * 64}' {NO_NAME}"),
    ("a dash", lambda: FileSource("a-b", path="p"), f"'a-b' {NO_NAME}"),
    ("not ASCII", lambda: view("météo"), f"'météo' {NO_NAME}"),
    ("line break", lambda: view("a\n"), f"'a\\n' {NO_NAME}"),
    ("underscore first", lambda: view("_a"), f"'_a' {NO_NAME}"),
    ("no text", lambda: view(3), "Input should be a valid string"),  # type: ignore[arg-type]
    ("two underscores", lambda: view("a__b"), "'a__b' holds '__', which separates view and feature in output columns"),
    ("two underscores in a field", lambda: Field("a__b", Int64), "'a__b' holds '__'"),
    ("two underscores in a service", lambda: FeatureService("a__b", features=["v:x"]), "'a__b' holds '__'"),
    ("two underscores in a request column", lambda: view().alias("b", join_keys={"origin": "a__b"}), "'a__b' holds '__'"),
    # unknown and missing settings
    ("unknown setting", lambda: view(owners="me"), "Unexpected keyword argument"),
    ("missing setting", lambda: FileSource("s"), "Field required"),  # type: ignore[call-arg]
    ("missing type", lambda: view(fields=["temperature"]), "Input should be a dictionary or an instance of Field"),
    # entities
    ("no join key", lambda: Entity("a", join_keys={}), "an entity needs at least one join key"),
    (
        "float key",
        lambda: Entity("a", join_keys={"k": Float64}),
        "join key 'k' cannot be a Float64; a key is one of String, Int64, Int32, Bytes, Bool, Date, Timestamp",
    ),
    ("array key", lambda: Entity("a", join_keys={"k": Array(Int64)}), "join key 'k' cannot be a Array(Int64); a key is one of"),
    ("same key twice", lambda: Entity("a", join_keys=[Field("k", Int64), Field("k", String)]), "join key 'k' is named twice"),
    ("unknown type", lambda: Entity("a", join_keys={"k": "Int65"}), "unknown type 'Int65'; known: Bool, Int32, Int64"),  # type: ignore[dict-item]
    ("Python type", lambda: Entity("a", join_keys={"k": int}), "unknown type <class 'int'>"),  # type: ignore[dict-item]
    # sources
    (
        "created without event",
        lambda: source(event_time=None, created_time="c"),
        "created_time and delay need an event_time; a source without one is static",
    ),
    (
        "delay without event",
        lambda: source(event_time=None, delay="1h"),
        "created_time and delay need an event_time; a source without one is static",
    ),
    ("visible from nothing", lambda: source(visible_from="created_time"), 'visible_from="created_time" needs created_time'),
    ("visible from elsewhere", lambda: source(visible_from="now"), "Input should be 'event_time' or 'created_time'"),
    ("one column for two times", lambda: source(created_time="observed_at"), "event_time and created_time are the same column"),
    ("empty column", lambda: source(event_time=""), "a column name is a text of at least one character without NUL"),
    ("NUL in a column", lambda: source(event_time="a\0"), "a column name is a text of at least one character without NUL"),
    # durations and instants
    ("zero delay", lambda: source(delay="0s"), "the duration must be longer than nothing"),
    ("negative ttl", lambda: view(ttl=dt.timedelta(seconds=-1)), "the duration must be longer than nothing"),
    ("no duration", lambda: view(refresh="hourly"), "expected a duration such as '15m', '6h' or '30d', got 'hourly'"),
    ("endless duration", lambda: view(ttl="999999999999d"), "the duration '999999999999d' is too long"),
    ("no instant", lambda: view(history_start="noon"), "expected a timestamp such as 2013-06-01T12:00:00Z, got 'noon'"),
    ("an instant beyond the calendar", lambda: view(history_start=2**62), "history_start"),
    # feature views
    ("no entity", lambda: view(entities=[]), "a feature view needs at least one entity"),
    ("entity for list", lambda: view(entities=airport), "Input should be a valid tuple"),
    ("no field", lambda: view(fields={}), "a feature view needs fields or aggregations"),
    ("field twice", lambda: view(fields=[Field("x", Int64), Field("x", Float64)]), "field 'x' is named twice"),
    (
        "key of two entities",
        lambda: view(entities=[airport, Entity("b", join_keys={"origin": String})]),
        "join key 'origin' is named twice",
    ),
    ("field is a key", lambda: view(fields={"origin": String}), "field 'origin' is a join key already"),
    ("static with ttl", lambda: view(source=runways, ttl="1h"), "ttl needs an event_time, and source 'runways' is static"),
    (
        "static with refresh",
        lambda: view(source=runways, refresh="1h"),
        "refresh needs an event_time, and source 'runways' is static",
    ),
    (
        "static with history",
        lambda: view(source=runways, history_start="2013-06-01"),
        "history_start needs an event_time, and source 'runways' is static",
    ),
    (
        "static with lookback",
        lambda: view(source=runways, lookback="1h"),
        "lookback needs an event_time, and source 'runways' is static",
    ),
    # projections and aliases
    ("unknown feature", lambda: view()["gust"], "view 'airport_weather' has no feature 'gust'; did you mean 'gusts'?"),
    ("no such feature", lambda: view()[["zzz"]], "view 'airport_weather' has no feature 'zzz'; known: 'gusts', 'temperature'"),
    (
        "unknown feature of an alias",
        lambda: view().alias("there", join_keys={})["gust"],
        "view 'there' has no feature 'gust'; did you mean 'gusts'?",
    ),
    ("feature twice", lambda: view()[["gusts", "gusts"]], "feature 'gusts' is named twice"),
    ("no feature", lambda: view()[[]], "a projection names at least one feature"),
    (
        "unknown key",
        lambda: view().alias("b", join_keys={"origins": "x"}),
        "view 'airport_weather' has no join key 'origins'; did you mean 'origin'?",
    ),
    (
        "one column for two keys",
        lambda: view(entities=[flight]).alias("b", join_keys={"number": "carrier"}),
        "request column 'carrier' is named twice",
    ),
    # services
    ("no member", lambda: FeatureService("s", features=[]), "a feature service needs at least one feature"),
    ("text for list", lambda: FeatureService("s", features="v:x"), "Input should be a valid tuple"),
    (
        "an entity as member",
        lambda: FeatureService("s", features=[airport]),  # type: ignore[list-item]
        "Input should be a dictionary or an instance of FeatureView",
    ),
]


@pytest.mark.parametrize(("make", "message"), [pytest.param(make, message, id=name) for name, make, message in REFUSED])
def test_a_constructor_refuses_what_it_can_see_by_itself(make: Make, message: str) -> None:
    """What is wrong with one definition alone is refused when it is made, in words that say what is right."""
    with pytest.raises(ValidationError, match=re.escape(message)):
        make()


def test_every_fault_of_a_constructor_is_reported_at_once() -> None:
    """A call with three wrong settings names all three."""
    with pytest.raises(ValidationError) as error:
        view("1x", ttl="soon", refresh="0s")

    assert [fault["msg"] for fault in error.value.errors()] == [
        f"Value error, '1x' {NO_NAME}",
        "Value error, expected a duration such as '15m', '6h' or '30d', got 'soon'",
        "Value error, the duration must be longer than nothing",
    ]


# Specs

names = st.from_regex(r"[A-Za-z]([A-Za-z0-9]|_(?!_)){0,12}", fullmatch=True)
durations = st.none() | st.timedeltas(dt.timedelta(microseconds=1), dt.timedelta(days=10_000))
texts = st.text(st.characters(codec="utf-8"), max_size=8)
metadata = {"description": texts, "owner": texts, "tags": st.dictionaries(texts, texts, max_size=2)}
scalars = st.sampled_from([*KEY_TYPES, Float32, Float64])
value_types = st.one_of(scalars, scalars.map(Array))
entities = st.builds(
    Entity,
    names,
    join_keys=st.dictionaries(names.map("k{}".format), st.sampled_from(KEY_TYPES), min_size=1, max_size=3),
    **metadata,
)
fields = st.dictionaries(names.map("f{}".format), value_types, min_size=1, max_size=3)
temporal = st.builds(
    FileSource,
    names,
    path=texts,
    event_time=st.just("at"),
    created_time=st.sampled_from([None, "made"]),
    delay=durations,
    **metadata,
)
visible_late = st.builds(
    FileSource, names, path=texts, event_time=st.just("at"), created_time=st.just("made"), visible_from=st.just("created_time")
)
static_views = st.builds(
    FeatureView, names, entities=st.tuples(entities), source=st.builds(FileSource, names, path=texts), fields=fields, **metadata
)
temporal_views = st.builds(
    FeatureView,
    names,
    entities=st.tuples(entities),
    source=temporal | visible_late,
    fields=fields,
    sql=st.none() | texts,
    ttl=durations,
    refresh=durations,
    history_start=st.none() | st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30), timezones=st.just(dt.UTC)),  # noqa: DTZ001
    lookback=durations,
    online=st.booleans(),
    **metadata,
)
views = static_views | temporal_views
aliases = st.builds(
    lambda of, name, column: of.alias(name, join_keys={of.join_keys[0].name: column}), views, names, names.map("r{}".format)
)
projections = (views | aliases).map(lambda of: of[[(of if isinstance(of, FeatureView) else of.view).fields[0].name]])
services = st.builds(
    FeatureService,
    names,
    features=st.lists(st.one_of(views, aliases, projections, st.just("v:f")), min_size=1, max_size=3),
    **metadata,
)


@given(st.one_of(entities, temporal, views, aliases, services))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
def test_a_spec_reads_back_as_its_definition(definition: Any) -> None:
    """What the registry keeps gives the definition back: through JSON text, whatever is in it."""
    text = canonical_json(to_spec(definition))
    again = from_spec(type(definition), json.loads(text))

    assert again == definition
    assert canonical_json(to_spec(again)) == text
    json.loads(canonical_json(to_reference_spec(definition)))


def test_canonical_json_is_stable() -> None:
    """The canonical form has sorted keys, no spaces and plain UTF-8: it is hashed, so it must not change."""
    assert canonical_json({"b": [1, None, True], "a": "é\n"}) == '{"a":"é\\n","b":[1,null,true]}'
    assert canonical_json(to_spec(view(history_start="2013-06-01", ttl="36h", tags={"b": "é"}))) == (
        '{"aggregations":[],"description":"","entities":[{"description":"","join_keys":[{"name":"origin","type":"String"}],"name":"airport",'
        '"owner":"","tags":[]}],"fields":[{"name":"temperature","type":"Float64"},{"name":"gusts","type":"Int64"}],'
        '"history_start":"2013-06-01T00:00:00Z","lookback":null,"name":"airport_weather","online":true,"owner":"","refresh":null,'
        '"source":{"created_time":null,"delay":null,"description":"","event_time":"observed_at","name":"weather","owner":"",'
        '"path":"weather.parquet","tags":[],"visible_from":"event_time"},"sql":null,"tags":[["b","é"]],"ttl":"36h"}'
    )


def test_a_reference_spec_names_other_definitions() -> None:
    """What `plan` compares holds names where the definition holds objects, so a change shows where it was made."""
    there = view().alias("there", join_keys={"origin": "destination"})
    service = FeatureService("service", features=[view(), there["gusts"], "airport_weather:gusts"])

    assert to_reference_spec(view())["source"] == "weather"
    assert to_reference_spec(view())["entities"] == ["airport"]
    assert to_reference_spec(there)["view"] == "airport_weather"
    assert to_reference_spec(service)["features"] == [
        {"view": "airport_weather", "features": None},
        {"view": "there", "features": ["gusts"]},
        "airport_weather:gusts",
    ]


# Fingerprints

DECLARED = view(source=source(created_time="made"))
ALTERING: dict[str, FeatureView] = {
    "source path": view(source=source(created_time="made", path="other.parquet")),
    "event time": view(source=source(created_time="made", event_time="at")),
    "created time": view(source=source(created_time="written")),
    "no created time": view(source=source()),
    "delay": view(source=source(created_time="made", delay="1us")),
    "visible from": view(source=source(created_time="made", visible_from="created_time")),
    "sql": view(source=source(created_time="made"), sql="SELECT * FROM weather"),
    "ttl": view(source=source(created_time="made"), ttl="6h"),
    "refresh": view(source=source(created_time="made"), refresh="1h"),
    "history start": view(source=source(created_time="made"), history_start="2013-01-01"),
    "type of a feature": view(source=source(created_time="made"), fields={"temperature": Float64, "gusts": Int32}),
    "name of a feature": view(source=source(created_time="made"), fields={"temperature": Float64, "gust": Int64}),
    "a feature more": view(source=source(created_time="made"), fields={"temperature": Float64, "gusts": Int64, "rain": Bool}),
    "a feature less": view(source=source(created_time="made"), fields={"temperature": Float64}),
    "name of a key": view(source=source(created_time="made"), entities=[Entity("airport", join_keys={"code": String})]),
    "type of a key": view(source=source(created_time="made"), entities=[Entity("airport", join_keys={"origin": Int64})]),
    "a key more": view(source=source(created_time="made"), entities=[airport, flight]),
}
DESCRIBING: dict[str, FeatureView] = {
    "description": view(source=source(created_time="made"), description="hourly"),
    "owner": view(source=source(created_time="made"), owner="ops"),
    "tags": view(source=source(created_time="made"), tags={"a": "b"}),
    "source's description": view(source=source(created_time="made", description="d", owner="o", tags={"a": "b"})),
    "entity's description": view(
        source=source(created_time="made"),
        entities=[Entity("airport", join_keys={"origin": String}, description="d", owner="o", tags={"a": "b"})],
    ),
    "entity's name": view(source=source(created_time="made"), entities=[Entity("place", join_keys={"origin": String})]),
    "online": view(source=source(created_time="made"), online=False),
    "lookback": view(source=source(created_time="made"), lookback="1d"),
}


@pytest.mark.parametrize("changed", [pytest.param(made, id=name) for name, made in ALTERING.items()])
def test_what_alters_values_changes_the_fingerprint(changed: FeatureView) -> None:
    """Source, SQL, type, refresh, delay, TTL, key and history make another version (T11)."""
    assert fingerprint(changed) != fingerprint(DECLARED)


def test_every_alteration_has_a_fingerprint_of_its_own() -> None:
    """No two of the altered views share a version."""
    assert len({fingerprint(each) for each in ALTERING.values()}) == len(ALTERING)


@pytest.mark.parametrize("changed", [pytest.param(made, id=name) for name, made in DESCRIBING.items()])
def test_what_only_describes_keeps_the_fingerprint(changed: FeatureView) -> None:
    """Description, owner, tags, names of entities, and what is kept online or healed, alter no value (T11)."""
    assert changed != DECLARED
    assert fingerprint(changed) == fingerprint(DECLARED)


def test_every_field_of_a_view_is_in_one_of_the_tables() -> None:
    """A field that is added to views, sources or entities has to be judged first: it alters values, or it does not."""
    judged = {
        "name",
        "source",
        "entities",
        "fields",
        "aggregations",
        "sql",
        "ttl",
        "refresh",
        "history_start",
        "online",
        "lookback",
    }
    of_source = {"name", "path", "event_time", "created_time", "delay", "visible_from", *METADATA}

    assert {field.name for field in dataclasses.fields(FeatureView)} == judged | {*METADATA}  # type: ignore[arg-type]
    assert {field.name for field in dataclasses.fields(FileSource)} == of_source  # type: ignore[arg-type]
    pushed = {"name", "fields", "event_time", "created_time", *METADATA}
    assert {field.name for field in dataclasses.fields(PushSource)} == pushed  # type: ignore[arg-type]
    assert {field.name for field in dataclasses.fields(Entity)} == {"name", "join_keys", *METADATA}  # type: ignore[arg-type]


def test_a_fingerprint_is_stable() -> None:
    """A fingerprint depends on the definition alone, not on the process: it is kept for years."""
    assert fingerprint(from_spec(FeatureView, to_spec(view()))) == fingerprint(view())
    assert re.fullmatch(r"[0-9a-f]{32}", fingerprint(view()))


# Signatures for type checkers


class _Signature(NamedTuple):
    """The fields of a class, and the parameters of the `__init__` that type checkers see."""

    fields: list[tuple[str, bool]]
    parameters: list[tuple[str, bool]]


def _signatures() -> dict[str, _Signature]:
    trees = [ast.parse(Path(str(module.__file__)).read_text()) for module in (fields_module, aggregations, sources, definitions)]
    return {node.name: _signature(node) for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def _signature(node: ast.ClassDef) -> _Signature:
    declared = [
        (each.target.id, each.value is not None)
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    ]
    [init] = [each for part in node.body if isinstance(part, ast.If) for each in part.body if isinstance(each, ast.FunctionDef)]
    positional = [(each.arg, False) for each in init.args.args[1:]]
    keywords = [(each.arg, default is not None) for each, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)]
    return _Signature(declared, [*positional, *([("_", False)] if keywords else []), *keywords])


SIGNED = [
    "Field", "Code", "Aggregation", "Entity", "FileSource", "PushSource", "FeatureView", "Alias", "Projection", "RequestSource",
    "OnDemandFeatureView", "FeatureService",
]  # fmt: skip


@pytest.mark.parametrize("name", SIGNED)
def test_the_signature_that_type_checkers_see_is_that_of_the_fields(name: str) -> None:
    """Names, order, what is positional and what has a default agree between `__init__` and the fields."""
    signature = _signatures()[name]

    assert signature.parameters == signature.fields


def test_every_definition_has_a_signature() -> None:
    """No class of definitions is left out of the comparison."""
    assert set(_signatures()) == set(SIGNED)


# The public surface


def test_the_public_names_are_these() -> None:
    """`featurestore.__all__` is what users may rely on, and every name of it resolves."""
    definitions = ["Aggregation", "Alias", "Entity", "FeatureService", "FeatureView", "Field", "FileSource", "PushSource"]
    definitions += ["OnDemandFeatureView", "RequestSource", "on_demand_feature_view"]
    names = sorted([*definitions, "FeatureStore", "FeatureStoreClient", "AsyncFeatureStoreClient"])

    assert featurestore.__all__ == names
    assert all(getattr(featurestore, name).__name__ == name for name in featurestore.__all__)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    """The lazy package answers for what it exports and for nothing else."""
    with pytest.raises(AttributeError, match="module 'featurestore' has no attribute 'FeatureStor'"):
        featurestore.FeatureStor  # noqa: B018
