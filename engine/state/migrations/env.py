"""Runs the migrations on the connection that engine.state.database opened."""

from alembic import context

from engine.state.database import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
