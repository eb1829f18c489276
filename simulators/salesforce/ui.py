"""The org's web pages: a list of the records, and a form to change one as a user of the org."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from simulators.pages import PAGE_HEADERS, render_form, render_list

from .errors import SalesforceError
from .org import Org
from .schema import OBJECTS, SObject, find_object
from .store import PERSON
from .wire import Request, Response

#: Rows on a page of the list, most recently changed first.
SHOWN = 200
_SHOWN_AFTER = ("Syncflow_Id__c", "LastModifiedDate")


def home(org: Org, request: Request) -> Response:
    return listing(org, request, "Account")


def listing(org: Org, request: Request, name: str) -> Response:
    """List the most recently changed records of an object."""
    one = find_object(name)
    rows = org.store.select(one, "IsDeleted = 0", (), f"ORDER BY SystemModstamp DESC, Id LIMIT {SHOWN}")
    columns = [*_editable(one)[:5], *_SHOWN_AFTER]

    def edit_url(record: Mapping[str, Any]) -> str:
        return f"/ui/{one.name}/{quote(str(record['Id']))}"

    total = org.store.count(one.name)
    html = render_list(f"Salesforce: {one.plural}", rows, columns, edit_url, new_url=f"/ui/{one.name}/new", total=total)
    return _page(_with_links(html))


def form(org: Org, request: Request, name: str, record_id: str) -> Response:
    one = find_object(name)
    record = _blank(one) if record_id == "new" else org.store.get(one.name, record_id)
    return _page(_form(one, record_id, record))


def save(org: Org, request: Request, name: str, record_id: str) -> Response:
    """Save the submitted form as a user of the org, and redirect to the list."""
    one = find_object(name)
    sent = request.form()
    data = {field: sent[field].replace("\r\n", "\n") for field in _editable(one) if field in sent}
    data = {field: _value(one, field, text) for field, text in data.items()}
    try:
        if record_id == "new":
            org.store.create(one.name, data, by=PERSON)
        else:
            org.store.update(one.name, record_id, data, by=PERSON)
    except SalesforceError as error:
        return _page(_form(one, record_id, {**sent, "Id": record_id}, error.message), 400)
    return Response(303, headers={"Location": f"/ui/{one.name}"})


def delete(org: Org, request: Request, name: str, record_id: str) -> Response:
    """Delete the record as a user of the org."""
    one = find_object(name)
    org.store.delete(one.name, record_id, by=PERSON)
    return Response(303, headers={"Location": f"/ui/{one.name}"})


def _form(one: SObject, record_id: str, record: Mapping[str, Any], error: str = "") -> str:
    title = f"New {one.label}" if record_id == "new" else f"{one.label} {record_id}"
    action = f"/ui/{one.name}/{quote(record_id)}"
    return render_form(
        title,
        record,
        _editable(one),
        action,
        list_url=f"/ui/{one.name}",
        delete_action=None if record_id == "new" else f"{action}/delete",
        error=error or None,
    )


def _editable(one: SObject) -> list[str]:
    return [field.name for field in one.own_fields if not field.read_only]


def _blank(one: SObject) -> dict[str, Any]:
    return {field.name: "" if field.default is None else field.default for field in one.own_fields}


def _value(one: SObject, name: str, text: str) -> Any:
    if one.field(name).kind == "boolean":
        return text.strip().lower() in ("true", "on", "1", "yes")
    return text


def _with_links(html: str) -> str:
    links = " ".join(f'<a href="/ui/{one.name}">{one.plural}</a>' for one in OBJECTS.values())
    return html.replace("<footer", f'<p class="soft" style="margin-top: 1rem">{links}</p><footer', 1)


def _page(html: str, status: int = 200) -> Response:
    headers = {name: value for name, value in PAGE_HEADERS.items() if name.lower() != "content-type"}
    return Response(status, html.encode(), "text/html;charset=UTF-8", headers)
