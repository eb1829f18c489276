"""Salesforce, with simple-salesforce: one org, and a subscriber for each of its objects that is kept.

| file         | what it holds                                                              |
|--------------|----------------------------------------------------------------------------|
| `options`    | the settings; `login`: the three ways to a session                         |
| `system`     | the org: its session, its daily calls; `incoming`: what it sends by itself |
| `failures`   | errorCode -> what to do next                                               |
| `subscriber` | any object: collections of 200 a call, polls; `bulk`: Bulk API 2.0         |
| `with_rows`  | objects with child rows; `objects`: those that ship                        |
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
