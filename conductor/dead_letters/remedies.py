"""How to resolve a dead letter, by the code of its error."""

from __future__ import annotations

from dataclasses import dataclass

from i18n import gettext_noop

#: Where an operator fixes the cause.
RECORD, MAPPING, SYSTEM, CODE = "record", "mapping", "system", "code"


@dataclass(frozen=True)
class Remedy:
    """What to do, in English, and where: record, mapping, system or code."""

    where: str
    text: str


_RELATION = Remedy(
    RECORD, gettext_noop("It refers to a record that must be delivered first. Fix that record, then retry.")
)
_STATE = Remedy(
    SYSTEM, gettext_noop("The record's state in the system forbids this change. Correct it there, then retry.")
)

REMEDIES = {
    "absent": Remedy(
        RECORD,
        gettext_noop(
            "Make the record visible to Syncflow's database user, then retry. "
            "If it is deleted, delete it in the system as well and discard this dead letter."
        ),
    ),
    "ambiguous_match": Remedy(
        SYSTEM, gettext_noop("Several records match this one. Keep one of them, or correct the others, then retry.")
    ),
    "attempts_exhausted": Remedy(
        SYSTEM, gettext_noop("All attempts failed. Check that the system accepts this record now, then retry.")
    ),
    "batch_too_large": Remedy(
        SYSTEM,
        gettext_noop(
            "The system's own rules reach a limit even with this record alone. "
            "Check its triggers and flows, then retry."
        ),
    ),
    "bug": Remedy(
        CODE, gettext_noop("The code raised an exception. Show the traceback to a developer; retry after the fix.")
    ),
    "conflict": _STATE,
    "created_without_id": Remedy(
        SYSTEM,
        gettext_noop(
            "The system has created the record, but did not say its id. Set the field for our id or match_on, then "
            "retry. It is not created again."
        ),
    ),
    "event_invalid": Remedy(
        SYSTEM, gettext_noop("The event can never be applied. Fix its sender, then discard the event.")
    ),
    "duplicate": Remedy(
        SYSTEM,
        gettext_noop(
            "The system has another record with this value. Merge or correct the two records in the system, then retry."
        ),
    ),
    "edited_there": Remedy(
        SYSTEM, gettext_noop("The record was edited in the system before our deletion. Retry to delete it anyway.")
    ),
    "outdated": Remedy(
        SYSTEM,
        gettext_noop(
            "The system refuses each write as one of an old version, although the record was just read. "
            "Check where the version is and how it is named; then retry."
        ),
    ),
    "id_changes": Remedy(
        SYSTEM, gettext_noop("The system returns this record under another id each time. Correct it there, then retry.")
    ),
    "gone": Remedy(
        SYSTEM, gettext_noop("The system has deleted the record. Restore it and retry, or discard this dead letter.")
    ),
    "invalid_email": Remedy(RECORD, gettext_noop("Correct the email address in the record.")),
    "invalid_value": Remedy(
        RECORD, gettext_noop("A value does not fit its field. Correct it in the record, or convert it in the mapping.")
    ),
    "mapping_outdated": Remedy(
        MAPPING, gettext_noop("The table has changed since the mapping was saved. Save the mapping again, then retry.")
    ),
    "not_in_list": Remedy(
        RECORD,
        gettext_noop(
            "The value is not on the system's list. Use one that is, add it there, or translate it in the mapping."
        ),
    ),
    "reused_id": Remedy(
        SYSTEM,
        gettext_noop(
            "Compare the two, then say whether it is the same record, which is linked again, or another one, "
            "which is treated as new."
        ),
    ),
    "permission_missing": Remedy(
        SYSTEM,
        gettext_noop(
            "The login may not write this. Grant the permission there, or map the field inward only, then retry."
        ),
    ),
    "reference_missing": Remedy(
        RECORD, gettext_noop("It refers to a record that does not exist. Correct the reference, then retry.")
    ),
    "rejected": Remedy(
        RECORD,
        gettext_noop(
            "The system rejects the data. Edit the record, which delivers it again; or correct the mapping and retry."
        ),
    ),
    "relation_cycle": Remedy(
        RECORD,
        gettext_noop(
            "Records refer to one another, and all of these references are required. Change one of them, "
            "or map it as not required, then retry."
        ),
    ),
    "relation_dead": _RELATION,
    "relation_missing": _RELATION,
    "response_too_large": Remedy(
        SYSTEM,
        gettext_noop(
            "The response is larger than the hub reads. Find out what the system sends; if it is right, raise the "
            "system's setting MAX_RESPONSE_BYTES, then retry."
        ),
    ),
    "required_field_missing": Remedy(
        RECORD,
        gettext_noop(
            "A required field is empty. Fill it in the record, or give it a default in the mapping and retry."
        ),
    ),
    "too_long": Remedy(RECORD, gettext_noop("A value is too long. Shorten it in the record.")),
    "unknown_field": Remedy(
        MAPPING,
        gettext_noop(
            "The mapping names a field that the system does not have, or hides from this login. Correct it, then retry."
        ),
    ),
    "unreadable": Remedy(
        RECORD, gettext_noop("A value in the database cannot be read or sent. Correct it in the record.")
    ),
    "unstorable": Remedy(
        RECORD, gettext_noop("A value cannot be stored in the database. Correct it in the record, then retry.")
    ),
    "validation_rule": Remedy(
        RECORD,
        gettext_noop(
            "A rule of the system rejects it; the message names the rule. "
            "Correct the record, or have the rule changed there."
        ),
    ),
    "wrong_state": _STATE,
    "waits_for_relation": _RELATION,
}


def remedy(code: str) -> Remedy:
    """Return the remedy of a dead letter with this code; an unknown code counts as rejected data."""
    return REMEDIES.get(code, REMEDIES["rejected"])
