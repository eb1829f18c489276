"""The base class of all pages, and helpers for their requests and redirects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

from flask import abort, current_app, flash, make_response, redirect, request
from flask_admin import BaseView, expose
from flask_security import current_user
from werkzeug import Response

from conductor import Conductor, Overview
from i18n import current_locale
from panel.auth.permissions import allowed, permissions_of
from panel.overview_cache import OverviewCache
from panel.rendering.filters import updating
from redaction import hide

#: The largest 64 bit id.
LARGEST_ID = 2**63 - 1

#: The largest 32 bit id, of tables that stay small.
LARGEST_SMALL_ID = 2**31 - 1

F = TypeVar("F", bound=Callable[..., Any])


def page(url: str, needs: str = "view", methods: Iterable[str] = ("GET",)) -> Callable[[F], F]:
    """Expose a method under a URL to users with the permission `needs`."""

    def wrap(method: F) -> F:
        method.needs = needs  # type: ignore[attr-defined]
        exposed: F = expose(url, methods=methods)(method)
        return exposed

    return wrap


def action(url: str, needs: str) -> Callable[[F], F]:
    """Expose a method that changes something: POST only."""
    return page(url, needs, methods=("POST",))


class PanelView(BaseView):  # type: ignore[misc]
    """A page or a family of pages. A method without `page` or `action` cannot be reached."""

    title: ClassVar[str]
    path: ClassVar[str]
    icon: ClassVar[str] = ""
    group: ClassVar[str | None] = None
    #: The permission that shows the page in the menu.
    needs: ClassVar[str] = "view"
    in_menu: ClassVar[bool] = True
    #: The key that opens the page after g.
    key: ClassVar[str | None] = None

    def __init__(self) -> None:
        endpoint = self.path.strip("/").replace("-", "_") or "overview"
        super().__init__(
            name=self.title, category=self.group, endpoint=endpoint, url=self.path, menu_icon_value=self.icon
        )

    @property
    def conductor(self) -> Conductor:
        """Return the conductor of this app."""
        conductor: Conductor = current_app.extensions["syncflow"]
        return conductor

    def current_overview(self) -> tuple[str, Overview]:
        """Return the version and the overview; for an update of a live page they may be cached."""
        overview_cache: OverviewCache = current_app.extensions["syncflow_overview"]
        return overview_cache.get(fresh=not updating())

    @property
    def current_email(self) -> str:
        """Return the current user's email, for the audit trail."""
        return str(current_user.email)

    def render(self, template: str, **kwargs: Any) -> str:
        """Render a template of this view."""
        return str(super().render(template, **kwargs))

    def live(self, template: str, version: object, values: Callable[[], dict[str, Any]]) -> Response:
        """Render a page that updates itself. While `version` is the same, an update is answered with 304.

        `version` must differ (by its repr) whenever the template values that `values` returns differ.
        """
        seen = (
            version,
            self.current_email,
            current_locale().tag,
            sorted(permissions_of(current_user)),
            request.full_path,
        )
        tag = hashlib.sha256(repr(seen).encode()).hexdigest()[:32]
        if updating() and request.if_none_match.contains(tag):
            answer = Response(status=304)
        else:
            answer = make_response(self.render(template, live=f'"{tag}"', **values()))
        answer.set_etag(tag)
        return answer

    def is_accessible(self) -> bool:
        return allowed(self.needs)

    def is_visible(self) -> bool:
        return self.in_menu

    def _handle_view(self, name: str, **kwargs: Any) -> None:
        # Flask-Admin calls this before every method: nothing runs without its own permission.
        needs = getattr(getattr(type(self), name), "needs", None)
        if needs is None or not allowed(needs):
            abort(403)

    def _run_view(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # The original calls the view a second time, with other arguments, after any TypeError inside it.
        return fn(self, *args, **kwargs)


def parse_id(text: str, largest: int = LARGEST_ID) -> int | None:
    """Parse an id or version; return None if it is not a number or exceeds the column."""
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST_ID))
    return number if is_number and (number := int(text)) <= largest else None


def cursor_from_query(largest: int = LARGEST_ID) -> int | None:
    """Return the id before which this page of a history starts, from `?before=`."""
    return parse_id(request.args.get("before", ""), largest) or None


def query_filters(*names: str) -> dict[str, str]:
    """Return the filters set in the URL, without the empty ones."""
    return {name: value for name in names if (value := request.args.get(name, "").strip())}


def form_field(name: str) -> str:
    """Return a form field without surrounding whitespace."""
    return request.form.get(name, "").strip()


def redirect_success(text: str, to: str) -> Response:
    """Flash a success message and redirect to the page of the form, or to `to`."""
    flash(hide(text), "success")
    return redirect(_origin() or to, code=303)


def redirect_error(text: str, to: str) -> Response:
    """Flash an error message and redirect to the page of the form, or to `to`."""
    flash(hide(text), "error")
    return redirect(_origin() or to, code=303)


def _origin() -> str | None:
    # Only a path of the panel: a full URL would make this an open redirect.
    back = request.form.get("back", "")
    if not back.isprintable():
        return None
    return back if back.startswith("/") and not back.startswith(("//", "/\\")) else None
