"""Computing a stored training set, in the process that holds it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from featurestore import FeatureStore
from featurestore.clock import instant_text, system_clock
from featurestore.errors import FeatureStoreError
from featurestore.offline.stored_sets import MOST_ATTEMPTS, StoredSet
from featurestore.offline.training import TrainingSet

__all__ = ["compute"]

_LOOK_SECONDS = 0.5
_SAVE_SECONDS = 1.0


def compute(store: FeatureStore, held: StoredSet) -> None:
    """Compute a set whose turn it is, and record how it ended; it begins anew if a process was lost over it."""
    if held.is_to_be_cancelled:
        held.save(state="cancelled", finished_at=_now())
        return
    if held.state.attempts >= MOST_ATTEMPTS:
        detail = f"the process that computed it was lost {MOST_ATTEMPTS} times; the log of the service may say why"
        held.save(state="failed", finished_at=_now(), error={"code": "lost", "detail": detail})
        return
    threading.Thread(target=_end_when_cancelled, args=(held,), daemon=True).start()
    held = held.save(state="running", attempts=held.state.attempts + 1, started_at=_now(), rows_done=0)
    try:
        rows = _watched(_training(store, held), held).to_parquet(held.result)
    except FeatureStoreError as error:
        held.save(state="failed", finished_at=_now(), error={"code": error.code, "detail": str(error)})
    except BaseException:
        held.save(state="failed", finished_at=_now(), error={"code": "internal", "detail": "the log of the service says why"})
        raise
    else:
        size = held.result.stat().st_size
        held.save(state="completed", finished_at=_now(), rows_done=rows, rows=rows, bytes=size)


def _training(store: FeatureStore, held: StoredSet) -> TrainingSet:
    job = held.job
    features = job.features if isinstance(job.features, str) else list(job.features)
    return store.get_historical_features(
        held.spine(),
        features,
        timestamp_column=job.timestamp_column,
        incomplete=job.incomplete,
        availability=job.availability,
    )


def _watched(training: TrainingSet, held: StoredSet) -> TrainingSet:
    """Return the same training set, which says once a second how many rows of its spine it has read."""
    most, saved = 0, time.monotonic()

    def read(columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        nonlocal most, saved
        done = 0
        for batch in training.spine.read(columns):
            yield batch
            done += len(batch)
            if done > most and time.monotonic() - saved > _SAVE_SECONDS:
                held.save(rows_done=done)
                saved = time.monotonic()
            most = max(most, done)

    return replace(training, spine=replace(training.spine, read=read))


def _end_when_cancelled(held: StoredSet) -> None:
    """End the process when the set is to be cancelled, whatever it does; the service records it."""
    while not held.is_to_be_cancelled:
        time.sleep(_LOOK_SECONDS)
    os._exit(0)


def _now() -> str:
    return instant_text(system_clock())
