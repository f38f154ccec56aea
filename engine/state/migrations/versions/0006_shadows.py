"""Answers that were made beside those given."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BYTE_ORDER = sa.String().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Add `impressions.shadow_of`."""
    op.add_column("impressions", sa.Column("shadow_of", BYTE_ORDER))


def downgrade() -> None:
    """Drop it, and the answers that nobody saw."""
    op.execute("DELETE FROM impressions WHERE shadow_of IS NOT NULL")
    op.drop_column("impressions", "shadow_of")
