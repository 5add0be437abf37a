"""The schema of the first release, which made it without Alembic."""

from __future__ import annotations

revision = "1"
down_revision = None


def upgrade() -> None:
    """Do nothing: databases of this schema are there, and new ones begin with the newest."""
