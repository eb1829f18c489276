"""What the org sends by itself: callouts (JSON, from Apex or a flow) and outbound messages (SOAP).

SOAP API developer guide, "Outbound Messaging": the notifications of a message have ids of their own, come in any
order and may come again; a message is sent again until it is acknowledged. An empty field is left out of it, and
the values are all text: so nothing is taken from one but which record changed, and the record is fetched.
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

#: What an outbound message has to be answered with: body and content type.
ACKNOWLEDGEMENT = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>'
    '<notificationsResponse xmlns="http://soap.sforce.com/2005/09/outbound"><Ack>true</Ack></notificationsResponse>'
    "</soapenv:Body></soapenv:Envelope>",
    "text/xml; charset=utf-8",
)


def is_soap(body: bytes) -> bool:
    """Whether this is an outbound message and no callout."""
    return body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def unpack(body: bytes, organization_id: str) -> list[tuple[str, bytes]]:
    """(id, callout) of each event in a request whose secret fits.

    Raises:
      BadSignature: an outbound message of another org.
      BadWebhook: it cannot be read.
    """
    if is_soap(body):
        return [(one["id"], json.dumps(one).encode()) for one in _notifications(body, organization_id)]
    return [(str(callout(body)["id"]), body)]


def callout(body: bytes) -> dict[str, Any]:
    """A callout's content: `{"id", "sobject", "record": {"Id", ...}, "deleted"}`."""
    try:
        event = json.loads(body)
        if event["id"] and isinstance(event["sobject"], str) and event["record"]["Id"]:
            return dict(event)
    except (ValueError, KeyError, TypeError):
        raise BadWebhook("the body is no callout with id, sobject and record") from None
    raise BadWebhook("the body is no callout with id, sobject and record")


def _notifications(body: bytes, organization_id: str) -> list[dict[str, Any]]:
    """The notifications of an outbound message, each as a callout that names its record and no more."""
    try:
        message = fromstring(body, forbid_dtd=True).find(f"{_SOAP}Body/{_MESSAGE}notifications")
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise BadWebhook(f"the body is no XML that is read here: {type(error).__name__}") from None
    if message is None:
        raise BadWebhook("the body is no outbound message: it holds no notifications")
    if not organization_id:
        raise BadSignature("outbound messages are taken once SALESFORCE_ORGANIZATION_ID names their org")
    # The last three of 18 characters are a check sum of the others.
    if _text(message, "OrganizationId")[:15] != organization_id[:15]:
        raise BadSignature("the outbound message is of another org than SALESFORCE_ORGANIZATION_ID")
    found = [_notification(one) for one in message.findall(f"{_MESSAGE}Notification")]
    if not found:
        raise BadWebhook("the outbound message holds no Notification")
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
