"""What a user declares beside sources: entities, feature views, aliases and feature services.

Definitions are frozen values: sequences become tuples, equality is by value, and `specs.py` writes them as the JSON that the
registry keeps.
A constructor checks what it can see by itself; what needs the other definitions or the source is checked by `repo.py`.
"""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator
from pydantic.dataclasses import rebuild_dataclass

from featurestore.aggregations import Aggregation
from featurestore.clock import duration_text
from featurestore.errors import known_names
from featurestore.fields import (
    Code,
    Duration,
    Field,
    Fields,
    Function,
    GivenFields,
    Instant,
    Name,
    Tags,
    check_distinct,
    definition,
    pairs,
    sequence,
)
from featurestore.sources import FileSource, PushSource, RequestSource
from featurestore.types import KEY_TYPES

__all__ = [
    "Aggregation",
    "Alias",
    "Entity",
    "FeatureService",
    "FeatureView",
    "Field",
    "FileSource",
    "OnDemandFeatureView",
    "Projection",
    "PushSource",
    "RequestSource",
    "on_demand_feature_view",
]


@definition
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
        check_distinct("join key", (key.name for key in self.join_keys))
        return self


@definition
class FeatureView:
    """Features of entities out of one source: the latest row's columns, or aggregations over its rows.

    `fields` declares the features and their types; `aggregations` gives one for each of their windows (T6). Without `sql` both take
    columns of the source; with it, `sql` is one row-local `SELECT` over the source's name that gives join keys, times and columns
    (T12). `ttl` bounds the age of a value (T4), `refresh`
    says how often the view is materialized (T3), `history_start` where its history begins, `lookback` how far an incremental run
    goes back to heal late rows (T7). `online=False` keeps the view out of the online store.

    A view over a `PushSource` has no aggregations, refresh, history_start or lookback: its rows are visible as they arrive.
    """

    name: Name
    _: KW_ONLY
    entities: Annotated[tuple[Entity, ...], BeforeValidator(sequence)]
    source: FileSource | PushSource
    fields: Fields = ()
    aggregations: Annotated[tuple[Aggregation, ...], BeforeValidator(sequence)] = ()
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
            source: FileSource | PushSource,
            fields: GivenFields = (),
            aggregations: Sequence[Aggregation] = (),
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
        if bool(self.fields) == bool(self.aggregations):
            raise ValueError("a feature view needs fields or aggregations" + (", not both" if self.fields else ""))
        keys = {key.name for key in self.join_keys}
        check_distinct("join key", (key.name for key in self.join_keys))
        check_distinct("feature" if self.aggregations else "field", self.feature_names)
        for name in self.feature_names:
            if name in keys:
                raise ValueError(f"field {name!r} is a join key already")
        if self.is_static:
            for setting in ("aggregations", "ttl", "refresh", "history_start", "lookback"):
                if getattr(self, setting):
                    raise ValueError(f"{setting} needs an event_time, and source {self.source.name!r} is static")
        self._check_pushed()
        self._check_aggregations(keys)
        return self

    def _check_pushed(self) -> None:
        for setting in ("aggregations", "refresh", "history_start", "lookback"):
            if self.is_pushed and getattr(self, setting):
                raise ValueError(f"{setting} is not for a view of push source {self.source.name!r}: rows count as they arrive")

    def _check_aggregations(self, keys: set[str]) -> None:
        """Check what aggregations need of the view, and that a stored column has one meaning."""
        meanings: dict[str, tuple[object, ...]] = {}
        for each in self.aggregations:
            for window in each.windows:
                if self.refresh and window % self.refresh:
                    raise ValueError(
                        f"window {duration_text(window)} of aggregation {each.part!r} is no multiple of refresh "
                        f"{duration_text(self.refresh)}"
                    )
            if each.stored_name in keys:
                raise ValueError(
                    f"aggregation {each.part!r}: {each.stored_name!r} is a join key, the same in all rows of an entity"
                )
            meaning = (each.column, each.sql, each.where, each.type)
            if meanings.setdefault(each.stored_name, meaning) != meaning:
                raise ValueError(
                    f"aggregation {each.part!r}: {each.stored_name!r} stands for two different columns; give one another "
                    + ("name" if each.where else "column name")
                )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the features, in order."""
        return tuple(field.name for field in self.fields) or tuple(
            name for each in self.aggregations for name in each.feature_names
        )

    @property
    def features(self) -> tuple[Field, ...]:
        """What the view gives: its features and their types, in order."""
        return self.fields or tuple(feature for each in self.aggregations for feature in each.features)

    @property
    def stored(self) -> tuple[Field, ...]:
        """What the view's table holds of a row besides keys and times: the features, or what aggregations need."""
        inputs = {each.input: None for each in self.aggregations if each.input is not None}
        return self.fields or tuple(inputs)

    @property
    def join_keys(self) -> tuple[Field, ...]:
        """The join keys of all entities, in order."""
        return tuple(key for entity in self.entities for key in entity.join_keys)

    @property
    def is_static(self) -> bool:
        """Whether the rows have no time and are visible always (T13)."""
        return self.source.event_time is None

    @property
    def is_pushed(self) -> bool:
        """Whether its rows are pushed."""
        return isinstance(self.source, PushSource)

    def __getitem__(self, features: str | Iterable[str]) -> Projection:
        return Projection(self, (features,) if isinstance(features, str) else tuple(features))

    def alias(self, name: str, *, join_keys: Mapping[str, str]) -> Alias:
        """Return the same view in another role: `join_keys` says which request column stands for which join key."""
        return Alias(name, view=self, join_keys=join_keys)


