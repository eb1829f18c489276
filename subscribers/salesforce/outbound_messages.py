"""The webhooks of an org: callouts (JSON, from Apex or a flow) and outbound messages (SOAP).

SOAP API developer guide, "Outbound Messaging": the notifications in a message have their own ids, arrive in any
order and may be repeated; a message is sent again until it is acknowledged. It omits empty fields, and all its
values are text. So only the id of the changed record is used, and the record is fetched.
"""

from __future__ import annotations

import json
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from subscribers.errors import BadSignature, BadWebhook

_SOAP = "{http://schemas.xmlsoap.org/soap/envelope/}"
_MESSAGE = "{http://soap.sforce.com/2005/09/outbound}"
_OBJECT = "{urn:sobject.enterprise.soap.sforce.com}"
_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"

#: The required answer to an outbound message: body and content type.
ACKNOWLEDGEMENT = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>'
    '<notificationsResponse xmlns="http://soap.sforce.com/2005/09/outbound"><Ack>true</Ack></notificationsResponse>'
    "</soapenv:Body></soapenv:Envelope>",
    "text/xml; charset=utf-8",
)


def is_soap(body: bytes) -> bool:
    """Return whether this is an outbound message, not a callout."""
    return body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def unpack(body: bytes, organization_id: str) -> list[tuple[str, bytes]]:
    """Return (id, callout) of each event in a request whose secret is correct.

    Raises:
      BadSignature: it is an outbound message of another org.
      BadWebhook: it cannot be parsed.
    """
    if is_soap(body):
        return [(one["id"], json.dumps(one).encode()) for one in _notifications(body, organization_id)]
    return [(str(callout(body)["id"]), body)]


def callout(body: bytes) -> dict[str, Any]:
    """Return the content of a callout: `{"id", "sobject", "record": {"Id", ...}, "deleted"}`."""
    try:
        event = json.loads(body)
        if event["id"] and isinstance(event["sobject"], str) and event["record"]["Id"]:
            return dict(event)
    except (ValueError, KeyError, TypeError):
        raise BadWebhook("the body is not a callout with id, sobject and record") from None
    raise BadWebhook("the body is not a callout with id, sobject and record")


def _notifications(body: bytes, organization_id: str) -> list[dict[str, Any]]:
    """Yield each notification of an outbound message as a callout with only the id of its record."""
    try:
        message = fromstring(body, forbid_dtd=True).find(f"{_SOAP}Body/{_MESSAGE}notifications")
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise BadWebhook(f"the body is not XML that Syncflow can read: {type(error).__name__}") from None
    if message is None:
        raise BadWebhook("the body is not an outbound message: it has no notifications")
    if not organization_id:
        raise BadSignature("outbound messages are accepted only if SALESFORCE_ORGANIZATION_ID is set to their org")
    # The last three of 18 characters are a checksum of the others.
    if _text(message, "OrganizationId")[:15] != organization_id[:15]:
        raise BadSignature("the outbound message is from another org than SALESFORCE_ORGANIZATION_ID")
    found = [_notification(one) for one in message.findall(f"{_MESSAGE}Notification")]
    if not found:
        raise BadWebhook("the outbound message has no Notification")
    return found


def _notification(one: Element) -> dict[str, Any]:
    record = one.find(f"{_MESSAGE}sObject")
    identifier = _text(one, "Id")
    if record is None or not identifier:
        raise BadWebhook("a Notification of the outbound message lacks its Id or sObject")
    kind = record.get(_TYPE, "").rpartition(":")[2]
    record_id = (record.findtext(f"{_OBJECT}Id") or "").strip()
    if not kind or not record_id:
        raise BadWebhook("an sObject of the outbound message lacks its type or Id")
    stamp = (record.findtext(f"{_OBJECT}SystemModstamp") or "").strip()
    thin = {"Id": record_id, **({"SystemModstamp": stamp} if stamp else {})}
    return {"id": identifier, "sobject": kind, "record": thin}


def _text(parent: Element, name: str) -> str:
    return (parent.findtext(f"{_MESSAGE}{name}") or "").strip()
