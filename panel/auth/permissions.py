"""The permissions, and which role has which."""

from __future__ import annotations

from typing import Any

from flask_security import current_user

from i18n import gettext_noop

#: Every permission, in words.
PERMISSIONS = {
    "view": gettext_noop("see all pages but users and audit"),
    "retry": gettext_noop("send dead letters again"),
    "discard": gettext_noop("close dead letters unsent"),
    "edit": gettext_noop("edit records"),
    "replay": gettext_noop("apply received webhooks again"),
    "export": gettext_noop("download lists"),
    "settle": gettext_noop("settle conflicts"),
    "pause": gettext_noop("pause and resume systems"),
    "poll": gettext_noop("have a system polled now, test its connection"),
    "schedules": gettext_noop("run, pause and resume schedules"),
    "tasks": gettext_noop("begin, stop and resume long work"),
    "unsubscribe": gettext_noop("create and lift unsubscriptions"),
    "mappings": gettext_noop("change mappings"),
    "users": gettext_noop("manage users"),
    "audit": gettext_noop("read the audit trail"),
}

_OPERATOR = frozenset(PERMISSIONS) - {"mappings", "users", "audit"}

#: The one table that answers "who may do what".
ROLES: dict[str, frozenset[str]] = {
    "viewer": frozenset({"view"}),
    "operator": _OPERATOR,
    "admin": frozenset(PERMISSIONS),
}


def allowed(permission: str) -> bool:
    """Whether the person of this request may do that."""
    return permission in permissions_of(current_user)


def permissions_of(user: Any) -> frozenset[str]:
    """What a person's roles add up to; nothing for a stranger."""
    if not user.is_authenticated:
        return frozenset()
    return frozenset().union(*(ROLES.get(role.name, frozenset()) for role in user.roles))
