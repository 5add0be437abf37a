"""The code of on-demand views, as one more thing that serving and training have to agree on.

Both run the function whose hash is on record, so they cannot give different values; what can be wrong is that the code is not there
any more, or that the definitions folder has other code, which has not been applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from featurestore.errors import CodeError
from featurestore.functions import Functions, code_hash
from featurestore.parity.findings import Cause, Difference, Kind, ViewParity
from featurestore.registry.selection import Computed, select
from featurestore.registry.state import Applied
from featurestore.settings import Settings

__all__ = ["ON_DEMAND", "code_parities"]

ON_DEMAND = "on-demand feature view"


def code_parities(settings: Settings, serving: Applied, views: Sequence[str] | None, service: str | None) -> Iterator[ViewParity]:
    """Give the on-demand views, of a service, of some names or all, whose code is not there (a difference) or changed (a note)."""
    # Loaded anew: what this process has loaded before says nothing of what the next one finds.
    functions = Functions(settings.root, settings.state)
    for computed in _computed(serving, views, service):
        found = ViewParity(computed.name, 0, None)
        try:
            functions.of(computed)
        except CodeError as reason:
            found.compared = 1
            found.add([Difference(Kind.DIFFERENT, Cause.CHANGED_CODE, str(reason), {})])
            yield found
            continue
        if _in_folder(settings, computed) != computed.code.hash:
            found.skipped = "the definitions folder has other code than is applied; what is applied serves and trains"
            yield found


def _computed(serving: Applied, views: Sequence[str] | None, service: str | None) -> Sequence[Computed]:
    if service is not None:
        return select(serving, service).computed
    specs = {name: spec for (kind, name), spec in serving.specs.items() if kind == ON_DEMAND}
    return [Computed(spec, ()) for name, spec in specs.items() if views is None or name in views]


def _in_folder(settings: Settings, computed: Computed) -> str | None:
    with suppress(OSError, SyntaxError, ValueError, KeyError):
        return code_hash(settings.root, computed.code.file)
    return None
