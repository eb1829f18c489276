"""Outbound messages: SOAP messages to one address, resent until they are acknowledged.

SOAP API developer guide: "Outbound Messaging". A message holds up to 100 notifications of one object; each has its own
id and reports which record changed and when. As in the real system, deletions send no message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

import requests

from simulators.faults import Faults
from simulators.webhooks import Endpoint, WebhookSender

from .identifiers import make_id
from .org import ORG_ID
from .store import Change

#: The most notifications in one message.
MOST = 100
_ACKNOWLEDGED = re.compile(r"<(\w+:)?Ack>\s*true\s*</(\w+:)?Ack>")


class OutboundMessages:
    """Sends each change to one address. A restart loses pending messages."""

    def __init__(self, url: str) -> None:
        #: Accepts webhook_drop, webhook_duplicate, webhook_reorder and webhook_delay.
        self.faults = Faults()
        endpoint = Endpoint(url, "")
        headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'}
        self.sender = WebhookSender(self.faults, lambda _: endpoint, lambda *_: headers, taken=_is_acknowledged)
        self._count = 0

    def changed(self, changes: Sequence[Change]) -> None:
        """Send the changes of a transaction. The store calls this after the commit."""
        reported = [one for one in changes if one.operation != "deleted"]
        for name, group in groupby(reported, key=lambda one: one.object):
            some = list(group)
            for start in range(0, len(some), MOST):
                notifications = [self._notification(one) for one in some[start : start + MOST]]
                self.sender.send("hub", f"message of {name}", _envelope("".join(notifications)).encode())

    def _notification(self, change: Change) -> str:
        self._count += 1
        time = change.time.replace("+0000", "Z")
        return (
            f"<Notification><Id>{make_id('04l', self._count)}</Id>"
            f'<sObject xsi:type="sf:{change.object}" xmlns:sf="urn:sobject.enterprise.soap.sforce.com">'
            f"<sf:Id>{change.id}</sf:Id><sf:SystemModstamp>{time}</sf:SystemModstamp></sObject></Notification>"
        )


def _envelope(notifications: str) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope '
        'xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" xmlns:xsd="http://www.w3.org/2001/XMLSchema" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>'
        '<notifications xmlns="http://soap.sforce.com/2005/09/outbound">'
        f'<OrganizationId>{ORG_ID}</OrganizationId><ActionId>{make_id("04k", 1)}</ActionId><SessionId xsi:nil="true"/>'
        f"<EnterpriseUrl/><PartnerUrl/>{notifications}</notifications></soapenv:Body></soapenv:Envelope>"
    )


def _is_acknowledged(reply: requests.Response) -> bool:
    return reply.ok and _ACKNOWLEDGED.search(reply.text) is not None
