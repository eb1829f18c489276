"""TODO."""

from __future__ import annotations

from typing import Any

from flask_security import current_user

from i18n import mark

#: Every permission, in words.
PERMISSIONS = {
    "view": mark("see all pages but users and audit"),
    "retry": mark("send dead letters again"),
    "discard": mark("close dead letters unsent"),
    "edit": mark("edit records"),
    "replay": mark("apply received webhooks again"),
    "export": mark("download lists"),
    "settle": mark("settle conflicts"),
    "pause": mark("pause and resume systems"),
    "poll": mark("have a system polled now, test its connection"),
    "schedules": mark("run, pause and resume schedules"),
    "tasks": mark("begin, stop and resume long work"),
    "unsubscribe": mark("create and lift unsubscriptions"),
    "mappings": mark("change mappings"),
    "users": mark("manage users"),
    "audit": mark("read the audit trail"),
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
