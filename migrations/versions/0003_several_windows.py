"""What writes put back beside their own fields is kept of several writes of a link, not of the last one only."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("UPDATE link SET alongside = jsonb_build_array(alongside) WHERE alongside IS NOT NULL")
    else:
        op.execute("UPDATE link SET alongside = '[' || alongside || ']' WHERE alongside IS NOT NULL")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("UPDATE link SET alongside = alongside -> -1 WHERE alongside IS NOT NULL")
    else:
        last = "json_extract(alongside, '$[#-1]')"
        op.execute(f"UPDATE link SET alongside = {last} WHERE alongside IS NOT NULL")
