from __future__ import annotations

from typing import Any

import pytest

from featurestore import Entity
from featurestore.errors import InputError, NotFoundError
from featurestore.registry.registry import Registry
from featurestore.registry.selection import select
from featurestore.types import Float64, Int64, String
from tests.registries import apply, service, view


@pytest.fixture
def applied(registry: Registry) -> Registry:
    """A registry with two views, an alias and three services."""
    one, two = view("a"), view("b", fields={"rain": Float64})
    there = one.alias("there", join_keys={"origin": "destination"})
    apply(
        registry,
        service("whole", two, one),
        service("mixed", one["gusts"], two, "there:temperature", one["temperature"], there["gusts"]),
        service("twisted", there),
        view("n", entities=[Entity("number", join_keys={"destination": Int64})]),
    )
    return registry


SELECTED: list[tuple[str | list[str], list[str], dict[str, Any], list[tuple[str, str, list[str]]]]] = [
    # what is wanted; columns; keys; lookups as name, view, features
    (
        "whole",
        ["b__rain", "a__temperature", "a__gusts"],
        {"origin": String},
        [("b", "b", ["rain"]), ("a", "a", ["temperature", "gusts"])],
    ),
    (
        "mixed",
        ["a__gusts", "b__rain", "there__temperature", "a__temperature", "there__gusts"],
        {"origin": String, "destination": String},
        [("a", "a", ["gusts", "temperature"]), ("b", "b", ["rain"]), ("there", "a", ["temperature", "gusts"])],
    ),
    ("twisted", ["there__temperature", "there__gusts"], {"destination": String}, [("there", "a", ["temperature", "gusts"])]),
    (
        ["there:gusts", "a:gusts"],
        ["there__gusts", "a__gusts"],
        {"destination": String, "origin": String},
        [("there", "a", ["gusts"]), ("a", "a", ["gusts"])],
    ),
]


@pytest.mark.parametrize(("wanted", "columns", "keys", "lookups"), SELECTED, ids=str)
def test_a_selection_keeps_the_order_asked_for(
    applied: Registry, wanted: str | list[str], columns: list[str], keys: dict[str, Any], lookups: list[tuple[str, str, list[str]]]
) -> None:
    """Columns are in the service's order even where views interleave; each view or alias is looked up once."""
    selection = select(applied.serving(), wanted)

    assert list(selection.columns) == columns
    assert list(selection.keys.items()) == list(keys.items())
    assert [(each.name, each.version.view.name, list(each.features)) for each in selection.lookups] == lookups
    assert list(selection.types()) == columns


def test_a_selection_knows_the_types_of_its_columns(applied: Registry) -> None:
    """Types are those that the views declare."""
    assert select(applied.serving(), "mixed").types() == {
        "a__gusts": Int64,
        "b__rain": Float64,
        "there__temperature": Float64,
        "a__temperature": Float64,
        "there__gusts": Int64,
    }


UNKNOWN: list[tuple[str | list[str], str]] = [
    ("whol", "no feature service 'whol'; did you mean 'whole'?"),
    ("zzz", "no feature service 'zzz'; known: 'mixed', 'twisted', 'whole'"),
    ("a", "no feature service 'a'; known: 'mixed', 'twisted', 'whole'"),
    (["ther:gusts"], "no feature view 'ther'; did you mean 'there'?"),
    (["zzz:gusts"], "no feature view 'zzz'; known: 'a', 'b', 'n', 'there'"),
    (["a:gust"], "no feature of view 'a' named 'gust'; did you mean 'gusts'?"),
    (["there:rain"], "no feature of view 'there' named 'rain'; known: 'gusts', 'temperature'"),
    (["a:gusts", "b:rein"], "no feature of view 'b' named 'rein'; did you mean 'rain'?"),
    (["a:"], "no feature of view 'a' named ''; known: 'gusts', 'temperature'"),
]


@pytest.mark.parametrize(("wanted", "message"), UNKNOWN, ids=str)
def test_an_unknown_name_is_answered_with_the_nearest(applied: Registry, wanted: str | list[str], message: str) -> None:
    """A name that nothing has is an error that says which are there, the nearest first."""
    with pytest.raises(NotFoundError) as error:
        select(applied.serving(), wanted)

    assert str(error.value) == message


MALFORMED: list[tuple[list[str], str]] = [
    ([], "no features asked for: name a feature service, or features as 'view:feature'"),
    (["a"], "'a' is not of the form 'view:feature'"),
    (["a__gusts"], "'a__gusts' is not of the form 'view:feature'"),
    (["a:gusts", "b:rain", "a:gusts"], "feature 'a:gusts' is asked for twice"),
    (
        ["there:gusts", "n:gusts"],
        "key column 'destination' is String in 'there' and Int64 in 'n'; rename one with an alias",
    ),
]


@pytest.mark.parametrize(("wanted", "message"), MALFORMED, ids=str)
def test_a_malformed_list_is_refused(applied: Registry, wanted: list[str], message: str) -> None:
    """An empty list, a name without feature, a feature twice and keys that clash are input errors, which name the offender."""
    with pytest.raises(InputError) as error:
        select(applied.serving(), wanted)

    assert str(error.value) == message
