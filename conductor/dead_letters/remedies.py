"""What it takes to mend a dead letter, in words: by what the system says where that is known, else by its class.

Codes: Salesforce "Status Codes and Error Responses" of the SOAP API (its REST API has the same), Stripe "Error codes".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from i18n import gettext_noop

#: Where it is mended.
RECORD, MAPPING, SYSTEM, CODE = "record", "mapping", "system", "code"


@dataclass(frozen=True)
class Remedy:
    """What to do, and where: record, mapping, system or code. `words` are English, to be said by whoever shows them."""

    where: str
    words: str


#: (what the message holds, where to mend it, what to do); the first that fits counts.
_KNOWN = [
    (
        r"the mapping of .* does not fit",
        MAPPING,
        gettext_noop("The table has changed since the mapping was saved. Save the mapping anew, then retry."),
    ),
    (
        r"REQUIRED_FIELD_MISSING|parameter_missing|is required|cannot be (null|empty)|is empty, but|would be empty",
        RECORD,
        gettext_noop(
            "A field that is needed there is empty. "
            "Fill it in the record, or give it a default in the mapping and retry."
        ),
    ),
    (
        r"STRING_TOO_LONG|longer than|too long|characters, but",
        RECORD,
        gettext_noop("A value is too long for the other side. Shorten it in the record."),
    ),
    (
        r"INVALID_EMAIL_ADDRESS|email_invalid|invalid email",
        RECORD,
        gettext_noop("Correct the email address in the record."),
    ),
    (
        r"RESTRICTED_PICKLIST|picklist",
        RECORD,
        gettext_noop(
            "The value is not on the system's list. Use one that is, add it there, or translate it in the mapping."
        ),
    ),
    (
        r"DUPLICATE|already exists|already in use|resource_already_exists",
        SYSTEM,
        gettext_noop("The system has another record with this value. Merge or correct the two there, then retry."),
    ),
    (
        r"INVALID_FIELD|No such column|parameter_unknown|unknown (field|parameter)",
        MAPPING,
        gettext_noop(
            "The mapping names a field the system does not have, or does not show to this login. "
            "Correct it, then retry."
        ),
    ),
    (
        r"INSUFFICIENT_ACCESS|CANNOT_INSERT_UPDATE|INVALID_FIELD_FOR_INSERT_UPDATE|permission",
        SYSTEM,
        gettext_noop(
            "The login may not write this. Give it the right there, or map the field inwards only, then retry."
        ),
    ),
    (
        r"FIELD_CUSTOM_VALIDATION|CANNOT_EXECUTE_FLOW|validation rule",
        RECORD,
        gettext_noop(
            "A rule of the system's own refuses it; its words say which. "
            "Mend the record, or have the rule changed there."
        ),
    ),
    (
        r"INVALID_CROSS_REFERENCE|points to a record|MALFORMED_ID",
        RECORD,
        gettext_noop("It points to a record that is not there."),
    ),
    (
        r"several records|linked to another|which is it\?|is linked to",
        SYSTEM,
        gettext_noop("More than one record claims to be this one. Keep one of them, then retry."),
    ),
]

_BY_CLASS = {
    "Reject": Remedy(
        RECORD,
        gettext_noop(
            "The system refuses the data. Edit the record, which sends it again; or mend the mapping and retry."
        ),
    ),
    "Gone": Remedy(SYSTEM, gettext_noop("The record is gone there. Restore it and retry, or discard this.")),
    "WaitsFor": Remedy(RECORD, gettext_noop("A record it points to has to be there first. Mend that one, then retry.")),
}
_TRIED = Remedy(SYSTEM, gettext_noop("All attempts failed. Look whether the system takes this record now, then retry."))
_BUG = Remedy(
    CODE, gettext_noop("The subscriber's code broke. Show the traceback to a developer; retry when it is mended.")
)


def remedy(error: str, message: str, *, has_traceback: bool = False) -> Remedy:
    """For a dead letter with this class of error and message."""
    for pattern, where, words in _KNOWN:
        if re.search(pattern, message, re.IGNORECASE):
            return Remedy(where, words)
    if has_traceback:
        return _BUG
    return _BY_CLASS.get(error, _TRIED)
