"""The commands that read features at present: get-online, serve."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import RenderableType
from rich.text import Text

from featurestore.cli.invocation import Invocation
from featurestore.cli.rendering import json_form, values_grid
from featurestore.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from featurestore.registry.selection import Selection
    from featurestore.types import ValueType

__all__ = ["Features", "Keys", "LockOption", "features_named", "get_online", "key_columns", "serve"]

_SERVER = "featurestore_server"
_NUMBERS = ("Int32", "Int64", "Float32", "Float64", "Bool")

Features = Annotated[str, typer.Argument(metavar="FEATURES", help="A feature service, or view:feature,view:feature,…")]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        "-k",
        metavar="NAME=VALUE,…",
        help="A key or request column, one value for each row. No value is null; a JSON array works too.",
    ),
]
LockOption = Annotated[
    str | None, typer.Option("--lock", metavar="FILE", help="A lock file, or a fingerprint: refuse features that are others.")
]
Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")]
Workers = Annotated[int, typer.Option(min=1, max=256, help="How many processes serve; one that dies is replaced.")]
TlsCert = Annotated[Path | None, typer.Option(metavar="FILE", help="Serve HTTPS with this certificate chain, in PEM.")]
TlsKey = Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key, if that is in a file of its own.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", metavar="", help="Let everyone in who reaches it, as long as there is no API key.")
]


def features_named(text: str) -> str | list[str]:
    """Read a service's name, or a list of `view:feature` separated by commas."""
    return [part.strip() for part in text.split(",")] if ":" in text else text


def get_online(call: Invocation, features: Features, key: Keys = None, lock: LockOption = None) -> None:
    """Look up features as they are now, in the online store.

    The first values of all keys are the first entity, the second ones the second, and so on.

    Example: featurestore get-online machine_health_v1 -k sensor_id=pump_1
    """
    with call.store() as store:
        selection = store.selection(features_named(features))
        vectors = store.get_online_features(key_columns(key or (), selection.needed), features_named(features), lock=lock)
    types = selection.needed | selection.types()
    values = {name: list(map(types[name].to_json, vectors.columns[name].to_pylist())) for name in vectors.columns.column_names}
    record = {
        "features": {name: values[name] for name in vectors.features},
        "statuses": {view: [status.name for status in statuses] for view, statuses in vectors.statuses.items()},
        "event_times": {view: json_form(times.to_pylist()) for view, times in vectors.event_times.items()},
    }
    call.answer(record, _parts(selection, values, record))


def serve(
    call: Invocation,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    workers: Workers = 1,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
) -> None:
    """Serve features over HTTP.

    Other machines are served only if there is an API key (`featurestore keys create`).

    Example: featurestore serve --port 8000
    """
    from featurestore.settings import load_settings

    load_settings(call.repo)  # a wrong repo is reported here, not by a server that has started
    for package in (_SERVER, "fastapi", "uvicorn"):
        if find_spec(package) is None:
            raise MissingDependencyError("fastapi" if package == _SERVER else package, "server", "the HTTP service")
    # -P: the files of a repo must not be taken for the modules of an installed package.
    command = [sys.executable, "-P", "-m", _SERVER, "--repo", str(call.repo), "--host", host, "--port", str(port)]
    command += ["--workers", str(workers)]
    sys.stdout.flush()
    flags = ["--insecure"] * insecure + ["--json"] * call.as_json + ["--debug"] * call.debug
    files = [part for name, file in (("--tls-cert", tls_cert), ("--tls-key", tls_key)) if file for part in (name, str(file))]
    os.execv(sys.executable, [*command, *files, *flags])  # noqa: S606 (no shell is wanted)


# Keys


def key_columns(options: Iterable[str], types: Mapping[str, ValueType]) -> dict[str, list[Any]]:
    """Read the columns of keys out of options of the form `NAME=VALUE,VALUE,…`."""
    columns: dict[str, list[Any]] = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"--key {option!r} is not of the form NAME=VALUE,VALUE,…")
        values = _listed(name, text)
        # The library says of a name that it does not know which ones there are.
        type_ = types.get(name.strip())
        columns.setdefault(name.strip(), []).extend(values if type_ is None else [_value(name, type_, value) for value in values])
    return columns


def _listed(name: str, text: str) -> list[Any]:
    if not text.lstrip().startswith("["):
        return [value or None for value in text.split(",")]
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as reason:
        raise InputError(f"key {name!r} begins with [ and is no JSON array: {reason}", name=name) from None
    return list(values)


def _value(name: str, type_: ValueType, value: Any) -> Any:
    """Return the value of a key; of a type that JSON does not write as text, the text is JSON."""
    try:
        is_json = isinstance(value, str) and type_.name in _NUMBERS
        return type_.from_json(orjson.loads(value) if is_json else value)
    except ValueError:
        raise InputError(f"key {name!r} is {type_}, and {value!r} is none", name=name) from None


# The table


def _parts(selection: Selection, values: Mapping[str, Sequence[Any]], record: Mapping[str, Any]) -> Iterator[RenderableType]:
    if not next(iter(values.values())):
        yield "No entities were asked for."
        return
    views = {lookup.column(feature): lookup.name for lookup in selection.lookups for feature in lookup.features}
    yield from _values(values, views, record)
    if any(status == "OUTSIDE_MAX_AGE" for statuses in record["statuses"].values() for status in statuses):
        yield Text("OUTSIDE_MAX_AGE: the newest value is older than the view's ttl.", "dim")


def _values(values: Mapping[str, Sequence[Any]], views: Mapping[str, str], record: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Give the vectors as tables in which a status stands where there is no value."""
    yield from values_grid(
        {
            name: [
                _shown(value, record["statuses"][views[name]][row]) if name in views else value for row, value in enumerate(column)
            ]
            for name, column in values.items()
        }
    )


def _shown(value: Any, status: str) -> Any:
    return value if status == "PRESENT" else Text(status, "yellow")
