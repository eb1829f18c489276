"""A poll that takes longer than its interval is the only one of its subscriber."""

import sqlalchemy as sa
from alembic import op

from models.base import UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("cursor", sa.Column("poller", sa.String(64)))
    op.add_column("cursor", sa.Column("polling_until", UtcDateTime()))


def downgrade() -> None:
    with op.batch_alter_table("cursor") as table:
        table.drop_column("polling_until")
        table.drop_column("poller")