@definition
class Alias:
    """A feature view under another name and other key columns; it shares the view's tables."""

    name: Name
    _: KW_ONLY
    view: FeatureView
    join_keys: Annotated[tuple[tuple[Name, Name], ...], BeforeValidator(pairs)]
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
        check_distinct("request column", self.key_columns)
        return self

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The request columns that stand for the view's join keys, in the view's order."""
        renamed = dict(self.join_keys)
        return tuple(renamed.get(key.name, key.name) for key in self.view.join_keys)

    def __getitem__(self, features: str | Iterable[str]) -> Projection:
        return Projection(self, (features,) if isinstance(features, str) else tuple(features))


@definition
class Projection:
    """Some features of a view, an alias or an on-demand view, in the order given."""

    view: FeatureView | Alias | OnDemandFeatureView
    features: tuple[Name, ...]

    if TYPE_CHECKING:

        def __init__(self, view: FeatureView | Alias | OnDemandFeatureView, features: Sequence[str]) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> Projection:
        view = self.view.view if isinstance(self.view, Alias) else self.view
        known = view.feature_names
        for feature in self.features:
            if feature not in known:
                raise ValueError(f"view {self.view.name!r} has no feature {feature!r}; {known_names(feature, known)}")
        if not self.features:
            raise ValueError("a projection names at least one feature")
        check_distinct("feature", self.features)
        return self


@definition
class OnDemandFeatureView:
    """Features that a function computes when they are asked for, the same in training and in serving (T9).

    `inputs` are views, aliases, projections, other on-demand views, `"view:feature"` texts and request sources. `function` takes a
    mapping of their columns, by feature or field name, and returns one of the columns that `fields` declares. With `mode="numpy"`
    columns are numpy arrays, and rows with a null in any input are not passed and give null; with `mode="arrow"` they are Arrow
    arrays with their nulls. `on_demand_feature_view` makes one of a function.
    """

    name: Name
    _: KW_ONLY
    inputs: Annotated[
        tuple[FeatureView | Alias | OnDemandFeatureView | Projection | RequestSource | str, ...], BeforeValidator(sequence)
    ]
    fields: Fields
    function: Function
    mode: Literal["numpy", "arrow"] = "numpy"
    code: Code | None = None
    description: str = ""
    owner: str = ""
    tags: Tags = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            *,
            inputs: Sequence[OnDemandInput],
            fields: GivenFields,
            function: Callable[[Any], Any],
            mode: Literal["numpy", "arrow"] = "numpy",
            code: Code | None = None,
            description: str = "",
            owner: str = "",
            tags: Mapping[str, str] = ...,
        ) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> OnDemandFeatureView:
        if not self.inputs:
            raise ValueError("an on-demand feature view needs at least one input")
        if not self.fields:
            raise ValueError("an on-demand feature view needs at least one field")
        check_distinct("field", self.feature_names)
        names: set[str] = set()
        for name in (name for each in self.inputs for name in input_names(each)):
            if name in names:
                raise ValueError(
                    f"two inputs are named {name!r}; inputs have distinct names, so give one of them another through an on-demand "
                    "view of its own"
                )
            names.add(name)
        return self

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the features, in order."""
        return tuple(field.name for field in self.fields)

    def __getitem__(self, features: str | Iterable[str]) -> Projection:
        return Projection(self, (features,) if isinstance(features, str) else tuple(features))

    def __call__(self, inputs: Any) -> Any:
        """Call the function with columns, as a test of it may do."""
        return self.function(inputs)


