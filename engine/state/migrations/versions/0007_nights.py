"""Leases, the ledger of nights, and events by the time of their receipt."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

REFUSAL = "nights is append-only"
SQLITE = [
    f"CREATE TRIGGER nights_no_{verb} BEFORE {verb} ON nights "
    f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
    for verb in ("UPDATE", "DELETE")
]
POSTGRESQL = [
    "CREATE FUNCTION refuse_change_of_nights() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$",
    "CREATE TRIGGER nights_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON nights "
    "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_nights()",
]


def upgrade() -> None:
    """Create `leases` and `nights`, which refuses changes; index `events.received_s`."""
    op.create_table(
        "leases",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("token", sa.String, nullable=False),
        sa.Column("ttl_s", sa.Float(53), nullable=False),
        sa.Column("until_s", sa.Float(53), nullable=False),
    )
    op.create_table(
        "nights",
        sa.Column("night_id", sa.Integer, primary_key=True),
        sa.Column("opened_id", sa.Integer),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("at_s", sa.BigInteger, nullable=False),
        sa.Column("parent_id", sa.String, nullable=False),
        sa.Column("release_id", sa.String),
        sa.Column("since_s", sa.BigInteger),
        sa.Column("until_s", sa.BigInteger),
        sa.Column("reasons", sa.JSON, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    for statement in SQLITE if _is_sqlite() else POSTGRESQL:
        op.execute(statement)
    op.create_index("events_by_receipt", "events", ["received_s"])


def downgrade() -> None:
    """Drop all of them."""
    op.drop_index("events_by_receipt", "events")
    op.drop_table("nights")
    if not _is_sqlite():
        op.execute("DROP FUNCTION refuse_change_of_nights()")
    op.drop_table("leases")


def _is_sqlite() -> bool:
    return bool(op.get_bind().dialect.name == "sqlite")
