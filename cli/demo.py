"""`./syncflow demo`: Syncflow with a Stripe-like and a Salesforce-like system, sample records and a login."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import requests
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from cli import demo_settings
from models.base import utcnow
from models.catalogues import CATALOGUES, Customer
from models.ledger import Process, Schedule
from models.schema import migrate
from models.session import Database
from settings import ROOT, VAR, SettingsError, get_settings, system_options
from workers.runtime import build

FOLDER = VAR / "demo"
ADMIN = "admin@syncflow.example"

#: Ports the demo systems prefer; another free one is taken where these are in use.
STRIPE_PORT, SALESFORCE_PORT = 8420, 8443

#: How often the demo polls Salesforce, seconds: nobody likes to wait a minute for a first impression.
POLL_SECONDS = 5

#: Of customers.
SAMPLES = [
    ("Ada Lovelace", "ada@analytical.example", "+44 20 7946 0018", "12 St James's Square", "London", "SW1Y 4JH", "GB"),
    ("Grace Hopper", "grace@cobol.example", "+1 202 555 0142", "1 Navy Yard", "Washington", "20374", "US"),
    ("Emmy Noether", "emmy@ring.example", "+49 551 555 0101", "Stegemuehlenweg 51", "Goettingen", "37083", "DE"),
    ("Sofia Kovalevskaya", "sofia@top.example", "+46 8 555 010 33", "Sturegatan 56", "Stockholm", "114 36", "SE"),
    ("Maryam Mirzakhani", "maryam@surface.example", "+1 650 555 0119", "450 Serra Mall", "Stanford", "94305", "US"),
    ("Rosalind Franklin", "rosalind@helix.example", "+44 20 7946 0199", "Drayton Gardens", "London", "SW10 9QS", "GB"),
    ("Hedy Lamarr", "hedy@hopping.example", "+43 1 555 0107", "Peter-Jordan-Strasse 12", "Vienna", "1190", "AT"),
    ("Katherine Johnson", "katherine@orbit.example", "+1 757 555 0163", "1 NASA Drive", "Hampton", "23666", "US"),
]


#: sku -> the other columns; prices in cents.
PRODUCTS = {
    "LOOM-1": ("Jacquard loom, hand-threaded", 129_900),
    "CARD-100": ("Punched cards, 100 pieces", 1_450),
    "ABACUS": ("Abacus of walnut", 8_900),
    "VISIT": ("A visit, by the hour", 12_000),
}

#: Number, the customer's place among the samples, status, days until it is due, and (sku, quantity) of its lines.
INVOICES = [
    ("R-1001", 0, "paid", 7, [("LOOM-1", 1), ("CARD-100", 5)]),
    ("R-1002", 1, "open", 14, [("VISIT", 3)]),
    ("R-1003", 4, "open", 30, [("ABACUS", 2), ("CARD-100", 1), ("VISIT", 1)]),
    ("R-1004", 0, "draft", 30, [("CARD-100", 20)]),
]


def arguments(parser: argparse.ArgumentParser) -> None:
    """`demo [--fresh]`."""
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier demo left in var/")


def run(chosen: argparse.Namespace) -> int:
    """Start it all, say what to try, and stop it all again."""
    if chosen.fresh:
        _forget()
    FOLDER.mkdir(parents=True, exist_ok=True)
    settings = get_settings()
    if not _is_free(settings.host, settings.port):
        raise SettingsError(
            f"PORT: {settings.port} is in use on {settings.host}; stop what listens there, or set another"
        )
    migrate(settings.database_url)
    _refuse_a_second(settings.database_url)
    kept = _kept_secrets()
    systems: list[subprocess.Popen[str]] = []
    asked = _stop_asked()
    try:
        environment = _start_systems(systems, kept, f"http://127.0.0.1:{settings.port}")
        os.environ.update(environment)
        password = _prepare()
        command = ["standalone"] if settings.standalone else None
        hub = _start_hub(command)
        where = {"DATABASE_URL": settings.database_url, "BROKER_URL": settings.broker_url}
        try:
            with demo_settings.published(environment | where):
                if _wait_until_healthy(hub, settings.port, asked):
                    _say(settings.port, environment, password)
                return _wait(hub, asked)
        finally:
            _stop([hub])
    finally:
        _stop(systems)


def _refuse_a_second(database_url: str) -> None:
    """Two hubs in one process each on one database would both be right, and confusing."""
    database = Database(database_url)
    with database.read() as connection:
        names = list(connection.execute(sa.select(Process.name).where(Process.kind == "standalone")).scalars())
    database.close()
    for name in names:
        host, _, pid = name.removeprefix("standalone ").rpartition(":")
        if host == socket.gethostname() and _is_alive(int(pid)):
            raise SettingsError(f"DATABASE_URL: Syncflow is running on this database already (process {pid})")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _forget() -> None:
    settings = get_settings()
    if settings.standalone and settings.database_url.endswith(str(VAR / "syncflow.sqlite3")):
        for path in VAR.glob("syncflow.sqlite3*"):
            path.unlink()
    shutil.rmtree(FOLDER, ignore_errors=True)


def _kept_secrets() -> dict[str, str]:
    """Secrets of the demo, made at its first start, so that a second start carries on."""
    path = FOLDER / "secrets.json"
    if not path.exists():
        path.touch(mode=0o600)
        made = {name: secrets.token_hex(16) for name in ("stripe_webhook", "salesforce_webhook", "salesforce_client")}
        path.write_text(json.dumps(made))
    kept: dict[str, str] = json.loads(path.read_text())
    return kept


def _start_systems(systems: list[subprocess.Popen[str]], kept: Mapping[str, str], hub: str) -> dict[str, str]:
    """Start the systems nobody configured an account for; returns the settings that point at them."""
    environment: dict[str, str] = {}
    if "api_key" not in system_options("stripe"):
        secret = f"whsec_{kept['stripe_webhook']}"
        url = _start_system(
            systems,
            STRIPE_PORT,
            ["simulators.stripe", "--data", str(FOLDER / "stripe.json"),
             "--webhook-url", f"{hub}/webhooks/stripe", "--webhook-secret-env", "STRIPE_WEBHOOK_SECRET"],
            {"STRIPE_WEBHOOK_SECRET": secret},
        )  # fmt: skip
        environment |= {"STRIPE_API_KEY": "sk_test_demo", "STRIPE_API_BASE": url, "STRIPE_WEBHOOK_SECRET": secret}
    if not system_options("salesforce"):
        client = {
            "DEMO_SALESFORCE_CLIENT_ID": "syncflow-demo",
            "DEMO_SALESFORCE_CLIENT_SECRET": kept["salesforce_client"],
        }
        url = _start_system(
            systems,
            SALESFORCE_PORT,
            ["simulators.salesforce", "--data", str(FOLDER / "salesforce.sqlite3"), "--certs", str(FOLDER / "certs")],
            client,
        )  # fmt: skip
        environment |= {
            "SALESFORCE_INSTANCE_URL": url,
            "SALESFORCE_CONSUMER_KEY": client["DEMO_SALESFORCE_CLIENT_ID"],
            "SALESFORCE_CONSUMER_SECRET": client["DEMO_SALESFORCE_CLIENT_SECRET"],
            "SALESFORCE_CA_BUNDLE": str(FOLDER / "certs" / "ca.pem"),
        }
    return environment


def _start_system(
    systems: list[subprocess.Popen[str]], port: int, module: list[str], environment: Mapping[str, str]
) -> str:
    """Start one demo system, on another port where this one is taken; returns its address, which it prints first."""
    # The second try is for a port that somebody took after we looked.
    for chosen in (port if _is_free("127.0.0.1", port) else 0, 0):
        process = subprocess.Popen(
            [sys.executable, "-m", *module, "--port", str(chosen)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us: we stop it when the hub is done with it
        )
        systems.append(process)
        assert process.stdout is not None
        if first := process.stdout.readline().split():
            threading.Thread(target=process.stdout.read, daemon=True).start()  # never let it block on a full pipe
            return next(word for word in first if word.startswith("http"))
    raise SystemExit(f"{module[0]} did not start; what it said is above")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _prepare() -> str | None:
    """Sample records, the poll's pace and the first admin; returns the password if one was made."""
    runtime = build()
    database = runtime.database
    with database.write() as connection:
        if connection.execute(sa.select(sa.func.count()).select_from(Customer)).scalar() == 0:
            _write_samples(connection)
        connection.execute(
            sa.update(Schedule).where(Schedule.job == "poll salesforce.customer").values(every_seconds=POLL_SECONDS)
        )
    password = _first_admin(database)
    runtime.close()
    return password