def input_names(given: OnDemandInput) -> tuple[str, ...]:
    """Return the names under which an input of an on-demand view comes; ValueError for a text that is not `view:feature`."""
    if isinstance(given, str):
        view, separator, feature = given.partition(":")
        if not (view and separator and feature):
            raise ValueError(f"{given!r} is not of the form 'view:feature'")
        return (feature,)
    if isinstance(given, Projection):
        return given.features
    if isinstance(given, RequestSource):
        return tuple(field.name for field in given.fields)
    return (given.view if isinstance(given, Alias) else given).feature_names


def on_demand_feature_view(
    *,
    inputs: Sequence[OnDemandInput],
    fields: GivenFields,
    mode: Literal["numpy", "arrow"] = "numpy",
    name: str | None = None,
    description: str = "",
    owner: str = "",
    tags: Mapping[str, str] | None = None,
) -> Callable[[Callable[[Any], Any]], OnDemandFeatureView]:
    """Make an on-demand feature view of the function below it, whose name it takes, and the first line of whose docstring.

    `inputs`, `fields` and `mode` are those of `OnDemandFeatureView`.
    """

    def made(function: Callable[[Any], Any]) -> OnDemandFeatureView:
        return OnDemandFeatureView(
            name or function.__name__,
            inputs=inputs,
            fields=fields,
            function=function,
            mode=mode,
            description=description or (inspect.getdoc(function) or "").partition("\n")[0],
            owner=owner,
            tags=tags or {},
        )

    return made


@definition
class FeatureService:
    """The features of one model version, in order: views of any kind, aliases, projections, or `"view:feature"` texts."""

    name: Name
    _: KW_ONLY
    features: Annotated[tuple[FeatureView | Alias | OnDemandFeatureView | Projection | str, ...], BeforeValidator(sequence)]
    description: str = ""
    owner: str = ""
    tags: Tags = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            *,
            features: Sequence[FeatureView | Alias | OnDemandFeatureView | Projection | str],
            description: str = "",
            owner: str = "",
            tags: Mapping[str, str] = ...,
        ) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> FeatureService:
        if not self.features:
            raise ValueError("a feature service needs at least one feature")
        return self


OnDemandInput = FeatureView | Alias | OnDemandFeatureView | Projection | RequestSource | str

rebuild_dataclass(Projection)  # type: ignore[arg-type]  # it names a class that follows it

Definition = Entity | FileSource | PushSource | FeatureView | Alias | OnDemandFeatureView | FeatureService
"""What a repo holds by name, and the registry keeps."""

KINDS: dict[type, str] = {
    Entity: "entity",
    FileSource: "source",
    PushSource: "source",
    FeatureView: "feature view",
    Alias: "alias",
    OnDemandFeatureView: "on-demand feature view",
    FeatureService: "feature service",
}
