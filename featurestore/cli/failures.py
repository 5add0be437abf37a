"""How a command ends: its exit code, and what stderr says if it failed. The only place that turns exceptions into messages."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
import typer
from rich.text import Text

from featurestore.cli.rendering import OutputError, messages, writing
from featurestore.errors import (
    DefinitionError,
    FeatureStoreError,
    InputError,
    NotFoundError,
    PendingError,
    RollbackError,
    RunsFailedError,
)

__all__ = ["guarded"]

_FAILED = 1
_WRONG_USAGE = 2
_INTERRUPTED = 130

# Typer does not say where it keeps click's class, which has moved.
_UsageError: type[Any] = typer.BadParameter.__bases__[0]


def guarded(run: Callable[[], object], *, as_json: bool, debug: bool) -> int:
    """Run a command and return its exit code; whatever it raises ends as one message on stderr."""
    _open_streams()
    with _interrupts() as interrupts:
        try:
            code = run()
            with writing():
                sys.stdout.flush()
        except BrokenPipeError:
            _silence_stdout()
            return _FAILED
        except SystemExit as ended:  # typer and rich end so on a closed pipe
            return ended.code if isinstance(ended.code, int) else _FAILED
        except (KeyboardInterrupt, typer.Abort):
            code = _INTERRUPTED
        except Exception as error:  # noqa: BLE001 (the boundary: nobody above could do better)
            if debug:
                traceback.print_exception(error)
            if isinstance(error, OutputError):
                _silence_stdout()
            code = _INTERRUPTED if interrupts else _report(error, as_json=as_json)
    if code == _INTERRUPTED:  # newer releases of typer return it, older ones raise Abort
        messages().print("interrupted")
    return code if isinstance(code, int) else 0


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect the Ctrl-Cs, since DuckDB and Arrow turn some into errors of their own."""
    seen: list[int] = []

    def notice(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield seen
        return
    signal.signal(signal.SIGINT, notice)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _open_streams() -> None:
    """Let streams that whoever started the process has closed go nowhere, so that no file of a store gets their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (for the rest of the process)


def _silence_stdout() -> None:
    """Let the flush at the end of the process go nowhere: stdout is full, or whoever read it has left, as `head` does."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: Exception, *, as_json: bool) -> int:
    if as_json:
        sys.stderr.write(orjson.dumps({"error": _record(error)}).decode() + "\n")
    else:
        for line in _lines(error):
            messages().print(line, soft_wrap=True)
    return _WRONG_USAGE if isinstance(error, _UsageError) else _FAILED


def _lines(error: Exception) -> Iterator[Text]:
    yield Text.assemble(("error: ", "bold red"), _message(error))
    context = getattr(error, "ctx", None)
    if isinstance(error, _UsageError) and context is not None:
        yield Text(f"{context.get_usage()}\nHelp: {context.command_path} --help", "dim")


def _message(error: Exception) -> str:
    if isinstance(error, FeatureStoreError):
        return str(error)
    if isinstance(error, _UsageError):
        return str(error.format_message())
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)".replace("\n", " ")


def _record(error: Exception) -> dict[str, Any]:
    """Return an error as JSON-ready data: a stable code, the message, and what else the error knows."""
    code = error.code if isinstance(error, FeatureStoreError) else "usage" if isinstance(error, _UsageError) else "internal"
    record: dict[str, Any] = {"code": code, "message": _message(error)}
    if isinstance(error, NotFoundError):
        record |= {"name": error.name, "nearest": list(error.nearest)}
    elif isinstance(error, InputError | PendingError | RollbackError) and error.name is not None:
        record["name"] = error.name
    elif isinstance(error, DefinitionError):
        record["faults"] = [asdict(fault) for fault in error.faults]
    elif isinstance(error, RunsFailedError):
        record["failures"] = {view: _record(each) for view, each in error.failures.items()}
    return record
