from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from featurestore import Entity, FeatureView, FileSource
from featurestore.errors import DefinitionError
from featurestore.repo import load_repo
from featurestore.specs import from_spec, to_spec
from featurestore.types import Int64, String
from tests.repo_files import BASIS, HEADER, VIEW, Fill, faults, names, write_repo


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Write files of Python into a repo that has the weather as Parquet, and return its folder."""
    return partial(write_repo, tmp_path / "repo")


# Faults of single files


def test_a_syntax_error_hides_no_other_fault(fill: Fill) -> None:
    """A file that cannot be parsed is one fault, with its line; other files are checked all the same."""
    folder = fill(
        broken=f"{HEADER}\nx = = 1",
        views=f"{BASIS}v = {VIEW('v').replace('temperature', 'temperatur')}",
    )

    assert faults(folder) == [
        "broken.py: cannot be read: invalid syntax (broken.py, line 4)",
        "views.py:5: v.fields: source 'weather' has no column 'temperatur'; did you mean 'temperature'?",
    ]


UNREADABLE = [
    ("a = 'é'".encode("latin-1"), "(unicode error) 'utf-8' codec can't decode byte 0xe9"),
    (b"a = 1\0", "source code string cannot contain null bytes"),
    (b"if True:\npass", "expected an indented block after 'if' statement on line 1 (broken.py, line 2)"),
    (b"a = (1", "'(' was never closed (broken.py, line 1)"),
]


@pytest.mark.parametrize(("content", "message"), UNREADABLE, ids=["not UTF-8", "NUL", "indentation", "unclosed"])
def test_a_file_that_is_no_python_is_a_fault(fill: Fill, content: bytes, message: str) -> None:
    """What cannot be read as Python is one fault that names the file."""
    [fault] = faults(fill(basis=BASIS, broken=content))

    assert fault.startswith(f"broken.py: cannot be read: {message}")


def test_an_encoding_that_is_declared_is_understood(fill: Fill) -> None:
    """A file may declare its encoding, as Python's own may."""
    text = "# -*- coding: latin-1 -*-\n" + BASIS + "assert 'é' == '\\xe9'"

    assert len(load_repo(fill(basis=text.encode("latin-1")))) == 2


CASES = {
    '"temperature": Float64, "Temperature": Float64': "'temperature' and 'Temperature'",
    '"Origin": String': "'origin' and 'Origin'",
}


@pytest.mark.parametrize(("fields", "columns"), CASES.items())
def test_columns_that_differ_in_case_alone_are_a_fault(fill: Fill, fields: str, columns: str) -> None:
    """No table holds both. A registry may have such a view, which was applied before this was looked at, so it can be made."""
    text = VIEW("v").replace('"temperature": Float64', fields)
    folder = fill(views=f"{BASIS}v = {text}")

    assert faults(folder) == [f"views.py:5: v.fields: columns {columns} differ in upper and lower case alone"]
    view = FeatureView(
        "v", entities=[Entity("e", join_keys={"k": String})], source=FileSource("s", path="s"), fields=dict.fromkeys("xX", Int64)
    )
    assert from_spec(FeatureView, to_spec(view)) == view


def test_a_definition_that_nothing_holds_is_a_fault(fill: Fill) -> None:
    """One whose variable is assigned again, or that is assigned to nothing, would silently not exist."""
    folder = fill(views=f"{BASIS}v = {VIEW('one')}\nv = {VIEW('two')}\n{VIEW('three')}")

    assert faults(folder) == [
        "views.py:5: one: nothing holds it: its variable 'v' is assigned again in line 6; give it one of its own",
        "views.py:7: three: nothing holds it: it is assigned to nothing; give it a variable",
    ]


HELD = [
    f"v = {VIEW('one')}\ns = FeatureService('s', features=[v])\nv = {VIEW('two')}",
    f"held = []\nv = {VIEW('one')}\nheld.append(v)\nv = {VIEW('two')}",
    f"import dataclasses\nv = {VIEW('one')}\nv = dataclasses.replace(v, description='refined')",
    f"v = {VIEW('one')}\ndel v\nw = {VIEW('two')}",
    f"v = {VIEW('one')}\ndef kept(view):\n    return view\nkept(v)",
]


