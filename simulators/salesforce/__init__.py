"""A simulated Salesforce org, faithful on the wire, for tests, the demo and connector authors.

`SalesforceSimulator` runs it inside the current process, `python -m simulators.salesforce` in its own process.
"""

from .org import Credentials
from .server import SalesforceSimulator

__all__ = ["Credentials", "SalesforceSimulator"]
