"""Writes are counted, so that who reads the registry again and again need not read all of it."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision = "5"


def upgrade() -> None:
    """Add what schema 6 has."""
    op.add_column("meta", sa.Column("writes", sa.BigInteger, nullable=False, server_default="0"))
    op.execute(f"UPDATE meta SET schema_version = 6, writes = {secrets.randbits(48)}")  # as in a new one
