"""What Alembic runs around the steps: they go into the transaction of the connection that it is given."""

from __future__ import annotations

from alembic import context

from featurestore.registry.schema import alembic

context.configure(connection=context.config.attributes["connection"], version_table=alembic.name)
context.run_migrations()
