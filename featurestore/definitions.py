"""What a user declares: entities, sources, feature views, aliases and feature services.

Definitions are frozen values: sequences become tuples, equality is by value, and `specs.py` writes them as the JSON that the
registry keeps.
A constructor checks what it can see by itself; what needs the other definitions or the source is checked by `repo.py`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    model_validator,
)
from pydantic.dataclasses import dataclass

from featurestore.clock import duration_text, from_micros, parse_duration, parse_instant
from featurestore.errors import known_names
from featurestore.types import KEY_TYPES, ValueType

__all__ = ["Alias", "Entity", "FeatureService", "FeatureView", "Field", "FileSource", "Projection"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: a letter, then letters, digits and underscores, 63 at most")
    if "__" in name:
        raise ValueError(f"{name!r} holds '__', which separates view and feature in output columns")
    return name


def _checked_column(name: str) -> str:
    if not name or "\0" in name:
        raise ValueError("a column name is a text of at least one character without NUL")
    return name


def _positive(duration: dt.timedelta) -> dt.timedelta:
    if duration <= dt.timedelta(0):
        raise ValueError("the duration must be longer than nothing")
    return duration


def _pairs(value: Any) -> Any:
    return tuple(value.items()) if isinstance(value, Mapping) else value


def _sequence(value: Any) -> Any:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else value


def _instant(value: Any) -> dt.datetime:
    return from_micros(parse_instant(value))


Name = Annotated[str, AfterValidator(_checked_name)]
Column = Annotated[str, AfterValidator(_checked_column)]
Duration = Annotated[
    dt.timedelta,
    BeforeValidator(parse_duration),
    AfterValidator(_positive),
    PlainSerializer(duration_text, when_used="json"),
]
Instant = Annotated[dt.datetime, BeforeValidator(_instant)]
Tags = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs), AfterValidator(lambda pairs: tuple(sorted(pairs)))]

_definition = dataclass(frozen=True, config=ConfigDict(extra="forbid"))

# What a constructor takes is wider than what it keeps (`ttl="6h"`, a list for a tuple), so type checkers and editors get
# signatures of their own; `tests/test_definitions.py` holds them against the fields.


@_definition
class Field:
    """A column and its type: a feature, or one column of a join key."""

    name: Name
    type: ValueType

    if TYPE_CHECKING:

        def __init__(self, name: str, type: ValueType) -> None: ...  # noqa: A002 (the field's name)


def _fields(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(Field(name, type_) for name, type_ in value.items())
    return _sequence(value)


Fields = Annotated[tuple[Field, ...], BeforeValidator(_fields)]
GivenFields = Mapping[str, ValueType] | Sequence[Field]


@_definition
class Entity:
    """What features describe. `join_keys` names the columns that identify one, with their types, in order."""

    name: Name
    _: KW_ONLY
    join_keys: Fields
    description: str = ""
    owner: str = ""
    tags: Tags = ()

    if TYPE_CHECKING:

        def __init__(
            self, name: str, *, join_keys: GivenFields, description: str = "", owner: str = "", tags: Mapping[str, str] = ...
        ) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> Entity:
        if not self.join_keys:
            raise ValueError("an entity needs at least one join key")
        for key in self.join_keys:
            if key.type not in KEY_TYPES:
                known = ", ".join(map(str, KEY_TYPES))
                raise ValueError(f"join key {key.name!r} cannot be a {key.type}; a key is one of {known}")
        _check_distinct("join key", (key.name for key in self.join_keys))
        return self


@_definition
class FileSource:
    """Parquet files: one file, a glob, or a folder whose `*.parquet` files are read, recursively.

    `event_time` is when a row became true; without it the table is static and visible always (T13). `created_time` is when the row
    was written: it breaks ties, and with `visible_from="created_time"` it decides when a row could be known. `delay` is how late
    rows arrive (T3). A relative path is relative to the repo.
    """

    name: Name
    _: KW_ONLY
    path: str
    event_time: Column | None = None
    created_time: Column | None = None
    delay: Duration | None = None
    visible_from: Literal["event_time", "created_time"] = "event_time"
    description: str = ""
    owner: str = ""
    tags: Tags = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            *,
            path: str,
            event_time: str | None = None,
            created_time: str | None = None,
            delay: str | dt.timedelta | None = None,
            visible_from: Literal["event_time", "created_time"] = "event_time",
            description: str = "",
            owner: str = "",
            tags: Mapping[str, str] = ...,
        ) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> FileSource:
        if self.event_time is None and (self.created_time or self.delay):
            raise ValueError("created_time and delay need an event_time; a source without one is static")
        if self.visible_from == "created_time" and self.created_time is None:
            raise ValueError('visible_from="created_time" needs created_time')
        if self.event_time is not None and self.event_time == self.created_time:
            raise ValueError("event_time and created_time are the same column")
        return self


@_definition
class FeatureView:
    """Features of entities out of one source.

    `fields` declares the features and their types. Without `sql` they are columns of the source; with it, `sql` is one row-local
    `SELECT` over the source's name that gives join keys, times and features (T12). `ttl` bounds the age of a value (T4), `refresh`
    says how often the view is materialized (T3), `history_start` where its history begins, `lookback` how far an incremental run
    goes back to heal late rows (T7). `online=False` keeps the view out of the online store.
    """

    name: Name
    _: KW_ONLY
    entities: Annotated[tuple[Entity, ...], BeforeValidator(_sequence)]
    source: FileSource
    fields: Fields
    sql: str | None = None
    ttl: Duration | None = None
    refresh: Duration | None = None
    history_start: Instant | None = None
    lookback: Duration | None = None
    online: bool = True
    description: str = ""
    owner: str = ""
    tags: Tags = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            *,
            entities: Sequence[Entity],
            source: FileSource,
            fields: GivenFields,
            sql: str | None = None,
            ttl: str | dt.timedelta | None = None,
            refresh: str | dt.timedelta | None = None,
            history_start: str | dt.datetime | None = None,
            lookback: str | dt.timedelta | None = None,
            online: bool = True,
            description: str = "",
            owner: str = "",
            tags: Mapping[str, str] = ...,
        ) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> FeatureView:
        if not self.entities:
            raise ValueError("a feature view needs at least one entity")
        if not self.fields:
            raise ValueError("a feature view needs at least one field")
        _check_distinct("join key", (key.name for key in self.join_keys))
        _check_distinct("field", (field.name for field in self.fields))
        keys = {key.name for key in self.join_keys}
        for field in self.fields:
            if field.name in keys:
                raise ValueError(f"field {field.name!r} is a join key already")
        if self.is_static:
            for setting in ("ttl", "refresh", "history_start", "lookback"):
                if getattr(self, setting) is not None:
                    raise ValueError(f"{setting} needs an event_time, and source {self.source.name!r} is static")
        return self

    @property
    def join_keys(self) -> tuple[Field, ...]:
        """The join keys of all entities, in order."""
        return tuple(key for entity in self.entities for key in entity.join_keys)

    @property
    def is_static(self) -> bool:
        """Whether the rows have no time and are visible always (T13)."""
        return self.source.event_time is None

    def __getitem__(self, features: str | Iterable[str]) -> Projection:
        return Projection(self, (features,) if isinstance(features, str) else tuple(features))

    def alias(self, name: str, *, join_keys: Mapping[str, str]) -> Alias:
        """Return the same view in another role: `join_keys` says which request column stands for which join key."""
        return Alias(name, view=self, join_keys=join_keys)


@_definition
class Alias:
    """A feature view under another name and other key columns; it shares the view's tables."""

    name: Name
    _: KW_ONLY
    view: FeatureView
    join_keys: Annotated[tuple[tuple[Name, Name], ...], BeforeValidator(_pairs)]
    description: str = ""
    owner: str = ""
    tags: Tags = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            *,
            view: FeatureView,
            join_keys: Mapping[str, str],
            description: str = "",
            owner: str = "",
            tags: Mapping[str, str] = ...,
        ) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> Alias:
        known = [key.name for key in self.view.join_keys]
        for key, _ in self.join_keys:
            if key not in known:
                raise ValueError(f"view {self.view.name!r} has no join key {key!r}; {known_names(key, known)}")
        _check_distinct("request column", self.key_columns)
        return self

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The request columns that stand for the view's join keys, in the view's order."""
        renamed = dict(self.join_keys)
        return tuple(renamed.get(key.name, key.name) for key in self.view.join_keys)

    def __getitem__(self, features: str | Iterable[str]) -> Projection:
        return Projection(self, (features,) if isinstance(features, str) else tuple(features))


@_definition
class Projection:
    """Some features of a view or an alias, in the order given."""

    view: FeatureView | Alias
    features: tuple[Name, ...]

    if TYPE_CHECKING:

        def __init__(self, view: FeatureView | Alias, features: Sequence[str]) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> Projection:
        view = self.view.view if isinstance(self.view, Alias) else self.view
        known = [field.name for field in view.fields]
        for feature in self.features:
            if feature not in known:
                raise ValueError(f"view {self.view.name!r} has no feature {feature!r}; {known_names(feature, known)}")
        if not self.features:
            raise ValueError("a projection names at least one feature")
        _check_distinct("feature", self.features)
        return self


@_definition
class FeatureService:
    """The features of one model version, in order: views, aliases, projections, or `"view:feature"` texts."""

    name: Name
    _: KW_ONLY
    features: Annotated[tuple[FeatureView | Alias | Projection | str, ...], BeforeValidator(_sequence)]
    description: str = ""
    owner: str = ""
    tags: Tags = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            *,
            features: Sequence[FeatureView | Alias | Projection | str],
            description: str = "",
            owner: str = "",
            tags: Mapping[str, str] = ...,
        ) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> FeatureService:
        if not self.features:
            raise ValueError("a feature service needs at least one feature")
        return self


Definition = Entity | FileSource | FeatureView | Alias | FeatureService
"""What a repo holds by name, and the registry keeps."""

KINDS: dict[type, str] = {
    Entity: "entity",
    FileSource: "source",
    FeatureView: "feature view",
    Alias: "alias",
    FeatureService: "feature service",
}


def _check_distinct(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is named twice")
        seen.add(name)
