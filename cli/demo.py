"""`./syncflow demo`: Syncflow with simulators of Stripe and Salesforce, sample records and a user."""

from __future__ import annotations

import argparse
import importlib.util
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
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import requests
import sqlalchemy as sa
from sqlalchemy.engine import make_url

import child_processes
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

#: Ports of the simulators; each uses another free port if its own is taken.
STRIPE_PORT = 8420
SALESFORCE_PORT = 8443

#: How often the demo polls Salesforce: more often than usual, so that a first trial does not wait a minute.
POLL_SECONDS = 5

#: How long the hub may take to answer after its start, and a process to stop before it is killed.
START_SECONDS = 60
STOP_SECONDS = 30

#: The processes of a hub with RabbitMQ, as in the Procfile.
FLEET = ("web", "relay", "worker", "scheduler")

#: Customers: name, email, phone, street, city, postal code and country.
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


#: SKU -> name and price in cents.
PRODUCTS = {
    "LOOM-1": ("Jacquard loom, hand-threaded", 129_900),
    "CARD-100": ("Punched cards, 100 pieces", 1_450),
    "ABACUS": ("Abacus of walnut", 8_900),
    "VISIT": ("A visit, by the hour", 12_000),
}

#: Number, index of the customer in SAMPLES, status, days until it is due, and (SKU, quantity) of its lines.
INVOICES = [
    ("R-1001", 0, "paid", 7, [("LOOM-1", 1), ("CARD-100", 5)]),
    ("R-1002", 1, "open", 14, [("VISIT", 3)]),
    ("R-1003", 4, "open", 30, [("ABACUS", 2), ("CARD-100", 1), ("VISIT", 1)]),
    ("R-1004", 0, "draft", 30, [("CARD-100", 20)]),
]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fresh", action="store_true", help="delete the database and secrets of earlier demos in var/ first"
    )


def run(chosen: argparse.Namespace) -> int:
    """Start the simulators and the hub, print what to try, and stop everything at the end."""
    if importlib.util.find_spec("localstripe") is None:
        raise SettingsError(
            "The demo needs packages that a server does not: start it with `make run`, which installs them"
        )
    if chosen.fresh:
        _forget()
    FOLDER.mkdir(parents=True, exist_ok=True)
    settings = get_settings()
    if not _is_free(settings.host, settings.port):
        raise SettingsError(
            f"PORT: {settings.port} is in use on {settings.host}; stop the process that uses it, or set another port"
        )
    migrate(settings.database_url)
    _refuse_second_hub(settings.database_url)
    kept = _kept_secrets()
    systems: list[subprocess.Popen[str]] = []
    stop = _stop_event()
    try:
        environment = _start_systems(systems, kept, f"http://127.0.0.1:{settings.port}")
        os.environ.update(environment)
        password = _prepare()
        hub = _start_hub(["standalone"] if settings.standalone else FLEET)
        where = {"DATABASE_URL": settings.database_url, "BROKER_URL": settings.broker_url}
        try:
            with demo_settings.published(environment | where):
                if _wait_until_healthy(hub, settings.port, stop):
                    _print_welcome(settings.port, environment, password)
                return _wait(hub, stop)
        finally:
            _stop(hub)
    finally:
        _stop(systems)


def _refuse_second_hub(database_url: str) -> None:
    """Raise SettingsError if a standalone hub of this machine already uses the database."""
    database = Database(database_url)
    with database.read() as connection:
        names = list(connection.execute(sa.select(Process.name).where(Process.kind == "standalone")).scalars())
    database.close()
    for name in names:
        host, _, pid = name.removeprefix("standalone ").rpartition(":")
        if host == socket.gethostname() and _is_alive(int(pid)):
            raise SettingsError(f"DATABASE_URL: Syncflow already runs on this database (process {pid}); stop it first")


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
    """Return the secrets of the demo; they are created at its first start and kept."""
    path = FOLDER / "secrets.json"
    if not path.exists():
        path.touch(mode=0o600)
        made = {name: secrets.token_hex(16) for name in ("stripe_webhook", "salesforce_webhook", "salesforce_client")}
        path.write_text(json.dumps(made))
    kept: dict[str, str] = json.loads(path.read_text())
    return kept


