"""Template filters and globals: labels, times, numbers and the menu."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from flask import Flask, request, url_for
from flask_admin import Admin
from flask_admin.menu import MenuCategory
from markupsafe import Markup

from i18n import ENGLISH, current_locale, gettext, gettext_noop
from models.base import utcnow
from models.counting import DISPLAY_LIMIT
from panel.auth.permissions import allowed
from redaction import hide

#: State, as the ledger and the code name it -> its label, and the colour of its badge.
_STATES = {
    "active": (gettext_noop("active"), "good"),
    "applied": (gettext_noop("applied"), "good"),
    "delivered": (gettext_noop("delivered"), "good"),
    "done": (gettext_noop("done"), "good"),
    "enabled": (gettext_noop("enabled"), "good"),
    "not held back": (gettext_noop("not held back"), "good"),
    "ok": (gettext_noop("ok"), "good"),
    "on": (gettext_noop("on"), "good"),
    "running": (gettext_noop("running"), "good"),
    "up to date": (gettext_noop("up to date"), "good"),
    "verified": (gettext_noop("verified"), "good"),
    "failed": (gettext_noop("failed"), "busy"),
    "held back": (gettext_noop("held back"), "busy"),
    "late": (gettext_noop("late"), "busy"),
    "owed": (gettext_noop("pending"), "busy"),
    "paused": (gettext_noop("paused"), "busy"),
    "stopping": (gettext_noop("stopping"), "busy"),
    "retrying": (gettext_noop("retrying"), "busy"),
    "pending": (gettext_noop("pending"), "busy"),
    "sending": (gettext_noop("sending"), "busy"),
    "waiting": (gettext_noop("waiting"), "busy"),
    "conflict": (gettext_noop("conflict"), "bad"),
    "dead": (gettext_noop("dead letter"), "bad"),
    "dead letter": (gettext_noop("dead letter"), "bad"),
    "down": (gettext_noop("down"), "bad"),
    "failing": (gettext_noop("failing"), "bad"),
    "no worker": (gettext_noop("no worker"), "bad"),
    "not responding": (gettext_noop("not responding"), "bad"),
    "wrong": (gettext_noop("problem"), "bad"),
    "closed": (gettext_noop("closed"), "quiet"),
    "disabled": (gettext_noop("disabled"), "quiet"),
    "echo": (gettext_noop("echo"), "quiet"),
    "expired": (gettext_noop("expired"), "quiet"),
    "unlinked": (gettext_noop("unlinked"), "quiet"),
    "kept": (gettext_noop("internal kept"), "quiet"),
    "never sent": (gettext_noop("never sent"), "quiet"),
    "not configured": (gettext_noop("not configured"), "quiet"),
    "not run yet": (gettext_noop("not run yet"), "quiet"),
    "note": (gettext_noop("note"), "quiet"),
    "nothing owed": (gettext_noop("nothing pending"), "quiet"),
    "off": (gettext_noop("off"), "quiet"),
    "this session": (gettext_noop("this session"), "good"),
    "skipped": (gettext_noop("skipped"), "quiet"),
    "stopped": (gettext_noop("stopped"), "quiet"),
    "unchanged": (gettext_noop("unchanged"), "quiet"),
}

#: Other words that the ledger stores or a filter offers -> their label.
_WORDS = {
    "any": gettext_noop("any"),
    "open": gettext_noop("open"),
    "resolved": gettext_noop("resolved"),
    "in": gettext_noop("inward"),
    "out": gettext_noop("outward"),
    "archive": gettext_noop("archive"),
    "create": gettext_noop("create"),
    "delete": gettext_noop("delete"),
    "match": gettext_noop("match"),
    "merge": gettext_noop("merge"),
    "unlink": gettext_noop("unlink"),
    "update": gettext_noop("update"),
    "created": gettext_noop("created"),
    "deleted": gettext_noop("deleted"),
    "updated": gettext_noop("updated"),
}

#: Where an error is fixed, as its remedy names it -> the label.
_PLACES = {
    "record": gettext_noop("fix the record"),
    "mapping": gettext_noop("fix the mapping"),
    "system": gettext_noop("fix the system"),
    "code": gettext_noop("fix the code"),
}

#: (seconds, the text for one of the unit, the text for several)
_INTERVALS = (
    (86_400, gettext_noop("every day"), gettext_noop("every {n} days")),
    (3600, gettext_noop("every hour"), gettext_noop("every {n} h")),
    (60, gettext_noop("every minute"), gettext_noop("every {n} min")),
)

#: Parts of a User-Agent header and what they stand for: browsers, then operating systems. Headers also contain names
#: that come later here.
_USER_AGENTS = (
    (("Firefox/", "Firefox"), ("Edg", "Edge"), ("OPR/", "Opera"), ("Chrome/", "Chrome"), ("Safari/", "Safari")),
    (("Windows", "Windows"), ("Android", "Android"), ("iPhone", "iPhone"), ("iPad", "iPad"), ("Mac OS", "macOS"),
     ("Linux", "Linux")),
)  # fmt: skip

#: Texts of the scripts in static/: the page carries their translations.
IN_SCRIPTS = (
    gettext_noop("{time} ago"),
    gettext_noop("in {time}"),
    gettext_noop("Copy"),
    gettext_noop("Copy {text}"),
    gettext_noop("Live"),
    gettext_noop("Not live"),
    gettext_noop("Logged out: reload the page"),
    gettext_noop("No response, retrying"),
    gettext_noop("time"),
    gettext_noop("delivered"),
    gettext_noop("received"),
    gettext_noop("failed"),
    gettext_noop("dead"),
)


def init(app: Flask, admin: Admin) -> None:
    """Register the filters and globals of all templates."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    for template_filter in (
        ago, as_text, browser, clock, duration, elapsed, every, label, lower_first, number, pretty, remedy_label, tone,
        when,
    ):  # fmt: skip
        app.jinja_env.filters[template_filter.__name__] = template_filter
    app.jinja_env.globals.update(texts_in_scripts=texts_in_scripts)
    app.jinja_env.globals.update(allowed=allowed, asset=_assets(app), updating=updating)
    app.context_processor(lambda: {"menu": lambda: _menu(admin)})


