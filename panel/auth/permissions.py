"""The permissions, and which role has which."""

from __future__ import annotations

from typing import Any

from flask_security import current_user

from i18n import gettext_noop

#: Permission -> what it allows.
PERMISSIONS = {
    "view": gettext_noop("view all pages except users and audit"),
    "retry": gettext_noop("retry dead letters"),
    "discard": gettext_noop("discard dead letters and events"),
    "edit": gettext_noop("edit records"),
    "replay": gettext_noop("replay received webhooks"),
    "bodies": gettext_noop("see the bodies of webhooks as they were received"),
    "export": gettext_noop("export lists as CSV"),
    "resolve": gettext_noop("resolve conflicts"),
    "pause": gettext_noop("pause and resume systems"),
    "poll": gettext_noop("poll a system now and test its connection"),
    "schedules": gettext_noop("run, pause and resume schedules"),
    "tasks": gettext_noop("start, stop and resume tasks"),
    "unsubscribe": gettext_noop("create and lift unsubscriptions"),
    "mappings": gettext_noop("change mappings"),
    "users": gettext_noop("manage users"),
    "audit": gettext_noop("read the audit trail"),
}

_OPERATOR = frozenset(PERMISSIONS) - {"bodies", "mappings", "users", "audit"}

#: Role -> its permissions.
ROLES: dict[str, frozenset[str]] = {
    "viewer": frozenset({"view"}),
    "operator": _OPERATOR,
    "admin": frozenset(PERMISSIONS),
}


def allowed(permission: str) -> bool:
    """Return whether the current user has the permission."""
    return permission in permissions_of(current_user)


def permissions_of(user: Any) -> frozenset[str]:
    """Return the permissions of all roles of a user; none without a login."""
    if not user.is_authenticated:
        return frozenset()
    return frozenset().union(*(ROLES.get(role.name, frozenset()) for role in user.roles))
