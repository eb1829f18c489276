"""Run `./syncflow demo` as `make run` does, and read its output as a user would."""

import re
import subprocess
from pathlib import Path

import requests

from settings import ROOT
from tests.acceptance.processes import (
    Process,
    SalesforceSystem,
    Sql,
    StripeSystem,
    environment,
    eventually,
    free_port,
    submit,
)

#: Seconds from the command until the page is printed, on a busy machine.
START_SECONDS = 60.0


class Demo:
    """The demo, started and stopped with one folder and one port."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.settings = environment(PORT=str(self.port), SYNCFLOW_VAR=str(folder / "var"), **settings)
        self.database_url = settings.get("DATABASE_URL", f"sqlite:///{folder / 'var' / 'syncflow.sqlite3'}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the demo and read its output."""
        self.process = Process("demo", ["./syncflow", "demo"], self.settings, self.folder)
        assert self.process.wait_for(r"^ +Panel +(\S+)", START_SECONDS) == self.url
        self.process.wait_for(r"(Ctrl-C stops everything)")
        assert requests.get(f"{self.url}/healthz", timeout=10).status_code == 200
        self.stripe = StripeSystem(self.process.wait_for(r"^ +Stripe +(\S+)"))
        self.salesforce = SalesforceSystem(self.process.wait_for(r"^ +Salesforce +(\S+)"))
        self.sql = Sql(self.database_url)

    def log_in(self) -> requests.Response:
        """Log in to the panel with the printed credentials and return the page that follows."""
        who, password = re.search(r"Log in as +(\S+) +password +(\S+)", self.process.printed).groups()  # type: ignore[union-attr]
        return submit(f"{self.url}/login", {"email": who, "password": password})

    def command(self, *arguments: str) -> str:
        """Return the output of `./syncflow` with these arguments, run in another terminal."""
        call = ["./syncflow", *arguments]
        return subprocess.run(call, cwd=ROOT, env=self.settings, check=True, capture_output=True, text=True).stdout

    def try_the_first_thing(self) -> None:
        """Run the printed command in a shell, as a user would."""
        command = self.process.wait_for(r"^ +((?:sqlite3|psql|python3) .*)$")
        subprocess.run(command, shell=True, cwd=ROOT, check=True, timeout=30)  # noqa: S602


def in_both(demo: Demo, record: int, phone: str) -> None:
    """Wait until both systems have this phone number."""
    eventually(lambda: demo.stripe.customer(record)["phone"] == phone)
    eventually(lambda: demo.salesforce.account(record)["Phone"] == phone)
