"""Vectors of sent items in a table of their own, one for each encoder."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BYTE_ORDER = sa.String().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Create `item_vectors`; texts are read again."""
    op.create_table(
        "item_vectors",
        sa.Column("item_id", BYTE_ORDER, primary_key=True),
        sa.Column("encoder", sa.String, primary_key=True),
        sa.Column("text_revision", sa.BigInteger, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.drop_index("items_by_encoder", "items")
    with op.batch_alter_table("items") as items:
        items.add_column(
            sa.Column("text_revision", sa.BigInteger, nullable=False, server_default="0")
        )
        items.drop_column("encoder")
        items.drop_column("vector")
    op.execute("UPDATE items SET text_revision = revision")


def downgrade() -> None:
    """Put the vectors' columns back, empty."""
    with op.batch_alter_table("items") as items:
        items.add_column(sa.Column("encoder", sa.String, nullable=False, server_default=""))
        items.add_column(sa.Column("vector", sa.LargeBinary))
        items.drop_column("text_revision")
    op.create_index("items_by_encoder", "items", ["encoder"])
    op.drop_table("item_vectors")
