"""Completed online loads are recorded, each with the moment from which its rows were readable; versions know what theirs evaluated.

Of loads before this step only the last of each version is known, and not when it was readable.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"


def upgrade() -> None:
    """Add what schema 5 has."""
    op.add_column("versions", sa.Column("loaded_until", sa.BigInteger))
    # A load that read the newest table evaluated it at the watermark; an older one no later than its run's end.
    op.execute("""
        UPDATE versions SET loaded_until = CASE WHEN loaded_table_version = table_version THEN coverage_end
            ELSE (SELECT interval_end FROM runs WHERE runs.id = versions.loaded_run) END
        WHERE loaded_run IS NOT NULL
    """)
    op.create_table(
        "loads",
        sa.Column("run", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("version_id", sa.Integer, nullable=False, index=True),
        sa.Column("table_version", sa.BigInteger, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.Column("readable_at", sa.BigInteger, nullable=False),
        sa.Column("is_rewrite", sa.Boolean, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("ages", sa.Text, nullable=False),
        sa.Column("late", sa.BigInteger, nullable=False),
        sa.Column("source", sa.Text),
    )
    op.execute("UPDATE meta SET schema_version = 5")
