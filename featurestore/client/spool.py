"""Bytes on their way to or from the service: written once, read as often as needed, in memory only while they are few."""

from __future__ import annotations

import io
import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Spool"]

_HELD_BYTES = 8_000_000
_CHUNK_BYTES = 262_144


class Spool(io.RawIOBase):
    """A file that is in memory until it has grown; then on the disk, in a temporary file that goes when the spool does.

    With a `path` it is that file, which stays.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._held = bytearray()
        self._path = path
        self._file: io.BufferedWriter | None = None
        self.size = 0

    @staticmethod
    def of_file(path: Path) -> Spool:
        """Return a file that is there already, to be read."""
        spool = Spool(path)
        spool.size = path.stat().st_size
        return spool

    def writable(self) -> bool:
        """Say so to who writes tables."""
        return True

    def write(self, chunk: bytes) -> int:  # type: ignore[override]  # whatever has the buffer protocol
        """Add a chunk."""
        count = len(memoryview(chunk).cast("B"))
        self.size += count
        if self._file is None and self._path is None and self.size <= _HELD_BYTES:
            self._held += chunk
        else:
            self._opened().write(chunk)
        return count

    def flush(self) -> None:
        """Let readers see what was written."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Write no more; it can still be read."""
        if self._file is not None:
            self._file.close()

    def chunks(self) -> Iterator[bytes]:
        """Give what was written."""
        self.flush()
        if self._path is None:
            for first in range(0, len(self._held), _CHUNK_BYTES):
                yield bytes(self._held[first : first + _CHUNK_BYTES])
            return
        with self._path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def content(self) -> bytes:
        """Return all of it."""
        return bytes(self._held) if self._path is None else b"".join(self.chunks())

    def source(self) -> pa.NativeFile:
        """Return it for Arrow to read; what lies on the disk is mapped, not loaded."""
        import pyarrow as pa

        self.flush()
        return pa.BufferReader(bytes(self._held)) if self._path is None else pa.memory_map(str(self._path))

    def _opened(self) -> io.BufferedWriter:
        if self._file is None:
            if self._path is None:
                handle, name = tempfile.mkstemp(prefix="featurestore-client-")
                self._path, self._file = Path(name), os.fdopen(handle, "wb")
                weakref.finalize(self, self._path.unlink, missing_ok=True)
            else:
                self._file = self._path.open("wb")
            self._file.write(self._held)
            self._held.clear()
        return self._file
