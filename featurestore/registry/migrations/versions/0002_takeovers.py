"""Takeovers are recorded, so that they can be taken back; versions say when they were replaced or dropped; erasures have tables.

Of takeovers before this step nothing is known, so there is no way back from them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Add what schema 2 has."""
    op.add_column("versions", sa.Column("retired_at", sa.BigInteger))
    op.create_table(
        "takeovers",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("takeover", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
        sa.Column("version_before", sa.Integer),
        sa.Column("version_after", sa.Integer),
    )
    op.add_column("meta", sa.Column("erasure_secret", sa.Text))
    op.create_table(
        "tombstones",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("columns", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("erased_at", sa.BigInteger, nullable=False),
        sa.Column("lifted_at", sa.BigInteger),
    )
    op.create_table(
        "erasures",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("entity", sa.Text, nullable=False),
        sa.Column("erased_at", sa.BigInteger, nullable=False),
        sa.Column("erased_by", sa.Text, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
    )
    op.execute("UPDATE meta SET schema_version = 2")
