"""The event log and the index that reads a user's newest events."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BYTE_ORDER = sa.String().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Create `events`."""
    op.create_table(
        "events",
        sa.Column("event_id", BYTE_ORDER, primary_key=True),
        sa.Column("user_id", BYTE_ORDER, nullable=False),
        sa.Column("item_id", BYTE_ORDER, nullable=False),
        sa.Column("timestamp_s", sa.BigInteger, nullable=False),
        sa.Column("rating", sa.Float(53)),
        sa.Column("label", sa.SmallInteger, nullable=False),
        sa.Column("received_s", sa.BigInteger, nullable=False),
    )
    op.create_index(
        "events_of_user", "events", ["user_id", "timestamp_s", "item_id", "event_id"]
    )


def downgrade() -> None:
    """Drop `events`."""
    op.drop_table("events")
