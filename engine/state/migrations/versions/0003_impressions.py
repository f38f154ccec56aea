"""What was answered, and which answer an event followed."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BYTE_ORDER = sa.String().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Create `impressions`; add `events.request_id`."""
    op.create_table(
        "impressions",
        sa.Column("request_id", BYTE_ORDER, primary_key=True),
        sa.Column("user_id", BYTE_ORDER),
        sa.Column("release_id", sa.String, nullable=False),
        sa.Column("mode", sa.String, nullable=False),
        sa.Column("asked_s", sa.BigInteger, nullable=False),
        sa.Column("items", sa.JSON, nullable=False),
    )
    op.create_index("impressions_of_user", "impressions", ["user_id"])
    op.create_index("impressions_by_time", "impressions", ["asked_s"])
    op.add_column("events", sa.Column("request_id", BYTE_ORDER))


def downgrade() -> None:
    """Drop both."""
    op.drop_column("events", "request_id")
    op.drop_table("impressions")
