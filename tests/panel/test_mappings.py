"""The mapping editor: previews, the location of errors, concurrent edits, versions, resending."""

from __future__ import annotations

from typing import Any, cast

import pytest
import sqlalchemy as sa

from conductor import MappingRefused
from conductor.mappings.diff import diff, merge_edits
from conductor.mappings.preview import EXACT
from models.catalogues import CATALOGUES, Customer
from models.ledger import Link, Mapping, Unsubscription
from panel.forms.mapping import parse_default, parsed, show_default, shown, typed
from subscribers.base import Subscriber
from subscribers.errors import SyncError
from subscribers.mapping.fields import rows
from subscribers.mapping.mapper import Mapper
from tests.support.panel import Panel, post

PAGE = "/mappings/shop.customer"


def _form(*pairs: tuple[str, str], version: int = 0, do: str = "save", **more: str) -> dict[str, str]:
    form = {"version": str(version), "do": do, "0.required": "yes"} | more
    for number, (column, path) in enumerate(pairs):
        form |= {f"{number}.column": column, f"{number}.path": path}
        form |= {f"{number}.direction": "both", f"{number}.conflict": "newest"}
    return form


DEFAULT = [("name", "name"), ("email", "email"), ("city", "address.city"), ("active", "active")]


def _rows(**changes: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the shop's default mapping with some of its rows changed."""
    made = [
        {"column": column, "path": path, "direction": "both", "conflict": "newest"} | (changes.get(column) or {})
        for column, path in DEFAULT
    ]
    return [row for row in made if changes.get(row["column"], {}) is not None]


# --- saving ------------------------------------------------------------------------------------------


def test_a_saved_mapping_is_active_immediately_and_can_be_restored(panel: Panel) -> None:
    client = panel.client("admin")
    assert post(client, PAGE, **_form(("name", "title"))).status_code == 303
    assert [e.path for e in panel.conductor.mappings.latest("shop.customer")[0].fields.values()] == ["title"]
    post(client, f"{PAGE}/default", version="1")
    assert set(panel.conductor.mappings.latest("shop.customer")[0].fields) == {"name", "email", "city", "active"}
    post(client, f"{PAGE}/versions/1/revert", version="2")
    assert [e.path for e in panel.conductor.mappings.latest("shop.customer")[0].fields.values()] == ["title"]
    versions = panel.rows(sa.select(Mapping.version, Mapping.fields).where(Mapping.subscriber == "shop.customer"))
    assert [row.version for row in versions] == [1, 2, 3] and versions[1].fields is None
    assert "Not saved" in client.get(post(client, f"{PAGE}/default", version="1").headers["Location"]).text


def test_an_error_is_shown_at_its_row_and_cell(panel: Panel) -> None:
    pairs = [("name", "a"), ("nonsense", "b"), ("email", "not a path"), ("name", "a")]
    form = _form(*pairs) | {"0.transform": "no_such"}
    answer = post(panel.client("admin"), PAGE, **form)
    assert answer.status_code == 422
    for place in (">Row 1</a>: transform", ">Row 2</a>: internal column", ">Row 3</a>: external field"):
        assert place in answer.text, place
    assert ">Row 4</a>: internal column, external field" in answer.text
    below_row_3 = answer.text.partition('id="why-2"')[2].partition("</tr>")[0]
    assert "External field:" in below_row_3 and "must be a field name" in below_row_3
    assert answer.text.count('class="wrong"') == 5  # transform 1, column 2, path 3, column and path 4
    assert 'value="not a path"' in answer.text
    assert panel.conductor.mappings.latest("shop.customer")[1] == 0


def test_two_people_do_not_overwrite_each_other(panel: Panel) -> None:
    one, other = panel.client("admin"), panel.client("admin")
    theirs = [("name", "title"), *DEFAULT[1:]]
    post(one, PAGE, **_form(*theirs))
    mine = [*DEFAULT[:1], ("email", "mail"), *DEFAULT[2:]]
    answer = post(other, PAGE, **_form(*mine))
    assert answer.status_code == 409
    assert panel.conductor.mappings.latest("shop.customer")[1] == 1
    assert "admin@example.com saved version 1 while you were editing" in answer.text
    # The table contains both users' edits, based on the version that is now active.
    for cell in ('value="title"', 'value="mail"', 'name="version" value="1"'):
        assert cell in answer.text
    clash = post(other, PAGE, **_form(("name", "label"), *DEFAULT[1:]))
    assert "You both changed <strong>name</strong>" in clash.text and 'value="label"' in clash.text
    # A preview reports the conflict too, before the user continues in vain.
    assert post(other, PAGE, **_form(*mine, do="review")).status_code == 409


def test_versions_are_compared(panel: Panel) -> None:
    client = panel.client("admin")
    post(client, PAGE, **_form(("name", "title"), *DEFAULT[1:]))
    post(client, PAGE, **_form(("name", "title"), ("phone", "tel"), *DEFAULT[1:], version=1))
    page = client.get(f"{PAGE}/versions/1").text
    since, _, until = page.partition('id="until"')
    assert "<del>name</del>" in since and "<ins>title</ins>" in since and "tel" not in since
    assert "new" in until and "tel" in until
    assert 'value="title"' in client.get(f"{PAGE}?from=1").text
    assert client.get(f"{PAGE}/versions/9").status_code == 404
    for number in ("9", "x", str(2**70)):
        assert client.get(f"{PAGE}?from={number}").status_code == 404


# --- previews ----------------------------------------------------------------------------------------


def test_trying_shows_one_record_before_and_after_and_saves_nothing(panel: Panel) -> None:
    pairs = [("name", "title"), *DEFAULT[1:]]
    form = _form(*pairs, do="review", record="grace.hopper@example.com") | {"1.transform": "upper"}
    page = post(panel.client("admin"), PAGE, **form).text
    assert "5 records would change" in page
    assert "GRACE.HOPPER@EXAMPLE.COM" in page and "not sent" in page
    assert panel.conductor.mappings.latest("shop.customer")[1] == 0
    nobody = post(panel.client("admin"), PAGE, **_form(*pairs, do="review", record="nobody@example.com")).text
    assert "No customer found" in nobody
    for record in ("99999", "9" * 40, "x" * 200):
        assert post(panel.client("admin"), PAGE, **_form(*pairs, do="review", record=record)).status_code == 200


def test_a_preview_lists_what_blocks_the_delivery(panel: Panel) -> None:
    preview = panel.conductor.previews.record(
        "crm.customer", panel.conductor.mappings.latest("crm.customer")[0].rows(), "2"
    )
    assert preview and any("billing freeze" in note for note in preview.notes)
    assert any("would be created" in note for note in preview.notes)
    assert not any(preview.differs(path) for path in preview.paths)
    assert panel.conductor.previews.record("shop.customer", _rows(), "77") is None
    with pytest.raises(MappingRefused):
        panel.conductor.previews.record("shop.customer", [{"column": "nonsense", "path": "x"}], "1")


def test_the_effect_counts_what_is_sent_differently_and_what_would_be_refused(panel: Panel) -> None:
    none = panel.conductor.previews.effect("shop.customer", _rows())
    assert (none.total, none.examined, none.changing, none.refused, none.exact) == (5, 5, 0, 0, True)
    # A field that is no longer mapped keeps its value in the external system.
    assert panel.conductor.previews.effect("shop.customer", _rows(city=None)).changing == 0
    with panel.database.write() as connection:
        connection.execute(sa.update(Customer).where(Customer.id == 1).values(email=None))
    effect = panel.conductor.previews.effect("shop.customer", _rows(email={"transform": "upper", "required": True}))
    assert (effect.changing, effect.refused, effect.paths) == (4, 1, {"email": 4})
    assert effect.refusal and "customer 1" in effect.refusal and effect.example == "2"
    preview = panel.conductor.previews.record("shop.customer", _rows(email={"required": True}), "1")
    assert preview and isinstance(preview.after, SyncError) and isinstance(preview.before, dict)


def test_a_large_catalogue_is_sampled_and_the_bounds_hold(sqlite_panel: Panel) -> None:
    count = EXACT + 3000
    names = [{"name": f"n{n}", "city": "Rome" if n < count * 0.3 else None} for n in range(count)]
    with sqlite_panel.database.write() as connection:
        connection.execute(sa.insert(Customer), names)
        truth = connection.execute(sa.select(sa.func.count()).where(Customer.city.is_not(None))).scalar_one()
    effect = sqlite_panel.conductor.previews.effect("shop.customer", _rows(city={"transform": "upper"}))
    assert not effect.exact and effect.examined < effect.total == count + 5
    # Neighbouring records are alike here, the worst case for sampling by position: the bounds must still hold.
    assert effect.low <= truth <= effect.high
    assert effect.high - effect.low < effect.total / 2
    nobody = sqlite_panel.conductor.previews.effect("shop.customer", _rows())
    assert nobody.estimate == 0 and 0 < nobody.high < effect.total / 10
    page = post(sqlite_panel.client("admin"), PAGE, **_form(*DEFAULT, do="review") | {"2.transform": "upper"}).text
    assert "95 % confidence" in page


# --- resending ---------------------------------------------------------------------------------------


def test_save_and_resend_sends_only_differing_records(panel: Panel) -> None:
    with panel.database.write() as connection:
        connection.execute(sa.delete(Unsubscription))
    before = {row.record_id: row.owed_change for row in _links(panel)}
    answer = post(panel.client("admin"), PAGE, **_form(*DEFAULT, do="send") | {"3.transform": "yes_no"})
    assert answer.status_code == 303
    assert 'data-line="/tasks/' in panel.client("viewer").get(PAGE).text
    with panel.database.write() as connection:
        # This link already agrees with the new mapping.
        agreed = panel.rows(sa.select(Link.base).where(Link.subscriber == "shop.customer", Link.record_id == "1"))
        values = {"base": {**agreed[0].base, "active": "yes"}}
        connection.execute(
            sa.update(Link).where(Link.subscriber == "shop.customer", Link.record_id == "1").values(**values)
        )
    while panel.conductor.tasks.run_some():
        pass
    (task,) = panel.conductor.tasks.list("resend")
    assert f'href="/tasks/{task.id}"' in panel.client("viewer").get(PAGE).text
    line = panel.client("viewer").get(f"/tasks/{task.id}/line").text
    assert "<html" not in line and "2 differ and are sent again" in line and "data-line" not in line
    assert (task.state, task.done, task.total, task.succeeded) == ("done", 3, 3, 2)
    owed = {row.record_id for row in _links(panel) if row.owed_change > before[row.record_id]}
    assert owed == {"2", "3"}
    panel.sync()
    assert all(row.base["active"] == "yes" for row in _links(panel) if row.external_id)
    assert "2 differ and are sent again" in panel.client("viewer").get(PAGE).text


def _links(panel: Panel) -> list[Any]:
    return panel.rows(sa.select(Link.__table__).where(Link.subscriber == "shop.customer"))


# --- pure functions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "plain", "12", "true", 12, 1.5, True, False, '"quoted"', "[1]", "null"])
def test_defaults_survive_the_form(value: Any) -> None:
    assert parse_default(show_default(value)) == value


def test_lists_of_child_rows_survive_the_form() -> None:
    invoice = CATALOGUES["invoice"]
    mapper = Mapper(invoice, {"number": "number", "lines": rows("items", {"quantity": "qty", "unit_price": "price"})})
    form: dict[str, str] = {}
    for number, row in enumerate(shown(mapper.rows())):
        form |= {f"{number}.{name}": str(row[name]) for name in ("column", "path", "transform", "link", "default")}
        for child, inner in enumerate(row["rows"] or []):
            form |= {f"{number}_{child}.{name}": str(inner[name]) for name in ("column", "path", "transform")}
    assert parsed(typed(form, invoice)) == mapper.rows()
    assert typed({"0_0.column": "x", "99999.column": "y", "1.unknown": "z"}, invoice) == []


class ShopInvoice(Subscriber):
    system, catalogue = "shop", "invoice"
    field_to_data = {"number": "number", "lines": rows("items", {"quantity": "qty", "unit_price": "price"})}


def test_the_fields_of_child_rows_are_edited_like_the_others(sqlite_panel: Panel) -> None:
    shop = sqlite_panel.conductor.systems["shop"]
    cast(dict[str, Any], sqlite_panel.conductor.context.subscribers)["shop.invoice"] = ShopInvoice(shop)
    client = sqlite_panel.client("admin")
    page = client.get("/mappings/shop.invoice").text
    assert 'aria-label="External field of row 2, lines 1" ' in page and 'list="columns-lines"' in page
    form = {"version": "0", "0.column": "number", "0.path": "number", "1.column": "lines", "1.path": "items"}
    form |= {"1_0.column": "quantity", "1_0.path": "qty", "1_1.column": "description", "1_1.path": "a[0]"}
    wrong = post(client, "/mappings/shop.invoice", **form, do="save")
    assert wrong.status_code == 422 and 'id="why-1_1"' in wrong.text and ">Row 2, lines 2</a>" in wrong.text
    assert 'name="1_2.column"' in post(client, "/mappings/shop.invoice", **form, do="add:1").text
    assert 'name="1_1.column"' not in post(client, "/mappings/shop.invoice", **form, do="remove:1_0").text
    assert post(client, "/mappings/shop.invoice", **(form | {"1_1.path": "text"}), do="save").status_code == 303
    mapped = sqlite_panel.conductor.mappings.latest("shop.invoice")[0].fields["lines"].rows
    assert mapped and {column: entry.path for column, entry in mapped.items()} == {
        "quantity": "qty",
        "description": "text",
    }
    assert "lines.unit_price" in client.get("/mappings/shop.invoice/versions/1").text


def test_differences_name_child_rows() -> None:
    one = [{"column": "lines", "path": "items", "rows": [{"column": "quantity", "path": "qty"}]}]
    two = [{"column": "lines", "path": "items", "rows": [{"column": "quantity", "path": "count"}]}]
    (found,) = diff(one, two)
    assert (found.column, found.kind, found.cells) == ("lines.quantity", "changed", {"path": ("qty", "count")})
    assert [row.kind for row in diff(one, [])] == ["removed", "removed"]


def test_two_edits_are_brought_together_row_by_row() -> None:
    base = [{"column": name, "path": name} for name in "abcd"]
    ours = [{"column": "a", "path": "A"}, {"column": "b", "path": "b"}, {"column": "c", "path": "c"}]
    theirs = [{"column": "a", "path": "AA"}, {"column": "b", "path": "BB"}, {"column": "d", "path": "d"},
              {"column": "e", "path": "e"}]  # fmt: skip
    together = merge_edits(base, ours, theirs)
    assert {row["column"]: row["path"] for row in together.rows} == {"a": "A", "b": "BB", "e": "e"}
    assert (together.taken, together.clashes) == (["b", "c", "e"], ["a"])
