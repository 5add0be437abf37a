"""The jobs of a service: it looks once a second for stored training sets that wait, and computes them beside the requests.

Any number of servers may do so over one offline store; a set is computed by the process that locks it (`stored_sets.py`).
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from featurestore import FeatureStore
from featurestore.clock import instant_text, system_clock
from featurestore.errors import FeatureStoreError, NotFoundError, TrainingSetError
from featurestore_server.processes import LostProcessError, Processes, frames
from featurestore_server.queries import Computation

__all__ = ["Jobs"]

_LOGGER = logging.getLogger("featurestore_server")
_LOOK_SECONDS = 1.0
_GIVE_BACK_SECONDS = 1.0
_PAUSE_SECONDS = 10.0
"""How long one that could not be begun waits before it is tried again."""


class Jobs:
    """Computes what waits, `server.training_jobs` at once."""

    def __init__(self, store: FeatureStore) -> None:
        self._at_once = store.settings.server.training_jobs
        self._store, self._sets = store, store.training_sets
        self._processes = Processes(store, self._at_once, 0)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute as long as the block runs; what is not done then waits for another server, or for this one's return."""
        looking = asyncio.ensure_future(self._look())
        try:
            yield
        finally:
            tasks = [looking, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        while self._at_once:
            try:
                waiting = await asyncio.to_thread(self._sets.waiting)
            except (FeatureStoreError, OSError) as reason:
                _LOGGER.warning("cannot look for training sets that wait: %s", reason)
                waiting = []
            for stored in waiting:
                if len(self._tasks) < self._at_once and stored.job.id not in self._tasks:
                    self._start(stored.job.id)
            await asyncio.sleep(_LOOK_SECONDS)

    def _start(self, identifier: str) -> None:
        task = self._tasks[identifier] = asyncio.ensure_future(self._compute(identifier))
        task.add_done_callback(lambda _: self._tasks.pop(identifier))

    async def _compute(self, identifier: str) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="featurestore-job-", dir=self._store.settings.temp_folder) as folder:
                async with self._processes.started(Computation(identifier), Path(folder)) as reader:
                    async for _ in frames(reader):
                        pass
        except LostProcessError as reason:
            if not await asyncio.to_thread(self._is_cancelled, identifier):
                _LOGGER.error("training set %s: %s", identifier, reason)  # noqa: TRY400 (the reason holds the other's traceback)
        except asyncio.CancelledError:
            await asyncio.to_thread(self._give_back, identifier)
            raise
        except (OSError, FeatureStoreError) as reason:  # it has not begun, so it waits as before
            _LOGGER.error("training set %s cannot be computed: %s", identifier, reason)  # noqa: TRY400 (no bug)
            await asyncio.sleep(_PAUSE_SECONDS)

    def _is_cancelled(self, identifier: str) -> bool:
        """Whether a set was to be cancelled, which is recorded now that its process has ended."""
        with suppress(NotFoundError, TrainingSetError):
            if self._sets.find(identifier).is_to_be_cancelled:
                self._sets.cancel(identifier, now=instant_text(system_clock()))
                return True
        return False

    def _give_back(self, identifier: str) -> None:
        """Let another server begin anew with what was killed because this one ends; it is no attempt that was lost."""
        deadline = time.monotonic() + _GIVE_BACK_SECONDS
        while time.monotonic() < deadline:
            try:
                with self._sets.held(identifier) as held:
                    if not held.state.is_over:
                        held.save(state="waiting", attempts=max(0, held.state.attempts - 1))
                    return
            except NotFoundError:
                return
            except TrainingSetError:  # its process is about to end
                time.sleep(0.01)
