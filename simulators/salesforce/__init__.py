"""A simulated Salesforce org, faithful on the wire, for tests, the demo and authors of connectors.

`SalesforceSimulator` runs it inside a process, `python -m simulators.salesforce` as one of its own.
"""

from .org import Credentials
from .server import SalesforceSimulator

__all__ = ["Credentials", "SalesforceSimulator"]
