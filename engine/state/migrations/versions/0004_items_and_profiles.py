"""Items and profiles that were sent to the service."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BYTE_ORDER = sa.String().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Create `items` and `profiles`."""
    op.create_table(
        "items",
        sa.Column("item_id", BYTE_ORDER, primary_key=True),
        sa.Column("title", sa.String),
        sa.Column("fields", sa.JSON, nullable=False),
        sa.Column("is_withdrawn", sa.Boolean, nullable=False),
        sa.Column("first_revision", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("encoder", sa.String, nullable=False),
        sa.Column("vector", sa.LargeBinary),
    )
    op.create_index("items_by_revision", "items", ["revision"])
    op.create_index("items_by_encoder", "items", ["encoder"])
    op.create_table(
        "profiles",
        sa.Column("user_id", BYTE_ORDER, primary_key=True),
        sa.Column("fields", sa.JSON, nullable=False),
    )


def downgrade() -> None:
    """Drop both."""
    op.drop_table("profiles")
    op.drop_table("items")