def updating() -> bool:
    """Return whether a live page requests its new content."""
    return request.headers.get("HX-Request") == "true"


def lower_first(words: str) -> str:
    """Return a heading for use inside a sentence: English lowers its first letter, other languages keep it."""
    return words[:1].lower() + words[1:] if current_locale() is ENGLISH else words


def texts_in_scripts() -> dict[str, str]:
    """Return the translations of the scripts' texts by the English text; empty in English."""
    return {} if current_locale() is ENGLISH else {text: gettext(text) for text in IN_SCRIPTS}


def tone(state: str) -> str:
    """Return the colour of a state's badge: good, busy, bad or quiet."""
    return _STATES[state][1] if state in _STATES else "quiet"


def label(word: Any) -> str:
    """Return the translated label of a state, an operation or another stored word."""
    key = str(word)
    return gettext(_STATES[key][0] if key in _STATES else _WORDS.get(key, key))


def remedy_label(place: str) -> str:
    """Return the label that says where an error is fixed."""
    return gettext(_PLACES[place])


def number(value: int) -> str:
    """Format a count: 12,345, or 10,000+ where counting stopped at the limit."""
    return f"{value:,}+" if value == DISPLAY_LIMIT else f"{value:,}"


def every(seconds: int) -> str:
    """Format an interval: every day, every 5 min, every 30 s."""
    for size, one, many in _INTERVALS:
        if seconds >= size and seconds % size == 0:
            count = seconds // size
            return gettext(one) if count == 1 else gettext(many, n=count)
    return gettext("every {n} s", n=seconds)


def when(value: datetime | None) -> Markup:
    """Format a time: in UTC without JavaScript, in the reader's time zone with it; UTC on hover."""
    if value is None:
        return Markup('<span class="none">{0}</span>').format(gettext("never"))
    text = f"{value:%Y-%m-%d %H:%M:%S}"
    return Markup('<time datetime="{0}" title="{1} UTC">{1} UTC</time>').format(value.isoformat(), text)


def clock(value: datetime) -> Markup:
    """Format a time for a sentence: with the date unless it is today; UTC on hover."""
    text = f"{value:%H:%M}" if value.date() == utcnow().date() else f"{value:%-d %b %H:%M}"
    return _time(value, text, "").replace("data-ago", "data-clock")


def ago(value: datetime | None) -> Markup:
    """Format the time since an instant, or until it, in the largest unit that fits; UTC on hover."""
    if value is None:
        return Markup('<span class="none">{0}</span>').format(gettext("never"))
    seconds = (utcnow() - value).total_seconds()
    time = duration(abs(seconds))
    words = gettext("{time} ago", time=time) if seconds >= 0 else gettext("in {time}", time=time)
    return _time(value, words, "")


def elapsed(value: datetime | None) -> Markup:
    """Format the duration since an instant: 3 min."""
    return (
        _time(value, duration(abs((utcnow() - value).total_seconds())), "bare")
        if value
        else Markup("{0}").format(gettext("a moment"))
    )


def _time(value: datetime, words: str, kind: str) -> Markup:
    return Markup('<time datetime="{0}" data-ago="{3}" title="{1} UTC">{2}</time>').format(
        value.isoformat(), f"{value:%Y-%m-%d %H:%M:%S}", words, kind
    )


def duration(seconds: float) -> str:
    """Format a duration: 90 -> 1 min, 7200 -> 2 h."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def browser(user_agent: str | None) -> str:
    """Name the browser and the operating system of a User-Agent header: Firefox, Linux."""
    found = [next((name for part, name in names if part in (user_agent or "")), "") for names in _USER_AGENTS]
    return ", ".join(filter(None, found)) or gettext("unknown browser")


def pretty(value: Any) -> str:
    """Indent JSON; return any other text unchanged, but for secrets."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return hide(str(value))
    return hide(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def as_text(value: Any) -> str:
    """Format one value of a record or payload."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool | dict | list):
        return pretty(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    return hide(str(value))


def _assets(app: Flask) -> Any:
    folder = Path(str(app.static_folder))
    files = (file for file in folder.rglob("*") if file.is_file())
    versions = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()[:10] for file in files
    }
    return lambda name: url_for("static", filename=name, v=versions[name])


def _menu(admin: Admin) -> list[dict[str, Any]]:
    """Return the menu groups with the pages that the user may see."""
    groups: list[dict[str, Any]] = [{"name": "", "pages": []}]
    for item in admin.menu():
        if isinstance(item, MenuCategory):
            pages = [_page(child) for child in item.get_children()]
            if pages:
                groups.append({"name": gettext(item.name), "pages": pages})
        elif item.is_visible() and item.is_accessible():
            groups[0]["pages"].append(_page(item))
    return groups


def _page(item: Any) -> dict[str, Any]:
    url = item.get_url()
    here = request.path == url if url == "/" else request.path.startswith(url)
    return {
        "name": gettext(item.name),
        "url": url,
        "icon": item.get_icon_value(),
        "here": here,
        "key": item._view.key,
    }
