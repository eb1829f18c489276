"""What templates may call: words for states, times, the menu."""

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

#: The colour a word of state is shown in: good, busy, bad or quiet.
TONES = {
    gettext_noop("ok"): "good", gettext_noop("delivered"): "good", gettext_noop("applied"): "good", gettext_noop("up to date"): "good",
    gettext_noop("done"): "good", gettext_noop("in force"): "good", gettext_noop("on"): "good", gettext_noop("flows"): "good",
    gettext_noop("verified"): "good", gettext_noop("running"): "good",
    gettext_noop("held back"): "busy", gettext_noop("waiting"): "busy", gettext_noop("owed"): "busy", gettext_noop("failed"): "busy",
    gettext_noop("paused"): "busy", gettext_noop("trying again"): "busy", gettext_noop("stopping"): "busy", gettext_noop("late"): "busy",
    gettext_noop("silent"): "bad", gettext_noop("nobody reads it"): "bad", gettext_noop("wrong"): "bad", gettext_noop("failing"): "bad",
    gettext_noop("down"): "bad", gettext_noop("dead"): "bad", gettext_noop("dead letter"): "bad", gettext_noop("conflict"): "bad",
}  # fmt: skip

#: Other words that stand in the database or the code, and are said by a template: of state, and what happened.
_SAID = (
    gettext_noop("off"), gettext_noop("over"), gettext_noop("disabled"), gettext_noop("may log in"), gettext_noop("skipped"), gettext_noop("gone"),
    gettext_noop("never sent"), gettext_noop("unchanged"), gettext_noop("kept"), gettext_noop("echo"), gettext_noop("stopped"),
    gettext_noop("not configured"), gettext_noop("not run yet"), gettext_noop("note"), gettext_noop("settled"), gettext_noop("closed"), gettext_noop("open"),
    gettext_noop("any"), gettext_noop("create"), gettext_noop("update"), gettext_noop("delete"), gettext_noop("archive"), gettext_noop("match"), gettext_noop("unlink"),
    gettext_noop("created"), gettext_noop("updated"), gettext_noop("deleted"), gettext_noop("in"), gettext_noop("out"),
    gettext_noop("ours"), gettext_noop("theirs"), gettext_noop("agreed"), gettext_noop("gone"), gettext_noop("Ours"), gettext_noop("Theirs"),
    gettext_noop("fix the record"), gettext_noop("fix the mapping"), gettext_noop("fix the system"), gettext_noop("fix the code"),
)  # fmt: skip

#: Pages of the menu -> the key that leads there, after g.
KEYS = {
    "Overview": "o", "Dead letters": "d", "Conflicts": "c", "Systems": "s", "Mappings": "m", "Unsubscriptions": "u",
    "Schedules": "j", "Queues": "q", "Tasks": "t", "Links": "l", "Deliveries": "v", "Changes": "h", "Inbox": "i",
    "Audit": "a",
}  # fmt: skip


#: (seconds, once in that time, once in several of them)
_PACES = (
    (86_400, gettext_noop("every day"), gettext_noop("every {n} days")),
    (3600, gettext_noop("every hour"), gettext_noop("every {n} h")),
    (60, gettext_noop("every minute"), gettext_noop("every {n} min")),
)

#: What the scripts in static/ say: they look it up in the page, by the English.
IN_SCRIPTS = (
    gettext_noop("{time} ago"), gettext_noop("in {time}"), gettext_noop("Copy"), gettext_noop("Copy {text}"), gettext_noop("Live"), gettext_noop("Not live"),
    gettext_noop("Logged out: reload the page"), gettext_noop("No answer, trying again"),
    gettext_noop("time"), gettext_noop("delivered"), gettext_noop("received"), gettext_noop("failed"), gettext_noop("dead"),
)  # fmt: skip


def init(app: Flask, admin: Admin) -> None:
    """Make the words known to all templates."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(
        when=when, every=every, ago=ago, elapsed=elapsed, tone=tone, pretty=pretty, as_text=as_text, number=number
    )
    app.jinja_env.filters["clock"] = clock
    app.jinja_env.filters["lower_first"] = lower_first
    app.jinja_env.globals.update(texts_in_scripts=texts_in_scripts)
    app.jinja_env.globals.update(allowed=allowed, asset=_assets(app), updating=updating)
    app.context_processor(lambda: {"menu": lambda: _menu(admin)})


def updating() -> bool:
    """Whether a live page asks for its content anew."""
    return request.headers.get("HX-Request") == "true"


def lower_first(words: str) -> str:
    """A heading as it stands within a sentence: in English it begins small, elsewhere as its language has it."""
    return words[:1].lower() + words[1:] if current_locale() is ENGLISH else words


def texts_in_scripts() -> dict[str, str]:
    """What the scripts say in the language chosen, by the English; nothing in English."""
    return {} if current_locale() is ENGLISH else {text: gettext(text) for text in IN_SCRIPTS}


def tone(word: str) -> str:
    """The colour of a word of state."""
    return TONES.get(word, "quiet")


def number(value: int) -> str:
    """12,345; where the conductor stopped counting, 10,000+."""
    return f"{value:,}+" if value == DISPLAY_LIMIT else f"{value:,}"


def every(seconds: int) -> str:
    """How often, in words: every day, every 5 min, every 30 s."""
    for size, one, many in _PACES:
        if seconds >= size and seconds % size == 0:
            count = seconds // size
            return gettext(one) if count == 1 else gettext(many, n=count)
    return gettext("every {n} s", n=seconds)


def when(value: datetime | None) -> Markup:
    """A time: UTC without JavaScript, the reader's own zone with it, always with UTC on hover."""
    if value is None:
        return Markup('<span class="none">{0}</span>').format(gettext("never"))
    text = f"{value:%Y-%m-%d %H:%M:%S}"
    return Markup('<time datetime="{0}" title="{1} UTC">{1} UTC</time>').format(value.isoformat(), text)


def clock(value: datetime) -> Markup:
    """A time in a sentence: of today only the hour, of other days the date as well; UTC on hover."""
    text = f"{value:%H:%M}" if value.date() == utcnow().date() else f"{value:%-d %b %H:%M}"
    return _time(value, text, "").replace("data-ago", "data-clock")


def ago(value: datetime | None) -> Markup:
    """How long ago, in the largest unit that fits, with the exact time on hover."""
    if value is None:
        return Markup('<span class="none">{0}</span>').format(gettext("never"))
    seconds = (utcnow() - value).total_seconds()
    time = duration(abs(seconds))
    words = gettext("{time} ago", time=time) if seconds >= 0 else gettext("in {time}", time=time)
    return _time(value, words, "")


def elapsed(value: datetime | None) -> Markup:
    """For how long by now: 3 min."""
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
    """90 -> 1 min, 7200 -> 2 h."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def pretty(value: Any) -> str:
    """JSON laid out for reading; text that is no JSON as it is."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return str(value)
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def as_text(value: Any) -> str:
    """One value for reading."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool | dict | list):
        return pretty(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    return str(value)


def _assets(app: Flask) -> Any:
    folder = Path(str(app.static_folder))
    files = (file for file in folder.rglob("*") if file.is_file())
    versions = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()[:10] for file in files
    }
    return lambda name: url_for("static", filename=name, v=versions[name])


def _menu(admin: Admin) -> list[dict[str, Any]]:
    """The pages this person may see, in their groups."""
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
        "key": KEYS.get(item.name),
    }