def _start_systems(systems: list[subprocess.Popen[str]], kept: Mapping[str, str], hub: str) -> dict[str, str]:
    """Start simulators of the systems without a configured account; return the settings that point at them."""
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
    """Start one simulator, on another port if this one is taken; return its address, which it prints first."""
    # The second attempt is for a port that another process took after the check.
    for chosen in (port if _is_free("127.0.0.1", port) else 0, 0):
        process: subprocess.Popen[str] = (
            child_processes.start(  # in its own session: Ctrl-C must reach only us, the hub stops before its systems
                [sys.executable, "-m", *module, "--port", str(chosen)],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        systems.append(process)
        assert process.stdout is not None
        if first := process.stdout.readline().split():
            threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would block the simulator
            return next(word for word in first if word.startswith("http"))
    raise SystemExit(f"{module[0]} did not start; see its output above")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _prepare() -> str | None:
    """Write sample records, set the poll interval, create the first admin; return its password if it is new."""
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
    """Write customers, products, and invoices that refer to both."""
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


def _start_hub(kinds: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Start the processes of the hub; with several, each line of output begins with the kind of its process."""
    alone = len(kinds) == 1
    started = []
    for kind in kinds:
        output = {} if alone else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = child_processes.start([sys.executable, str(ROOT / "syncflow"), kind], cwd=ROOT, **output)
        started.append(process)
        if not alone:
            threading.Thread(target=_print_output, args=(kind, process), daemon=True).start()
    return started


def _print_output(kind: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(f"{kind:<10}| {line}", end="", flush=True)


def _wait_until_healthy(hub: list[subprocess.Popen[str]], port: int, stop: threading.Event) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while _run(hub) and not stop.is_set() and time.monotonic() < deadline:
        try:
            if requests.get(f"http://127.0.0.1:{port}/healthz", timeout=2).ok:
                return True
        except requests.RequestException:
            time.sleep(0.1)
    return False


def _print_welcome(port: int, environment: Mapping[str, str], password: str | None) -> None:
    stripe = environment.get("STRIPE_API_BASE", "your Stripe account")
    salesforce = environment.get("SALESFORCE_INSTANCE_URL", "your Salesforce org").replace("https://", "http://")
    login = f"{ADMIN}  password  {password}" if password else f"{ADMIN} (the password was printed at the first start)"
    statement = "UPDATE customer SET phone = '+44 20 7946 0000' WHERE id = 1"
    print(
        f"""
  Syncflow is running.

    Panel        http://127.0.0.1:{port}
    Log in as    {login}
    Stripe       {stripe}   (simulator)
    Salesforce   {salesforce}   (simulator)

  Three things to try:

    1. Change a customer in the database:
         {_shell_line(get_settings().database_url, statement)}
       Stripe and Salesforce have the change within a second.
    2. Change a customer in Stripe (open {stripe}, edit, save):
       a webhook delivers the change to the database and to Salesforce, but not back to Stripe.
    3. Change a customer in Salesforce (open {salesforce}):
       a poll delivers the change to the database and to Stripe within {POLL_SECONDS} seconds.

  In another terminal: ./syncflow status, ./syncflow --help
  Ctrl-C stops everything; the next start continues where this one stopped.
""",
        flush=True,
    )


def _shell_line(database_url: str, statement: str) -> str:
    """Return a shell command that runs this statement with the tools of this machine."""
    url = make_url(database_url)
    if url.get_backend_name() == "postgresql":
        # No password on the screen: psql prompts for it.
        plain = url.set(drivername="postgresql", password=None).render_as_string()
        return f'psql {shlex.quote(plain)} -c "{statement}"'
    path = shlex.quote(str(url.database))
    if shutil.which("sqlite3"):
        return f"sqlite3 -cmd '.timeout 5000' {path} \"{statement}\""
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2])"
    return f"python3 -c '{code}' {path} \"{statement}\""


def _stop_event() -> threading.Event:
    """Return an event set by Ctrl-C, SIGTERM, a closed terminal, or the end of what started us."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # started with nohup
            signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_watch_parent, args=(stop, child_processes.is_orphaned()), daemon=True).start()
    return stop


def _watch_parent(stop: threading.Event, is_orphaned: Callable[[], bool]) -> None:
    while not stop.wait(0.2):
        if is_orphaned():
            stop.set()


def _run(hub: list[subprocess.Popen[str]]) -> bool:
    return all(process.poll() is None for process in hub)


def _wait(hub: list[subprocess.Popen[str]], stop: threading.Event) -> int:
    """Wait until a process of the hub ends or `stop` is set; return the exit status."""
    while _run(hub) and not stop.is_set():
        stop.wait(0.2)
    if stop.is_set():
        print("\n  Stopping ...", flush=True)
        return 0
    return next((process.returncode for process in hub if process.returncode), 1)


def _stop(processes: list[subprocess.Popen[Any]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
