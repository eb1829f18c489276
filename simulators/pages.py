"""The web pages of the demo systems, for users who try Syncflow."""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

#: Headers of every page. Records contain text from other systems, so no page may run a script.
PAGE_HEADERS: Mapping[str, str] = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}

#: Columns that usually hold several lines and get a taller box.
_LONG_COLUMNS = {"description", "note", "notes"}

_STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --card: #fff; --ink: #1d2430; --soft: #5a6472;
  --line: #dfe3e9; --field: #8a93a1; --accent: #2f5fb3; --on-accent: #fff; --alarm: #a8261c; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1c2027; --ink: #e6e9ee;
  --soft: #a0a9b6; --line: #303641; --field: #77818f; --accent: #8fb4f5;
  --on-accent: #101820; --alarm: #ff9d94; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
main.narrow { max-width: 36rem; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .5rem 1.25rem; margin-bottom: 1.25rem; }
h1 { font-size: 1.5rem; font-weight: 650; letter-spacing: -.01em; margin: 0; flex: 1 1 auto; }
p { margin: 0; } .soft { color: var(--soft); font-size: .9rem; } footer { margin-top: 1.5rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
th, td { text-align: left; padding: .7rem 1rem; border-bottom: 1px solid var(--line); vertical-align: top;
  max-width: 22rem; overflow-wrap: break-word; }
th { font-size: .8rem; font-weight: 600; color: var(--soft); white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; } tbody tr:hover { background: var(--paper); }
td:last-child, th:last-child { text-align: right; white-space: nowrap; }
a { color: var(--accent); text-underline-offset: .18em; }
form.card { padding: 1.25rem; }
label { display: block; font-weight: 600; font-size: .9rem; margin-bottom: .25rem; }
.field { margin-bottom: 1rem; }
input, textarea { width: 100%; font: inherit; color: inherit; background: var(--paper); padding: .5rem .65rem;
  border: 1px solid var(--field); border-radius: .45rem; } textarea { min-height: 5.5rem; resize: vertical; }
button { font: inherit; font-weight: 600; padding: .5rem 1.1rem; border-radius: .45rem; cursor: pointer;
  border: 1px solid var(--accent); background: var(--accent); color: var(--on-accent); }
button.quiet { background: transparent; border-color: transparent; color: var(--alarm);
  padding-inline: .25rem; }
.actions { display: flex; gap: 1.25rem; align-items: center; }
.alarm { color: var(--alarm); font-weight: 600; margin-bottom: 1rem; }
.empty { padding: 2.5rem 1rem; text-align: center; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
"""


def render_list(
    title: str,
    records: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    edit_url: Callable[[Mapping[str, Any]], str],
    *,
    new_url: str | None = None,
    total: int | None = None,
    others: Mapping[str, str] | None = None,
) -> str:
    """Return an HTML document with one row and an Edit link for each of the `records`.

    `columns` are keys of the records (a missing value is shown as empty); `edit_url` returns the address of a
    record's form. `new_url`, if given, is linked as "New"; `total` is the number of records if not all are
    shown; `others` are further lists, by title.
    """
    links = "".join(f'<a href="{escape(url)}">{escape(name)}</a>' for name, url in (others or {}).items())
    new = f'<a href="{escape(new_url)}">New</a>' if new_url else ""
    body = _table(records, columns, edit_url) if records else '<p class="empty soft">No records yet.</p>'
    return _document(
        title,
        f'<header><h1>{escape(title)}</h1>{new}<a href="">Refresh</a>{links}</header>'
        f'<div class="card">{body}</div>'
        f'<footer class="soft"><p>{_counted(len(records), total)}</p></footer>',
    )


def render_form(
    title: str,
    record: Mapping[str, Any],
    columns: Sequence[str],
    action: str,
    *,
    list_url: str = "/",
    delete_action: str | None = None,
    error: str | None = None,
) -> str:
    """Return an HTML document with a form to edit `record`; it POSTs `columns`, urlencoded, to `action`.

    `delete_action`, if given, adds a Delete button that POSTs to it; `error` is shown above the fields.
    """
    alarm = f'<p class="alarm" role="alert">{escape(error)}</p>' if error else ""
    fields = "".join(_field(column, record.get(column)) for column in columns)
    delete = ""
    if delete_action:
        delete = f'<button class="quiet" formaction="{escape(delete_action)}">Delete</button>'
    return _document(
        title,
        f'<header><h1>{escape(title)}</h1><a href="{escape(list_url)}">Back to the list</a></header>'
        f'<form class="card" method="post" action="{escape(action)}">{alarm}{fields}'
        f'<div class="actions"><button>Save</button>{delete}</div></form>',
        narrow=True,
    )


def _document(title: str, body: str, *, narrow: bool = False) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f'<body><main class="{"narrow" if narrow else "wide"}">{body}'
        '<footer class="soft"><p>A simulated system, for trying Syncflow. '
        "Changes made on this page count as made in this system.</p></footer></main></body></html>"
    )


def _table(
    records: Sequence[Mapping[str, Any]], columns: Sequence[str], edit_url: Callable[[Mapping[str, Any]], str]
) -> str:
    head = "".join(f'<th scope="col">{escape(_label(column))}</th>' for column in columns)
    rows = "".join(_row(record, columns, edit_url(record)) for record in records)
    return f'<table><thead><tr>{head}<th scope="col">Action</th></tr></thead><tbody>{rows}</tbody></table>'


def _row(record: Mapping[str, Any], columns: Sequence[str], url: str) -> str:
    cells = "".join(f"<td>{escape(_text(record.get(column)))}</td>" for column in columns)
    name = escape(next((_text(record[column]) for column in columns if record.get(column)), "record"))
    return f'<tr>{cells}<td><a href="{escape(url)}" aria-label="Edit {name}">Edit</a></td></tr>'


def _field(column: str, value: Any) -> str:
    name, text = escape(column), escape(_text(value))
    label = f'<label for="f-{name}">{escape(_label(column))}</label>'
    if column.lower() in _LONG_COLUMNS:
        box = f'<textarea id="f-{name}" name="{name}">{text}</textarea>'
    else:
        box = f'<input id="f-{name}" name="{name}" value="{text}" autocomplete="off">'
    return f'<div class="field">{label}{box}</div>'


def _label(column: str) -> str:
    words = column.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _text(value: Any) -> str:
    if value is None or value in ({}, []):
        return ""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _counted(shown: int, total: int | None) -> str:
    if total is not None and total > shown:
        return f"The newest {shown:,} of {total:,} records"
    return "1 record" if shown == 1 else f"{shown:,} records"
