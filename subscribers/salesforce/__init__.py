"""Salesforce, with simple-salesforce: one org, and a subscriber for each of its synchronized objects.

| file                | what it holds                                                          |
|---------------------|------------------------------------------------------------------------|
| `options`           | the settings; `login`: the three ways to log in                        |
| `system`            | the org: its session and daily API calls                               |
| `outbound_messages` | the webhooks: callouts and outbound messages                           |
| `codes`, `failures` | errorCode -> class of error                                            |
| `subscriber`        | any object: collections of 200 per call, polls; `bulk`: Bulk API 2.0   |
| `line_items`        | objects with child rows; `objects`: the included objects               |
| `describe`          | the fields of an object, and the login's permissions                   |
"""

from subscribers.salesforce.line_items import SalesforceWithLineItems
from subscribers.salesforce.objects import SalesforceAccount, SalesforceContact, SalesforceInvoice, SalesforceProduct
from subscribers.salesforce.options import SalesforceOptions
from subscribers.salesforce.subscriber import SalesforceSubscriber
from subscribers.salesforce.system import Salesforce

__all__ = [
    "Salesforce",
    "SalesforceAccount",
    "SalesforceContact",
    "SalesforceInvoice",
    "SalesforceOptions",
    "SalesforceProduct",
    "SalesforceSubscriber",
    "SalesforceWithLineItems",
]