def _write_samples(connection: sa.Connection) -> None:
    """Customers, products, and invoices that point to both."""
    columns = ("name", "email", "phone", "street", "city", "postal_code", "country")
    customers, products, invoices = (CATALOGUES[name] for name in ("customer", "product", "invoice"))
    buyers = [customers.insert(connection, dict(zip(columns, sample, strict=True))) for sample in SAMPLES]
    goods = {
        sku: int(products.insert(connection, {"sku": sku, "name": name, "price": price}))
        for sku, (name, price) in PRODUCTS.items()
    }
    for number, buyer, status, days, lines in INVOICES:
        invoices.insert(
            connection,
            {
                "number": number,
                "customer_id": int(buyers[buyer]),
                "status": status,
                "due_date": utcnow().date() + timedelta(days=days),
                "lines": [
                    {
                        "product_id": goods[sku],
                        "description": PRODUCTS[sku][0],
                        "quantity": quantity,
                        "unit_price": PRODUCTS[sku][1],
                    }
                    for sku, quantity in lines
                ],
            },
        )


def _first_admin(database: Database) -> str | None:
    from models.users import User  # noqa: PLC0415 - workers and the relay need no Flask
    from panel.auth.accounts import create_user  # noqa: PLC0415

    with database.read() as connection:
        if connection.execute(sa.select(User.id).limit(1)).first() is not None:
            return None
    password = secrets.token_urlsafe(12)
    create_user(database, ADMIN, password, "admin")
    return password


