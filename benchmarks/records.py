"""The record that every benchmark sends: 12 fields, of which 8 are mapped, about 400 bytes as JSON.

It uses only the standard library, since the peers import it too.
"""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]

#: Column in the database -> field in the external system. Four columns are not sent.
MAPPING = {
    "name": "name",
    "email": "email",
    "phone": "phone",
    "street": "address.line1",
    "city": "address.city",
    "postal_code": "address.postal_code",
    "country": "address.country",
    "notes": "description",
}

_NOTES = "Prefers to be called in the morning; pays by bank transfer within ten days, asks for a receipt each time."


def make(number: int) -> Record:
    """Return the 12 fields of a record; the values depend on the number."""
    return {
        "name": f"Customer Number {number}",
        "email": f"customer.{number}@example.com",
        "phone": f"+44 20 7946 {number % 10_000:04d}",
        "street": f"{number % 997} Long Acre",
        "city": "Newcastle upon Tyne",
        "postal_code": f"NE{number % 99} 4PQ",
        "country": "GB",
        "currency": "gbp",
        "notes": f"{_NOTES} ({number})",
        "active": True,
        "credit_limit": 10_000 + number % 5_000,
        "reference": f"ref-{number:012d}",
    }


def customer(number: int) -> Record:
    """Return the same record as a row of the shipped table `customer`, which has ten of the columns."""
    record = make(number)
    return {name: value for name, value in record.items() if name not in ("credit_limit", "reference")}


def mapped(record: Record) -> dict[str, Any]:
    """Return the data sent for a record, mapped by hand as in the peers' programs."""
    return {
        "name": record["name"],
        "email": record["email"],
        "phone": record["phone"],
        "description": record["notes"],
        "address": {
            "line1": record["street"],
            "city": record["city"],
            "postal_code": record["postal_code"],
            "country": record["country"],
        },
    }