@pytest.mark.parametrize("text", HELD, ids=["used", "in a list", "refined", "deleted", "returned"])
def test_what_something_else_holds_needs_no_variable(fill: Fill, text: str) -> None:
    """A definition is there as long as another or a list has it; one that is refined or deleted is meant not to be."""
    assert load_repo(fill(views=BASIS + text))


RAISING = [
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("raise ValueError('no')", "ValueError: no"),
    ("nothing", "NameError: name 'nothing' is not defined"),
    ("import nosuchmodule", "nosuchmodule: ModuleNotFoundError: No module named 'nosuchmodule'"),
    ("assert airport.name == 'x'", "AssertionError: "),
    ("there = airport.nothing", "there: AttributeError: 'Entity' object has no attribute 'nothing'"),
    ("import sys; sys.exit(3)", "SystemExit: 3"),
]


@pytest.mark.parametrize(("statement", "message"), RAISING)
def test_an_exception_in_definitions_is_a_fault_with_its_line(fill: Fill, statement: str, message: str) -> None:
    """Whatever a statement raises is a fault at its line, and the statements after it run."""
    folder = fill(basis=f"{BASIS}{statement}\nv = {VIEW('v').replace('temperature', 'gust')}")

    assert faults(folder) == [
        f"basis.py:5: {message}",
        "basis.py:6: v.fields: source 'weather' has no column 'gust'; did you mean 'gusts'?",
    ]


# Faults of single definitions

DECLARED = [
    (
        'x = Entity("1x", join_keys={"k": Int64})',
        ["1x.name: '1x' is no name: a letter, then letters, digits and underscores, 63 at most"],
    ),
    ('x = Entity("x")', ["x.join_keys: Field required"]),
    (
        'x = Entity("x", join_keys={"k": Float64})',
        ["x: join key 'k' cannot be a Float64; a key is one of String, Int64, Int32, Bytes, Bool, Date, Timestamp"],
    ),
    (
        'x = FileSource("x", path=3, delay="soon", evnt_time="t")',
        [
            "x.path: Input should be a valid string",
            "x.delay: expected a duration such as '15m', '6h' or '30d', got 'soon'",
            "x.evnt_time: there is no such argument; did you mean 'event_time'?",
        ],
    ),
    ('x = FileSource("x", path="p", delay="1h")', ["x: created_time and delay need an event_time; a source without one is static"]),
    (f"x = {VIEW('v')}['temperatur']", ["v: view 'v' has no feature 'temperatur'; did you mean 'temperature'?"]),
    (
        f"x = {VIEW('v')}.alias('w', join_keys={{'orgin': 'x'}})",
        ["w: view 'v' has no join key 'orgin'; did you mean 'origin'?"],
    ),
    ('x = FeatureService("x", features=[])', ["x: a feature service needs at least one feature"]),
]


@pytest.mark.parametrize(("statement", "expected"), DECLARED)
def test_what_a_constructor_refuses_is_a_fault_with_object_and_field(fill: Fill, statement: str, expected: list[str]) -> None:
    """Each fault that a constructor sees names file, line, object and field, in the words of the constructor."""
    assert faults(fill(basis=f"{BASIS}{statement}")) == [f"basis.py:5: {fault}" for fault in expected]


def test_a_member_that_no_service_can_have_is_a_fault_of_its_place(fill: Fill) -> None:
    """A wrong member of a service is named by its place in the list, without the machinery's own words."""
    [*found] = faults(fill(basis=f'{BASIS}x = FeatureService("x", features=["v:a", airport])'))

    assert {fault.split(": ")[1] for fault in found} == {"x.features.1"}


