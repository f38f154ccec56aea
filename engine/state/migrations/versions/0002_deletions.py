"""When users were deleted."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BYTE_ORDER = sa.String().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Create `deletions`."""
    op.create_table(
        "deletions",
        sa.Column("user_id", BYTE_ORDER, primary_key=True),
        sa.Column("deleted_s", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    """Drop `deletions`."""
    op.drop_table("deletions")
