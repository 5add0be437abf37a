"""The files of a source: one file, a glob, or a folder whose `*.parquet` files are read, recursively."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from featurestore.errors import SourceError
from featurestore.sources import FileSource

__all__ = ["source_files"]

_GLOB = set("*?[")


def source_files(source: FileSource, root: Path) -> list[str]:
    """Return the Parquet files of a source in reading order; SourceError if there is none."""
    path = root / source.path
    if path.is_dir():
        found = _matching(path, ["**", "*.parquet"])
    elif _GLOB & set(source.path):
        fixed = Path(path.anchor) if Path(source.path).is_absolute() else root  # what lies above the repo is no pattern
        found = _matching(fixed, path.relative_to(fixed).parts)
    else:
        found = iter([path])
    files = sorted({str(file) for file in found if file.is_file()})
    if not files:
        raise SourceError(f"source {source.name!r}: no Parquet file at {path}")
    return files


def _matching(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Give what matches a pattern below a folder; `**` stands for any folders, behind links too, which Python's own leaves out."""
    if "**" not in parts:
        yield from folder.glob("/".join(parts))
        return
    place = parts.index("**")
    for top in folder.glob("/".join(parts[:place])) if place else [folder]:
        for each in _folders(top):
            yield from _matching(each, parts[place + 1 :] or ["*"])


def _folders(top: Path) -> list[Path]:
    """Return a folder and all below it, each once: one that is linked to from elsewhere in it as where it lies."""
    found: dict[tuple[int, int], Path] = {}
    links = [top]
    for link in links:  # which grows meanwhile: links wait until all is found that needs none of them
        for path, names, _ in os.walk(link):
            names.sort()
            try:
                status = Path(path).stat()
            except FileNotFoundError:  # it was removed a moment ago
                names.clear()
                continue
            if (status.st_dev, status.st_ino) in found:
                names.clear()
                continue
            found[status.st_dev, status.st_ino] = Path(path)
            links += [each for name in names if (each := Path(path, name)).is_symlink()]
    return list(found.values())