def test_several_statements_fail_each_with_its_own_line(fill: Fill) -> None:
    """Each faulty statement is reported, and none keeps the next from being run."""
    folder = fill(
        basis=f"""{BASIS}
a = Entity("a", join_keys={{}})

b = Entity(
    "b",
    join_keys={{"k": Float32}},
)
if True:
    c = {VIEW("c").replace("Float64", "Int64")}
"""
    )

    assert faults(folder) == [
        "basis.py:6: a: an entity needs at least one join key",
        "basis.py:8: b: join key 'k' cannot be a Float32; a key is one of String, Int64, Int32, Bytes, Bool, Date, Timestamp",
        f"basis.py:12: c.fields: column 'temperature' of source 'weather' is DOUBLE, which Int64 {LOSS}",
    ]


def test_a_fault_names_the_line_of_its_own_definition(fill: Fill) -> None:
    """Where a name and what it meant are gone, later faults still name the line that made their object."""
    faulty = [VIEW(name).replace("temperature", "temperatur") for name in "cd"]
    folder = fill(basis=f"{BASIS}x = {VIEW('a')}\ndel x\ny = {faulty[0]}\nz = {faulty[1]}")

    assert faults(folder) == [
        "basis.py:7: c.fields: source 'weather' has no column 'temperatur'; did you mean 'temperature'?",
        "basis.py:8: d.fields: source 'weather' has no column 'temperatur'; did you mean 'temperature'?",
    ]


# What follows from a fault is no fault of its own

FAILING = 'lost = FeatureView("lost", entities=[airport], source=weather, fields={"temperature": Float64}, ttl="soon")'
SOON = "lost.ttl: expected a duration such as '15m', '6h' or '30d', got 'soon'"
BUILT_ON_IT = [
    's = FeatureService("s", features=[lost])',
    's = FeatureService("s", features=[lost[["temperature"]]])',
    's = FeatureService("s", features=["lost:temperature"])',
    's = lost.alias("there", join_keys={"origin": "destination"})',
    "s = [lost]\nt = FeatureService('t', features=s)",
    "for each in (lost,): each.name",
    "s = lost.name + 'x'",
]


@pytest.mark.parametrize("statement", BUILT_ON_IT)
def test_what_is_built_on_a_faulty_definition_is_not_reported(fill: Fill, statement: str) -> None:
    """Only the cause is reported, not what fails because of it in the same file."""
    assert faults(fill(basis=f"{BASIS}{FAILING}\n{statement}")) == [f"basis.py:5: {SOON}"]


@pytest.mark.parametrize("statement", BUILT_ON_IT)
def test_what_another_file_builds_on_a_faulty_definition_is_not_reported(fill: Fill, statement: str) -> None:
    """Only the cause is reported, not what fails because of it in a file that imports it."""
    folder = fill(basis=f"{BASIS}{FAILING}", views=f"{HEADER}from .basis import lost\n{statement}")

    assert faults(folder) == [f"basis.py:5: {SOON}"]


USES = [
    "x = LOST('y')",
    "x = LOST + '/x'",
    "x = 'x' + LOST",
    "x = LOST / 'x'",
    "x = len(LOST)",
    "for each in LOST: pass",
    "with LOST: pass",
    "x = {**LOST}",
    "x = LOST < 3",
    "x = -LOST",
    "x = FileSource('x', path='weather.parquet', event_time='observed_at', delay=LOST)",
    "x = FileSource('x', path='weather.parquet', event_time='observed_at', tags={'a': LOST})",
    "x = Entity('x', join_keys={'k': LOST})",
    "x = Entity('x', join_keys=[Field('k', LOST)])",
]


@pytest.mark.parametrize("statement", USES)
def test_any_use_of_a_lost_value_in_another_file_is_quiet(fill: Fill, statement: str) -> None:
    """Whatever another file does with a value whose statement failed, the statement alone is reported."""
    folder = fill(basis=BASIS, lost="LOST = 1 / 0", used=f"{HEADER}from .lost import LOST\n{statement}")

    assert faults(folder) == ["lost.py:1: LOST: ZeroDivisionError: division by zero"]


