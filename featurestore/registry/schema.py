"""The registry's SQL schema. This module's tables are its specification.

A database of an older schema is brought here by `migrations/`, one step for each number; `meta` says which number it has, and so
does Alembic's own table. A newer number belongs to a newer release, and is left alone.

Instants are microseconds. JSON is text in canonical form. An object's `spec` is what was applied last (null: removed), its
`serving` what its name means now: the two differ while versions that it is connected with are still candidates (T11).
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Integer, LargeBinary, MetaData, String, Table, Text, UniqueConstraint

__all__ = [
    "SCHEMA_VERSION",
    "alembic",
    "api_keys",
    "changes",
    "erasures",
    "loads",
    "meta",
    "metadata",
    "objects",
    "push_files",
    "push_sources",
    "pushes",
    "runs",
    "takeovers",
    "tombstones",
    "versions",
]

SCHEMA_VERSION = 6
metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("id", Integer, primary_key=True),  # one row, id 1
    Column("schema_version", Integer, nullable=False),
    Column("project", Text, nullable=False),
    Column("revision", Integer, nullable=False),  # grows with every apply: the optimistic check
    Column("erasure_secret", Text),  # goes into the hashes of erased keys; made with the first
    Column("writes", BigInteger, nullable=False, server_default="0"),  # grows with every write but those of pushes
)

# Alembic's own record, under a name of ours, since an application that shares the database may have its.
alembic = Table("featurestore_alembic", metadata, Column("version_num", String(32), primary_key=True))

objects = Table(
    "objects",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("spec", Text),
    Column("serving", Text),
)

changes = Table(
    "changes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("applied_at", BigInteger, nullable=False),
    Column("applied_by", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("action", Text, nullable=False),  # create, change, remove, rollback
    Column("fields", Text, nullable=False),  # JSON: [{"field", "before", "after"}]
)

versions = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", Text, nullable=False, unique=True),  # names the table's folder and the online key space, never reused
    Column("view", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("spec", Text, nullable=False),  # the whole view, source and entities included
    Column("state", Text, nullable=False),  # candidate, serving, replaced, dropped, removing, removed
    Column("created_at", BigInteger, nullable=False),
    # Coverage: rows with start < visible time <= end are in the table at `table_version`. The end is the watermark.
    Column("coverage_start", BigInteger),
    Column("coverage_end", BigInteger),
    Column("table_version", BigInteger, nullable=False, default=-1),
    # The last completed online load: its run, the table version that it loaded, and the watermark at which it evaluated it.
    Column("loaded_run", BigInteger),
    Column("loaded_table_version", BigInteger),
    Column("loaded_until", BigInteger),
    Column("retired_at", BigInteger),  # when it was replaced or dropped
    UniqueConstraint("view", "number"),
)

# What took over together, and what it took over from: the way back for a rollback. The ids of versions, null: none served.
takeovers = Table(
    "takeovers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("takeover", Integer, nullable=False),  # shared by what took over together; grows
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("before", Text),
    Column("after", Text),
    Column("version_before", Integer),
    Column("version_after", Integer),
)

tombstones = Table(
    "tombstones",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("columns", Text, nullable=False),  # JSON: the names of the key columns
    Column("digest", Text, nullable=False),  # see `offline/erased.py`
    Column("erased_at", BigInteger, nullable=False),
    Column("lifted_at", BigInteger),
)

erasures = Table(
    "erasures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("entity", Text, nullable=False),
    Column("erased_at", BigInteger, nullable=False),
    Column("erased_by", Text, nullable=False),
    Column("manifest", Text, nullable=False),  # JSON: hashes and counts, never keys
)

api_keys = Table(  # see `registry/api_keys.py`
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),  # SHA-256 of the key's text, in hexadecimal digits
    Column("roles", Text, nullable=False),  # JSON
    Column("services", Text),  # JSON; null: all
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("revoked_at", BigInteger),
)

# Push sources: who pushes next. `registry/pushes.py` says how the four columns move.
push_sources = Table(
    "push_sources",
    metadata,
    Column("source", Text, primary_key=True),
    Column("sealed", BigInteger, nullable=False),  # no later push arrives at or before it
    Column("last_push", BigInteger),  # when the last push arrived
    Column("rows", BigInteger, nullable=False),  # how many rows were ever pushed: the next one's `seq`
    Column("folded", BigInteger),  # pushes up to here are in files
)

# Each push, with its rows as long as they are in no file, and for some days more the key that a retry of it names.
pushes = Table(
    "pushes",
    metadata,
    Column("source", Text, primary_key=True),
    Column("arrival", BigInteger, primary_key=True),
    Column("first_seq", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("idempotency_key", Text),
    Column("digest", Text),  # of the rows, where there is a key
    Column("payload", LargeBinary),  # see `offline/push_log.py`
    UniqueConstraint("source", "idempotency_key"),
)

# The files of the logs; one that is not named here is of nobody.
push_files = Table(
    "push_files",
    metadata,
    Column("name", Text, primary_key=True),
    Column("source", Text, nullable=False, index=True),
    Column("first", BigInteger, nullable=False),  # the arrivals that it holds, both inclusive
    Column("last", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),  # the run's number: the order of its online rows (T8)
    Column("version_id", Integer, nullable=False, index=True),
    Column("interval_start", BigInteger),
    Column("interval_end", BigInteger, nullable=False),
    Column("status", Text, nullable=False),  # running, completed, failed
    Column("started_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("report", Text, nullable=False, default="{}"),  # JSON: what the run counted
    Column("error", Text),
    sqlite_autoincrement=True,  # a number is never used again
)

# Every completed online load: when what it wrote was readable.
loads = Table(
    "loads",
    metadata,
    Column("run", BigInteger, primary_key=True, autoincrement=False),
    Column("version_id", Integer, nullable=False, index=True),
    Column("table_version", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),  # the watermark at which it evaluated the table
    Column("readable_at", BigInteger, nullable=False),
    Column("is_rewrite", Boolean, nullable=False),  # whether rows that an earlier load could have shown came, went or changed
    Column("rows", BigInteger, nullable=False),  # rows that are new since the load before, and visible since the version exists
    Column("ages", Text, nullable=False),  # JSON: how old these were, the quantiles of `arrivals.py`; [] without rows
    Column("late", BigInteger, nullable=False),  # rows that the run found to have come too late for the table
    Column("source", Text),  # what the run found the source's files to be; null for a run that read none
)
