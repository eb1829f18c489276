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

from conductor.overview import COUNT_LIMIT
from models.base import utcnow
from panel.security import allowed

#: The colour a word of state is shown in: good, busy, bad or quiet.
TONES = {
    "ok": "good", "delivered": "good", "applied": "good", "up to date": "good", "done": "good", "in force": "good",
    "on": "good", "flows": "good", "held back": "busy",
    "waiting": "busy", "owed": "busy", "failed": "busy", "paused": "busy", "trying again": "busy",
    "failing": "bad", "down": "bad", "dead": "bad", "dead letter": "bad", "conflict": "bad",
}  # fmt: skip


def init(app: Flask, admin: Admin) -> None:
    """Make the words known to all templates."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(when=when, pace=pace, ago=ago, tone=tone, pretty=pretty, shown=shown, number=number)
    app.jinja_env.globals.update(allowed=allowed, link_state=link_state, asset=_assets(app))
    app.context_processor(lambda: {"menu": lambda: _menu(admin)})


def tone(word: str) -> str:
    """The colour of a word of state."""
    return TONES.get(word, "quiet")


def number(value: int) -> str:
    """12,345; where the conductor stopped counting, 10,000+."""
    return f"{value:,}+" if value == COUNT_LIMIT else f"{value:,}"


def pace(seconds: int) -> str:
    """How often, in words: 1 day, 5 min, 30 s."""
    for size, unit in ((86_400, "day"), (3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            count = seconds // size
            return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''}"
    return f"{seconds} s"


def when(value: datetime | None) -> Markup:
    """A time: UTC without JavaScript, the reader's own zone with it, always with UTC on hover."""
    if value is None:
        return Markup('<span class="none">never</span>')
    text = f"{value:%Y-%m-%d %H:%M:%S}"
    return Markup('<time datetime="{0}" title="{1} UTC">{1} UTC</time>').format(value.isoformat(), text)


def ago(value: datetime | None) -> Markup:
    """How long ago, in the largest unit that fits, with the exact time on hover."""
    if value is None:
        return Markup('<span class="none">never</span>')
    seconds = (utcnow() - value).total_seconds()
    words = f"{duration(abs(seconds))} ago" if seconds >= 0 else f"in {duration(abs(seconds))}"
    return Markup('<time datetime="{0}" data-keep title="{1} UTC">{2}</time>').format(
        value.isoformat(), f"{value:%Y-%m-%d %H:%M:%S}", words
    )


def duration(seconds: float) -> str:
    """90 -> 1 min, 7200 -> 2 h."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def link_state(link: Any) -> tuple[str, str]:
    """Where one record stands with one subscriber: a word, and a sentence."""
    if link.dead_at:
        return "dead letter", f"not sent: a person has to look at it since {link.dead_at:%Y-%m-%d %H:%M} UTC"
    if link.owed_change > link.synced_change:
        if link.unsubscription_id:
            return "skipped", f"not sent: unsubscription #{link.unsubscription_id} covers it"
        if link.retry_at:
            return "trying again", f"{link.attempts} attempts failed, next {_soon(link.retry_at)}"
        return "owed", "waits for its turn"
    if link.gone_at:
        return "gone", "deleted or detached there"
    if link.unsubscription_id:
        return "skipped", f"not sent: unsubscription #{link.unsubscription_id} covers it"
    if link.synced_at:
        return "up to date", f"since {link.synced_at:%Y-%m-%d %H:%M} UTC"
    return "nothing owed", "never sent"


def _soon(instant: datetime) -> str:
    seconds = (instant - utcnow()).total_seconds()
    return f"in {duration(seconds)}" if seconds >= 1 else "at once"


def pretty(value: Any) -> str:
    """JSON laid out for reading; text that is no JSON as it is."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return str(value)
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def shown(value: Any) -> str:
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
    versions = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:10] for file in folder.iterdir() if file.is_file()
    }
    return lambda name: url_for("static", filename=name, v=versions[name])


def _menu(admin: Admin) -> list[dict[str, Any]]:
    """The pages this person may see, in their groups."""
    groups: list[dict[str, Any]] = [{"name": "", "pages": []}]
    for item in admin.menu():
        if isinstance(item, MenuCategory):
            pages = [_page(child) for child in item.get_children()]
            if pages:
                groups.append({"name": item.name, "pages": pages})
        elif item.is_visible() and item.is_accessible():
            groups[0]["pages"].append(_page(item))
    return groups


def _page(item: Any) -> dict[str, Any]:
    url = item.get_url()
    here = request.path == url if url == "/" else request.path.startswith(url)
    return {"name": item.name, "url": url, "icon": item.get_icon_value(), "here": here}