def test_a_name_out_of_a_file_that_cannot_be_read_is_not_missed(fill: Fill) -> None:
    """Who imports from a file with a syntax error is not at fault."""
    folder = fill(broken="airport = = 1", views=f"{HEADER}from .broken import airport\nfrom . import broken\nx = broken.airport")

    assert faults(folder) == ["broken.py: cannot be read: invalid syntax (broken.py, line 1)"]


def test_faults_beside_a_lost_value_are_reported(fill: Fill) -> None:
    """A definition that uses a lost value and is faulty by itself is reported for what is its own."""
    folder = fill(basis=f'{BASIS}{FAILING}\ns = FeatureService("1s", features=[lost], owners="me")')

    assert faults(folder) == [
        f"basis.py:5: {SOON}",
        "basis.py:6: 1s.name: '1s' is no name: a letter, then letters, digits and underscores, 63 at most",
        "basis.py:6: 1s.owners: there is no such argument; did you mean 'owner'?",
    ]


# Faults of definitions against each other and against their sources

LOSS = "cannot hold without loss; declare another type or CAST it in sql"
CLOSE = "known: 'gusts', 'observed_at', 'origin', 'sky', 'temperature'"
OVER_S = f"v = {VIEW('v').replace('source=weather', 'source=s')}"
AGAINST_SOURCES = [
    (
        'v = FeatureView("v", entities=[airport], source=weather, fields={"temprature": Float64, "pressure": Int64})',
        [
            "v.fields: source 'weather' has no column 'temprature'; did you mean 'temperature'?",
            f"v.fields: source 'weather' has no column 'pressure'; {CLOSE}",
        ],
    ),
    (
        'v = FeatureView("v", entities=[airport], source=weather, fields={"temperature": Float32, "gusts": Float64, "sky": Int64})',
        [
            f"v.fields: column 'temperature' of source 'weather' is DOUBLE, which Float32 {LOSS}",
            f"v.fields: column 'gusts' of source 'weather' is BIGINT, which Float64 {LOSS}",
            f"v.fields: column 'sky' of source 'weather' is DECIMAL(9,2), which Int64 {LOSS}",
        ],
    ),
    (
        'v = FeatureView("v", entities=[Entity("e", join_keys={"orgin": String})], source=weather, fields={"gusts": Int64})',
        ["v.join_keys: source 'weather' has no column 'orgin'; did you mean 'origin'?"],
    ),
    (
        'v = FeatureView("v", entities=[Entity("e", join_keys={"gusts": Int32})], source=weather, fields={"temperature": Float64})',
        [f"v.join_keys: column 'gusts' of source 'weather' is BIGINT, which Int32 {LOSS}"],
    ),
    (
        f's = FileSource("s", path="weather.parquet", event_time="gusts", created_time="crated")\n{OVER_S}',
        [
            "v.event_time: column 'gusts' of source 's' is BIGINT, not a timestamp",
            f"v.created_time: source 's' has no column 'crated'; {CLOSE}",
        ],
    ),
    (
        f's = FileSource("s", path="weather.parquet", event_time="observed")\n{OVER_S}',
        ["v.event_time: source 's' has no column 'observed'; did you mean 'observed_at'?"],
    ),
    (
        f"v = {VIEW('v')[:-1]}, sql='SELECT DISTINCT random() AS x FROM runways')",
        [
            "v.sql: DISTINCT is not row-local",
            "v.sql: the SQL reads 'runways'; its one source is 'weather'",
            "v.sql: function 'random' is not allowed: its result can change from call to call",
        ],
    ),
    (
        f"v = {VIEW('v')[:-1]}, sql='SELECT temperature * 2 AS temperatures FROM weather')",
        [
            "v.join_keys: the SQL's result has no column 'origin'; known: 'temperatures'",
            "v.fields: the SQL's result has no column 'temperature'; did you mean 'temperatures'?",
            "v.event_time: the SQL's result has no column 'observed_at'; known: 'temperatures'",
        ],
    ),
    (
        f"v = {VIEW('v')[:-1]}, sql='SELECT *, temperature AS t FROM weather WHERE temprature > 3')",
        None,  # DuckDB's own words, which name the nearest column
    ),
]


