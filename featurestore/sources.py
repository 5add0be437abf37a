"""Sources as users declare them: where rows come from, and which of their columns are times."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from featurestore.fields import Column, Duration, Fields, GivenFields, Name, Tags, check_cases, check_distinct, definition
from featurestore.types import Timestamp, ValueType

__all__ = ["FileSource", "PushSource", "RequestSource"]


@definition
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


@definition
class PushSource:
    """Rows that applications push, which are visible from the moment they arrive (T3).

    `fields` declares the columns of a pushed row and their types. `event_time`, and `created_time` if there is one, are further
    columns of type Timestamp, which `fields` need not repeat: when a row became true, and what breaks ties between rows of one
    event time; a row without a created time takes its arrival for it.
    """

    name: Name
    _: KW_ONLY
    fields: Fields
    event_time: Column
    created_time: Column | None = None
    description: str = ""
    owner: str = ""
    tags: Tags = ()

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            *,
            fields: GivenFields,
            event_time: str,
            created_time: str | None = None,
            description: str = "",
            owner: str = "",
            tags: Mapping[str, str] = ...,
        ) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> PushSource:
        if not self.fields:
            raise ValueError("a push source needs at least one field")
        check_distinct("field", (field.name for field in self.fields))
        if self.event_time == self.created_time:
            raise ValueError("event_time and created_time are the same column")
        for field in self.fields:
            if field.name in (self.event_time, self.created_time) and field.type != Timestamp:
                raise ValueError(f"column {field.name!r} is a time of the rows, so it is a Timestamp, not a {field.type}")
        for name in self.columns:
            if name.startswith("__"):
                raise ValueError(f"column {name!r} begins with '__', as the library's own do")
        check_cases(self.columns)
        return self

    @property
    def columns(self) -> dict[str, ValueType]:
        """The columns of a pushed row and their types, in order: the fields, then the times."""
        times = [self.event_time, *([] if self.created_time is None else [self.created_time])]
        return {field.name: field.type for field in self.fields} | dict.fromkeys(times, Timestamp)

    @property
    def delay(self) -> None:
        """What is pushed is never late: it is visible as it arrives."""
        return

    @property
    def visible_from(self) -> Literal["arrival"]:
        """The instant that decides when a row is visible."""
        return "arrival"


@definition
class RequestSource:
    """Columns that come with what is asked for: beside the keys in a lookup, in the spine of a training set.

    `fields` gives their names and types. They are inputs of on-demand feature views.
    """

    name: Name
    fields: Fields

    if TYPE_CHECKING:

        def __init__(self, name: str, fields: GivenFields) -> None: ...

    @model_validator(mode="after")
    def _check(self) -> RequestSource:
        if not self.fields:
            raise ValueError("a request source needs at least one field")
        check_distinct("field", (field.name for field in self.fields))
        return self
