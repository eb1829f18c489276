"""The demo systems behind one small interface, for the tests of subscriber authors.

    with ShopSimulator() as shop:
        seven = shop.add({"name": "Ada"})    # a user works in the shop: a change without an API call
        shop.drop()                          # the next call that writes takes effect, but gets no reply
        ...
        assert shop.writes() == ["POST /contacts"]

Write a subclass of `Simulator` for a system of your own. It may omit what the system does not support; the tests of
`tests/subscribers/contract.py` that need it are then skipped.
"""

import hashlib
import hmac
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

from simulators.rest import DEMO_TOKEN, RestSystem
from simulators.salesforce import Credentials
from simulators.salesforce import SalesforceSimulator as Org
from simulators.stripe import StripeLike

Json = dict[str, Any]

#: The secret that signs the simulators' webhooks.
WEBHOOK_SECRET = "a-long-random-text-for-webhooks"


class Cannot(Exception):
    """The system does not support this operation."""


class Simulator(ABC):
    """One kind of record in one simulated system, which runs within a `with` block."""

    #: Values that no log, page or ledger row may show.
    secrets: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def options(self) -> Json:
        """Return the settings of the hub's system class, by the name of the option."""

    @abstractmethod
    def ids(self) -> list[str]:
        """Return the ids of all records, oldest first."""

    @abstractmethod
    def add(self, data: Mapping[str, Any]) -> str:
        """Create a record as a user of the system and return its id. `data` is nested, as in the system's JSON."""

    @abstractmethod
    def edit(self, id: str, data: Mapping[str, Any]) -> None:
        """Change these fields as a user of the system."""

    @abstractmethod
    def remove(self, id: str) -> None:
        """Delete a record as a user of the system. Raises `Cannot` if the system does not allow it."""

    @abstractmethod
    def writes(self) -> list[str]:
        """Return the calls so far that create, change or delete (`POST /contacts`), without reads and logins."""

    @abstractmethod
    def fail(self, status: int, times: int = 1) -> None:
        """Answer the next calls with this HTTP status, without processing them."""

    @abstractmethod
    def drop(self, times: int = 1) -> None:
        """Process the next calls that write, but cut the connection before the reply."""

    def expire_login(self) -> None:
        """Reject the current login; the next one works. A fixed key is rejected once."""
        self.fail(401)

    def merge(self, winner: str, loser: str) -> None:
        """Merge two records as a user of the system. Raises `Cannot` if the system cannot merge."""
        self.remove(loser)

    def webhook(self, id: str) -> tuple[bytes, dict[str, str]] | None:
        """Return (body, headers) of the webhook that reports a change of this record; None if there is none."""
        return None

    @abstractmethod
    def reset(self) -> None:
        """Remove all records, calls and faults."""

    @abstractmethod
    def start(self) -> None:
        """Start to answer requests."""

    @abstractmethod
    def stop(self) -> None:
        """Stop answering requests."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class ShopSimulator(Simulator):
    """The contacts of the demo shop, a plain JSON REST system: see `simulators.rest`."""

    secrets = (DEMO_TOKEN, WEBHOOK_SECRET)

    def __init__(self) -> None:
        self.shop = RestSystem(needs_email=False)

    def options(self) -> Json:
        return {"url": self.shop.url, "token": DEMO_TOKEN, "webhook_secret": WEBHOOK_SECRET}

    def ids(self) -> list[str]:
        return [str(one["id"]) for one in self.shop.contacts.page({}, 1000, 0)]

    def add(self, data: Mapping[str, Any]) -> str:
        return str(self.shop.contacts.create(dict(data))["id"])

    def edit(self, id: str, data: Mapping[str, Any]) -> None:
        self.shop.contacts.update(int(id), dict(data))

    def remove(self, id: str) -> None:
        self.shop.contacts.delete(int(id))

    def writes(self) -> list[str]:
        return [f"{call.method} {call.path}" for call in self.shop.journal if call.method != "GET"]

    def fail(self, status: int, times: int = 1) -> None:
        self.shop.faults.fail(status, times)

    def drop(self, times: int = 1) -> None:
        for method in ("POST", "PATCH", "PUT", "DELETE"):
            self.shop.faults.drop(times, method=method)

    def webhook(self, id: str) -> tuple[bytes, dict[str, str]] | None:
        now = self.shop.contacts.get(int(id))
        event = {"id": f"evt_{uuid.uuid4().hex}", "event": "contact.updated", "occurred_at": now["updated_at"]}
        body = json.dumps({**event, "data": now}).encode()
        return body, {"X-Signature": hmac.new(WEBHOOK_SECRET.encode(), body, hashlib.sha256).hexdigest()}

    def reset(self) -> None:
        self.shop.contacts.clear()
        self.shop.faults.clear()
        self.shop.journal.clear()

    def start(self) -> None:
        self.shop.start()

    def stop(self) -> None:
        self.shop.stop()


class StripeSimulator(Simulator):
    """Objects of one kind in a Stripe-like system: `customers` or `products`; see `simulators.stripe`."""

    KEY: ClassVar[str] = "sk_test_4eC39HqLyjWDarjtT1zdp7dc"
    secrets = (KEY, WEBHOOK_SECRET)

    def __init__(self, kind: str = "customers") -> None:
        self.kind = kind
        self.stripe = StripeLike()

    def options(self) -> Json:
        return {"api_key": self.KEY, "api_base": self.stripe.url, "webhook_secret": WEBHOOK_SECRET}

    def ids(self) -> list[str]:
        return [str(one["id"]) for one in reversed(self._all())]

    def add(self, data: Mapping[str, Any]) -> str:
        given = {name: value for name, value in data.items() if value is not None}
        if self.kind == "customers":
            return str(self.stripe.create_customer(**given)["id"])
        return str(self.stripe.by_hand("POST", f"/v1/{self.kind}", **given)["id"])

    def edit(self, id: str, data: Mapping[str, Any]) -> None:
        if self.kind == "customers":
            self.stripe.edit_customer(id, **data)
        else:
            self.stripe.by_hand("POST", f"/v1/{self.kind}/{id}", **data)

    def remove(self, id: str) -> None:
        if self.kind == "customers":
            self.stripe.delete_customer(id)
            return
        try:
            self.stripe.by_hand("DELETE", f"/v1/{self.kind}/{id}")
        except (
            Exception
        ) as error:  # the library's exception class, which must not be imported before the library is loaded
            raise Cannot(f"{self.kind} {id}: {error}") from error

    def writes(self) -> list[str]:
        return [f"{call.method} {call.path}" for call in self.stripe.journal if call.method != "GET"]

    def fail(self, status: int, times: int = 1) -> None:
        self.stripe.faults.fail(status, times)

    def drop(self, times: int = 1) -> None:
        for method in ("POST", "DELETE"):
            self.stripe.faults.drop(times, method=method)

    def webhook(self, id: str) -> tuple[bytes, dict[str, str]] | None:
        now = next(one for one in self._all() if one["id"] == id)
        event = {"id": f"evt_{uuid.uuid4().hex}", "object": "event", "created": int(time.time())}
        body = json.dumps({**event, "type": f"{self.kind[:-1]}.updated", "data": {"object": now}}).encode()
        at = int(time.time())
        digest = hmac.new(WEBHOOK_SECRET.encode(), b"%d.%s" % (at, body), hashlib.sha256).hexdigest()
        return body, {"Stripe-Signature": f"t={at},v1={digest}"}

    def reset(self) -> None:
        self.stripe.reset()
        self.stripe.faults.clear()
        self.stripe.journal.clear()

    def start(self) -> None:
        self.stripe.start()

    def stop(self) -> None:
        self.stripe.stop()

    def _all(self) -> list[Json]:
        """Return all objects, newest first."""
        if self.kind == "customers":
            return self.stripe.customers()
        return list(self.stripe.by_hand("GET", f"/v1/{self.kind}", limit=100)["data"])


class SalesforceSimulator(Simulator):
    """Records of one object in a simulated org; see `simulators.salesforce`."""

    secrets = (Credentials().client_secret, WEBHOOK_SECRET)

    def __init__(self, object_name: str = "Account") -> None:
        self.object_name = object_name
        self.org = Org()

    def options(self) -> Json:
        return {
            "instance_url": self.org.url,
            "ca_bundle": self.org.ca_file,
            "consumer_key": self.org.credentials.client_id,
            "consumer_secret": self.org.credentials.client_secret,
            "webhook_secret": WEBHOOK_SECRET,
        }

    def ids(self) -> list[str]:
        return [str(one["Id"]) for one in self.org.store.all(self.object_name)]

    def add(self, data: Mapping[str, Any]) -> str:
        return self.org.add(self.object_name, **data)

    def edit(self, id: str, data: Mapping[str, Any]) -> None:
        self.org.edit(self.object_name, id, **data)

    def remove(self, id: str) -> None:
        self.org.remove(self.object_name, id)

    def writes(self) -> list[str]:
        calls = [one for one in self.org.journal.entries() if one.method != "GET" and "/oauth2/" not in one.path]
        return [f"{one.method} {one.path.partition('?')[0]}" for one in calls]

    def fail(self, status: int, times: int = 1) -> None:
        codes = {401: "INVALID_SESSION_ID", 429: "REQUEST_LIMIT_EXCEEDED", 500: "UNKNOWN_EXCEPTION"}
        self.org.fail(times, status, codes.get(status, "SERVER_UNAVAILABLE"), path="/services/data/")

    def drop(self, times: int = 1) -> None:
        for method in ("POST", "PATCH", "DELETE"):
            self.org.drop(times, method=method, path="/services/data/")

    def expire_login(self) -> None:
        self.org.expire_sessions()

    def merge(self, winner: str, loser: str) -> None:
        if self.object_name not in ("Account", "Contact"):
            raise Cannot(f"Salesforce merges no {self.object_name}")
        self.org.store.merge(self.object_name, winner, [loser])

    def webhook(self, id: str) -> tuple[bytes, dict[str, str]] | None:
        event = {"id": uuid.uuid4().hex, "sobject": self.object_name, "record": {"Id": id}}
        return json.dumps(event).encode(), {"X-Syncflow-Secret": WEBHOOK_SECRET}

    def reset(self) -> None:
        self.org.org.reset()
        self.org.faults.clear()
        self.org.journal.clear()

    def start(self) -> None:
        self.org.start()

    def stop(self) -> None:
        self.org.stop()