@pytest.mark.parametrize(("statements", "expected"), AGAINST_SOURCES)
def test_what_the_source_cannot_give_is_a_fault(fill: Fill, statements: str, expected: list[str] | None) -> None:
    """Columns and types are checked against the source or the SQL's result, and a missing one names the nearest."""
    line = 5 + statements.count("\n")
    found = faults(fill(basis=f"{BASIS}{statements}"))

    if expected is None:
        [fault] = found
        assert fault.startswith(f"basis.py:{line}: v.sql: the SQL of view 'v': Binder Error: ")
        assert '"temprature"' in fault
        assert '"temperature"' in fault
    else:
        assert found == [f"basis.py:{line}: {fault}" for fault in expected]


def test_a_source_without_file_is_one_fault(fill: Fill) -> None:
    """A missing file is a fault of its source, once, however many views read it."""
    text = BASIS.replace("weather.parquet", "wether.parquet")

    assert faults(fill(basis=f"{text}v = {VIEW('v')}\nw = {VIEW('w')}")) == [
        "basis.py:4: weather.path: source 'weather': no Parquet file at …/wether.parquet"
    ]


def test_a_missing_file_hides_no_fault_of_the_sql(fill: Fill) -> None:
    """What is wrong with a view's SQL whatever the source holds is reported although the source is missing."""
    text = BASIS.replace("weather.parquet", "wether.parquet")

    assert faults(fill(basis=f"{text}v = {VIEW('v')[:-1]}, sql='SELECT DISTINCT * FROM weather')")) == [
        "basis.py:4: weather.path: source 'weather': no Parquet file at …/wether.parquet",
        "basis.py:5: v.sql: DISTINCT is not row-local",
    ]


def test_a_file_that_is_no_parquet_is_a_fault_of_its_source(fill: Fill) -> None:
    """A source that cannot be read is reported with what DuckDB says."""
    folder = fill(basis=BASIS)
    (folder / "weather.parquet").write_bytes(b"origin,temperature\nEWR,20.5\n")
    [fault] = faults(folder)

    assert fault.startswith("basis.py:4: weather.path: source 'weather' (weather.parquet): ")


SERVICES = [
    ('["views:temperature"]', ["no feature view or alias 'views'; did you mean 'view'?"]),
    ('["zzz:temperature"]', ["no feature view or alias 'zzz'; known: 'there', 'view'"]),
    ('["view:temperatur"]', ["view 'view' has no feature 'temperatur' (written as 'view:feature'); did you mean 'temperature'?"]),
    ('["view"]', ["view 'view' has no feature '' (written as 'view:feature'); known: 'gusts', 'temperature'"]),
    ('[view, "view:gusts"]', ["output column 'view__gusts' is there twice"]),
    ('[view["gusts"], view]', ["output column 'view__gusts' is there twice"]),
    ('["view:gusts", "there:gusts", "there:gusts"]', ["output column 'there__gusts' is there twice"]),
    (
        '["a:b", "c:d"]',
        ["no feature view or alias 'a'; known: 'there', 'view'", "no feature view or alias 'c'; known: 'there', 'view'"],
    ),
    ("[there, numbered]", ["key column 'destination' is String in 'there' and Int64 in 'numbered'; rename one with an alias"]),
    (
        '[view, numbered.alias("n", join_keys={"destination": "origin"})]',
        ["key column 'origin' is String in 'view' and Int64 in 'n'; rename one with an alias"],
    ),
]
ROLES = """view = FeatureView("view", entities=[airport], source=weather, fields={"temperature": Float64, "gusts": Int64})
there = view.alias("there", join_keys={"origin": "destination"})
"""
NUMBERED = """numbered = FeatureView(
    "numbered", entities=[Entity("n", join_keys={"destination": Int64})], source=weather, fields={"temperature": Float64},
    sql="SELECT *, gusts AS destination FROM weather")
"""


