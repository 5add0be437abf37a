"""The command line: `featurestore`, `fs` and `python -m featurestore`.

Here is only its entry, which is light: Ctrl-C may come while all the rest is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default this process's, and return its exit code.

    0: done. 1: it failed, and stderr says why. 2: the command line is wrong. 130: Ctrl-C.
    """
    try:
        from featurestore.cli.commands import run

        return run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return _INTERRUPTED
