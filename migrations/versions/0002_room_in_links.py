"""Room in the pages of links, so that most of their changes stay in their page and touch no index.

PostgreSQL only ("Heap-Only Tuples"): a link is changed three times by each delivery.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE link SET (fillfactor = 70)")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE link RESET (fillfactor)")