@pytest.mark.parametrize(("members", "expected"), SERVICES)
def test_a_service_is_checked_against_the_views(fill: Fill, members: str, expected: list[str]) -> None:
    """Members of a service are known, give each output column once, and agree on the types of key columns."""
    own = NUMBERED if "numbered" in members else ""
    line = 7 + own.count("\n")
    text = f'{BASIS}{ROLES}{own}s = FeatureService("s", features={members})'

    assert faults(fill(basis=text)) == [f"basis.py:{line}: s.features: {fault}" for fault in expected]


ONE_NAME = [
    (f"a = {VIEW('v')}\nb = {VIEW('v')[:-1]}, ttl='1h')", "basis.py:6: v.name: another feature view in basis.py:5"),
    (f"a = {VIEW('v')}\nb = {VIEW('w')}.alias('v', join_keys={{}})", "basis.py:6: v.name: another feature view in basis.py:5"),
    ('b = Entity("airport", join_keys={"destination": String})', "basis.py:5: airport.name: another entity in basis.py:3"),
    ('b = FileSource("weather", path="weather.parquet")', "basis.py:5: weather.name: another source in basis.py:4"),
    (
        f'v = {VIEW("v")}\na = FeatureService("s", features=[v])\nb = FeatureService("s", features=["v:temperature"])',
        "basis.py:7: s.name: another feature service in basis.py:6",
    ),
]


@pytest.mark.parametrize(("statements", "place"), ONE_NAME)
def test_one_name_means_one_thing(fill: Fill, statements: str, place: str) -> None:
    """Two definitions of a kind that differ have two names; views and aliases share theirs, since both name columns."""
    assert faults(fill(basis=f"{BASIS}{statements}")) == [f"{place} has the same name and is not the same"]


def test_an_entity_a_source_a_view_and_a_service_may_share_a_name(fill: Fill) -> None:
    """Names are per kind."""
    text = BASIS.replace('"airport"', '"weather"') + f"v = {VIEW('weather')}\ns = FeatureService('weather', features=[v])"

    assert names(load_repo(fill(basis=text))) == [
        (kind, "weather") for kind in ("Entity", "FeatureService", "FeatureView", "FileSource")
    ]


def test_all_faults_of_a_repo_are_reported_at_once(fill: Fill) -> None:
    """Faults of every kind in several files come in one error, which counts them."""
    folder = fill(
        a=BASIS,
        b="1 +",
        c=f"{HEADER}from .a import airport, weather\nx = Entity('x', join_keys={{}})\nv = {VIEW('v')}",
        d=f"{HEADER}from .c import v\ns = FeatureService('s', features=[v, 'w:x'])\n1 / 0",
        e=f"{HEADER}from .a import airport, weather\nv = {VIEW('v').replace('temperature', 'gusts')}",
    )
    with pytest.raises(DefinitionError) as error:
        load_repo(folder)

    assert str(error.value).splitlines() == [
        "6 faults in the definitions:",
        "  b.py: cannot be read: invalid syntax (b.py, line 1)",
        "  c.py:4: x: an entity needs at least one join key",
        "  d.py:5: ZeroDivisionError: division by zero",
        "  e.py:4: v.name: another feature view in c.py:5 has the same name and is not the same",
        f"  e.py:4: v.fields: column 'gusts' of source 'weather' is BIGINT, which Float64 {LOSS}",
        "  d.py:4: s.features: no feature view or alias 'w'; known: 'v'",
    ]
    assert [(fault.file, fault.object, fault.field) for fault in error.value.faults][-1] == ("d.py:4", "s", "features")


@pytest.mark.parametrize(
    "files", [{}, {"notes": "# nothing yet"}, {".hidden/views": BASIS}], ids=["no file", "no definition", "hidden"]
)
def test_an_empty_repo_is_a_fault(fill: Fill, files: dict[str, str]) -> None:
    """A folder in which nothing is defined is a fault that says so, not an empty set of definitions."""
    assert faults(fill(**files)) == ["…: no definitions: no Python file here defines a feature view"]
