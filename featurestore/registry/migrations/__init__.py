"""From one schema of the registry to the next: `versions/` has a step for each number, which Alembic takes in order."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from featurestore.registry.schema import alembic

__all__ = ["upgrade"]


def upgrade(connection: sa.Connection) -> None:
    """Bring the database of a connection to this release's schema, inside the transaction that is open."""
    # Only a database that is behind needs Alembic, so opening one that is not stays quick.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent))
    if not sa.inspect(connection).has_table(alembic.name):
        command.stamp(config, "1")  # the first release kept only its own number
    command.upgrade(config, "head")
