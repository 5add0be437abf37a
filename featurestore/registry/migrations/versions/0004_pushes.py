"""Push sources have a log: who pushes next, pushes whose rows are in no file yet, and the files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Add what schema 4 has."""
    op.create_table(
        "push_sources",
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("sealed", sa.BigInteger, nullable=False),
        sa.Column("last_push", sa.BigInteger),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("folded", sa.BigInteger),
    )
    op.create_table(
        "pushes",
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("arrival", sa.BigInteger, primary_key=True),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("digest", sa.Text),
        sa.Column("payload", sa.LargeBinary),
        sa.UniqueConstraint("source", "idempotency_key"),
    )
    op.create_table(
        "push_files",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, nullable=False, index=True),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
    )
    op.execute("UPDATE meta SET schema_version = 4")
