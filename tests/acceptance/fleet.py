"""A complete fleet: database, vhost, both external systems, and the processes of the Procfile."""

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from settings import ROOT
from tests.acceptance.processes import (
    Process,
    SalesforceSystem,
    Sql,
    StripeSystem,
    ended_at_the_end,
    environment,
    eventually,
    free_port,
    vhost,
)
from tests.support import services

#: Lease time in seconds, short so that a test does not wait long until the work of a killed worker is taken over.
LEASE_SECONDS = 4.0

#: Seconds between two polls of Salesforce by the scheduler.
POLL_SECONDS = 2


class Fleet:
    """The processes, and the addresses of everything they use."""

    def __init__(self, database_url: str, broker_url: str, folder: Path) -> None:
        self.folder = folder
        self.broker_url = broker_url
        self.port = free_port()
        self.webhook_secret = f"whsec_{secrets.token_hex(16)}"
        self.client_secret = secrets.token_hex(16)
        self.stripe_port = free_port()
        self.processes: dict[str, Process] = {}
        self.settings = environment(
            DATABASE_URL=database_url,
            BROKER_URL=broker_url,
            PORT=str(self.port),
            SECRET_KEY=secrets.token_hex(32),
            SYNCFLOW_VAR=str(folder / "var"),
            LEASE_SECONDS=str(LEASE_SECONDS),
            STALE_SECONDS="1",
            SWEEP_SECONDS="0.2",
            RETRY_MIN_SECONDS="0.3",
            PROBE_MIN_SECONDS="0.3",
            PROBE_MAX_SECONDS="1",
            GRACE_SECONDS="10",
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Start every process except the scheduler, and wait until they are ready."""
        stripe, salesforce = self.start_stripe(), self._start_salesforce()
        migrated = self.syncflow("migrate")
        assert migrated.returncode == 0, migrated.stderr
        self.stripe = StripeSystem(stripe.wait_for(r"^(http\S+)"))
        self.salesforce = SalesforceSystem(url := salesforce.wait_for(r"^(http\S+)"))
        self.settings |= {
            "STRIPE_API_KEY": "sk_test_acceptance",
            "STRIPE_API_BASE": self.stripe.url,
            "STRIPE_WEBHOOK_SECRET": self.webhook_secret,
            "SALESFORCE_INSTANCE_URL": url,
            "SALESFORCE_CONSUMER_KEY": "acceptance",
            "SALESFORCE_CONSUMER_SECRET": self.client_secret,
            "SALESFORCE_CA_BUNDLE": str(self.folder / "certs" / "ca.pem"),
        }
        self.sql = Sql(self.settings["DATABASE_URL"])
        for kind in ("web", "relay", "worker"):
            self.start(kind)
        eventually(lambda: requests.get(f"{self.url}/healthz", timeout=5).status_code == 200)
        kinds = {"web", "relay", "worker"}
        eventually(lambda: kinds <= {row["kind"] for row in self.sql("SELECT kind FROM process")})
        # Poll only what a test asks for, so that every call in a journal has a known cause.
        self.sql("UPDATE schedule SET paused_at = current_timestamp WHERE job <> 'poll salesforce.customer'")
        self.sql("UPDATE schedule SET every_seconds = :s WHERE job = 'poll salesforce.customer'", s=POLL_SECONDS)

    def start(self, kind: str) -> Process:
        """Start one process of the Procfile."""
        self.processes[kind] = Process(kind, ["./syncflow", kind], self.settings, self.folder)
        return self.processes[kind]

    def start_stripe(self) -> Process:
        """Start the Stripe-like system with the data from its last run."""
        data = str(self.folder / "stripe.json")
        command = ["simulators.stripe", "--port", str(self.stripe_port), "--data", data]
        hooks = ["--webhook-url", f"{self.url}/webhooks/stripe", "--webhook-secret-env", "HOOK_SECRET"]
        return self._start_system("stripe", [*command, *hooks], HOOK_SECRET=self.webhook_secret)

    def _start_salesforce(self) -> Process:
        command = ["simulators.salesforce", "--port", "0", "--certs", str(self.folder / "certs")]
        client = {"DEMO_SALESFORCE_CLIENT_ID": "acceptance", "DEMO_SALESFORCE_CLIENT_SECRET": self.client_secret}
        return self._start_system("salesforce", command, **client)

    def _start_system(self, name: str, module: list[str], **settings: str) -> Process:
        command = [sys.executable, "-m", *module]
        self.processes[name] = Process(name, command, self.settings | settings, self.folder)
        return self.processes[name]

    def syncflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one command until it exits."""
        return subprocess.run(
            ["./syncflow", *arguments],
            cwd=ROOT,
            env=self.settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def quiet(self) -> None:
        """Wait until nothing is outstanding, and then long enough for a sweep to find anything that was missed."""
        self.sql.settled()
        time.sleep(1.5)
        self.sql.settled()


@contextmanager
def fleet_of(postgres_server: str, rabbitmq_server: str, folder: Path) -> Iterator[Fleet]:
    """Yield a running fleet with a fresh database and vhost."""
    with services.fresh_database(postgres_server) as database_url, vhost(rabbitmq_server) as broker_url:
        fleet = Fleet(database_url, broker_url, folder)
        with ended_at_the_end(fleet.settings):
            fleet.up()
            yield fleet