def _start_hub(command: list[str] | None) -> subprocess.Popen[Any]:
    """All in one process, or with RabbitMQ the processes of the Procfile."""
    if command:
        full = [sys.executable, str(ROOT / "syncflow"), *command]
    else:
        # The settings read .env themselves, and let the environment win; honcho would do it the other way round.
        full = [sys.executable, "-m", "honcho", "--env", os.devnull, "start"]
    # honcho has a default port of its own.
    environment = {**os.environ, "PORT": str(get_settings().port)}
    return subprocess.Popen(full, cwd=ROOT, env=environment, start_new_session=True)


def _wait_until_healthy(hub: subprocess.Popen[Any], port: int, asked: threading.Event) -> bool:
    deadline = time.monotonic() + 60
    while hub.poll() is None and not asked.is_set() and time.monotonic() < deadline:
        try:
            if requests.get(f"http://127.0.0.1:{port}/healthz", timeout=2).ok:
                return True
        except requests.RequestException:
            time.sleep(0.1)
    return False


def _say(port: int, environment: Mapping[str, str], password: str | None) -> None:
    stripe = environment.get("STRIPE_API_BASE", "your Stripe account")
    salesforce = environment.get("SALESFORCE_INSTANCE_URL", "your Salesforce org").replace("https://", "http://")
    login = f"{ADMIN}  password  {password}" if password else f"{ADMIN} (the password was printed at the first start)"
    statement = "UPDATE customer SET phone = '+44 20 7946 0000' WHERE id = 1"
    print(
        f"""
  Syncflow is running.

    Panel        http://127.0.0.1:{port}
    Log in as    {login}
    Stripe       {stripe}   (a system like it)
    Salesforce   {salesforce}   (a system like it)

  Three things to try:

    1. Change a customer in the database, from outside:
         {_shell_line(get_settings().database_url, statement)}
       and see it in Stripe and in Salesforce within a second.
    2. Change a customer in Stripe (open {stripe}, edit, save):
       a webhook brings it to the database and to Salesforce, and nothing goes back to Stripe.
    3. Change one in Salesforce (open {salesforce}):
       a poll brings it to the database and to Stripe within {POLL_SECONDS} seconds.

  Beside it, in another terminal: ./syncflow status, ./syncflow --help
  Ctrl-C stops everything; started again, it carries on where it stopped.
""",
        flush=True,
    )


def _shell_line(database_url: str, statement: str) -> str:
    """A command that runs this statement from a shell, with what is installed here."""
    url = make_url(database_url)
    if url.get_backend_name() == "postgresql":
        # A password is not for the screen: psql asks for it.
        plain = url.set(drivername="postgresql", password=None).render_as_string()
        return f'psql {shlex.quote(plain)} -c "{statement}"'
    path = shlex.quote(str(url.database))
    if shutil.which("sqlite3"):
        return f"sqlite3 -cmd '.timeout 5000' {path} \"{statement}\""
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2])"
    return f"python3 -c '{code}' {path} \"{statement}\""


def _stop_asked() -> threading.Event:
    """Set by Ctrl-C, SIGTERM or a closed terminal: nothing we started may be left behind."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # started with nohup
            signal.signal(number, lambda *_: asked.set())
    return asked


def _wait(hub: subprocess.Popen[Any], asked: threading.Event) -> int:
    while hub.poll() is None and not asked.is_set():
        asked.wait(0.2)
    if asked.is_set():
        print("\n  Stopping ...", flush=True)
        return 0
    return hub.returncode or 1


def _stop(processes: list[subprocess.Popen[Any]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
