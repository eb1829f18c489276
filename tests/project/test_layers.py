"""The architecture as one table of allowed imports, checked against every import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import conductor
from tests.support.documents import table

ROOT = Path(__file__).resolve().parents[2]

#: Top-level folder or file -> which of our modules it may import. Imports only go down:
#: models <- subscribers <- conductor <- workers <- panel <- cli.
MAY_IMPORT: dict[str, set[str]] = {
    "child_processes.py": set(),
    "redaction.py": set(),
    "settings.py": {"redaction"},
    "i18n.py": set(),
    "models": {"redaction"},
    "migrations": {"models", "models.users", "settings"},
    "messaging": set(),
    "broker.py": {"messaging", "settings"},
    "subscribers": {"models.catalogues", "models.record_ids", "settings", "i18n", "redaction"},
    "conductor": {"subscribers", "models", "settings", "i18n", "redaction"},
    "workers": {"conductor", "broker", "subscribers", "models", "settings", "redaction"},
    "panel": {"conductor", "subscribers", "models", "models.users", "settings", "i18n", "redaction"},
    "cli": {
        "child_processes",
        "panel",
        "workers",
        "broker",
        "conductor",
        "subscribers",
        "models",
        "models.users",
        "settings",
        "redaction",
    },
    "simulators": set(),
    "syncflow": {"cli"},
}

#: Third-party packages that belong to one layer -> the only places that may import them.
ONLY_IN: dict[str, set[str]] = {
    "dramatiq": {"broker.py", "messaging", "workers"},
    "periodiq": {"messaging", "workers"},
    "pika": {"broker.py", "messaging"},
    "flask": {"panel"},
    "flask_admin": {"panel"},
    "flask_login": {"panel"},
    "flask_security": {"panel", "models/users.py"},
    "flask_wtf": {"panel"},
    "werkzeug": {"panel", "cli"},
    "authlib": {"panel"},
    "qrcode": {"panel"},
    "babel": {"panel"},
    "flask_babel": {"panel"},
    "alembic": {"migrations", "models/schema.py"},
    "psycopg": {"models"},
    "sqlite3": {"models", "simulators", "subscribers/files/state.py"},
    "simple_salesforce": {"subscribers"},
    "defusedxml": {"subscribers"},
    "stripe": {"subscribers"},
    "requests": {"subscribers", "workers", "cli", "simulators"},
    "urllib3": {"subscribers"},
    "jmespath": {"subscribers"},
    "phonenumbers": {"subscribers"},
    "pycountry": {"subscribers"},
    "iso4217": {"subscribers"},
    "nameparser": {"subscribers"},
    "email_validator": {"subscribers"},
    "aiohttp": {"simulators"},
    "localstripe": {"simulators"},
    "prometheus_client": {"panel"},
    "structlog": {"workers"},
    "pydantic_settings": {"settings.py"},
    "dotenv": {"settings.py"},
}

#: The rules inside the engine: part of conductor/ -> the parts it may import. `outward`, `inward` and `reports` never
#: import one another: each can be read and changed without the other two.
ENGINE: dict[str, set[str]] = {
    "policy.py": set(),
    "queue_report.py": set(),
    "publisher.py": {"queue_report.py"},
    "context.py": {"policy.py", "publisher.py"},
    "throughput_counter.py": {"context.py"},
    "links": {"context.py"},
    "internal": {"links"},
    "unsubscriptions.py": {"context.py", "links"},
    "hub.py": {"context.py", "links"},
    "records.py": {"context.py", "unsubscriptions.py"},
    "mappings": {"context.py", "links", "internal"},
    "conflicts.py": {"context.py", "links", "mappings"},
    "systems": {"context.py", "mappings"},
    "dead_letters": {"context.py", "links"},
    "outward": {"context.py", "links", "internal", "mappings", "systems", "dead_letters"},
    "inward": {"context.py", "links", "internal", "mappings", "systems", "dead_letters"},
    "reports": {"context.py", "queue_report.py", "throughput_counter.py", "links", "records.py", "dead_letters"},
    "tasks": {"context.py", "links", "internal", "mappings", "conflicts.py", "systems", "dead_letters"}
    | {"outward", "inward"},
    "capture_watch.py": {"context.py", "reports", "tasks"},
    "retention.py": {"context.py", "throughput_counter.py", "tasks"},
    "schedule.py": {"context.py", "retention.py"},
}

#: These two assemble the parts, so they may import all of them.
ENGINE_TOP = {"conductor.py", "__init__.py"}

#: These import the engine only as `from conductor import Name`, never one of its modules.
USE_THE_PACKAGE = ("workers", "panel", "cli")

#: Not part of a running hub, so not in the table.
OUTSIDE = {"tests", "scripts", "docs", "benchmarks"}

#: Modules that the entry of their package does not cover: the panel's users need Flask, workers do not.
NEEDS_ITS_OWN_ENTRY = {"models.users"}


def places() -> list[str]:
    """Return our top-level Python files and the top-level folders that contain Python files."""
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name != "var" and any(path.rglob("*.py"))
    }
    files = {path.name for path in ROOT.glob("*.py")} | {"syncflow"}
    return sorted((folders | files) - OUTSIDE)


def sources(place: str) -> list[Path]:
    path = ROOT / place
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def module_names() -> set[str]:
    """Return the dotted names of all our modules."""
    names = set()
    for place in places():
        for path in sources(place):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names | {Path(place).stem for place in places()}


def _imports(function: ast.expr) -> bool:
    """Return whether a call of this function imports a module."""
    if isinstance(function, ast.Attribute):
        return function.attr == "import_module"
    return isinstance(function, ast.Name) and function.id == "__import__"


def imported(path: Path, text: str | None = None) -> Iterator[tuple[str, int]]:
    """Yield (dotted name, line) of every import in a file, including those in functions and under `if`."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text() if text is None else text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from models import users` imports a module, `from models.users import User` a name of one.
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and _imports(node.func):
            name = node.args[0]
            if isinstance(name, ast.JoinedStr):  # f"localstripe.{name}": the constant start names the package
                name = name.values[0]
            yield (str(name.value) if isinstance(name, ast.Constant) else "something computed"), node.lineno


def allowed(name: str, place: str, entries: set[str]) -> bool:
    """Return whether the table allows this import: of the place itself, of an entry or of a module below an entry."""
    if name.split(".", maxsplit=1)[0] == Path(place).stem:
        return True
    special = next((special for special in NEEDS_ITS_OWN_ENTRY if f"{name}.".startswith(f"{special}.")), None)
    if special is not None:
        return special in entries
    return any(f"{name}.".startswith(f"{entry}.") for entry in entries)


def broken(path: Path, place: str, text: str | None = None) -> list[str]:
    """Return the rules that the imports of a file break, one sentence each."""
    here = path.relative_to(ROOT).as_posix()
    ours = {Path(name).stem for name in MAY_IMPORT} | {"tests"}
    found = []
    for name, line in imported(path, text):
        top = name.split(".")[0]
        if name == "something computed":
            found.append(f"{here}:{line} computes what it imports, which no tool can check or search")
        elif top in ours and not allowed(name, place, MAY_IMPORT[place]):
            found.append(f"{here}:{line} imports {name}; {place} may import {sorted(MAY_IMPORT[place]) or 'nothing'}")
        elif top in ONLY_IN and not {place, here} & ONLY_IN[top]:
            found.append(f"{here}:{line} imports {name}; only {sorted(ONLY_IN[top])} may")
    return found


def test_everything_at_the_top_is_in_the_table() -> None:
    assert set(places()) == set(MAY_IMPORT), "a new folder gets its line in MAY_IMPORT, a removed one loses it"


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_imports_keep_to_the_table(place: str) -> None:
    assert [sentence for path in sources(place) for sentence in broken(path, place)] == []


def test_the_table_has_no_cycle_and_no_entry_too_many() -> None:
    below = {Path(place).stem: {entry.split(".")[0] for entry in entries} for place, entries in MAY_IMPORT.items()}
    while leaves := {place for place, entries in below.items() if not entries & set(below)}:
        below = {place: entries for place, entries in below.items() if place not in leaves}
    assert below == {}, "arrows only go down"
    for place, entries in MAY_IMPORT.items():
        used = {name for path in sources(place) for name, _ in imported(path)}
        for entry in entries:
            assert any(f"{name}.".startswith(f"{entry}.") for name in used), f"{place} does not use {entry}"


def engine_part(name: str) -> str:
    """Return the part of the engine that a dotted name such as conductor.links.state belongs to."""
    first = name.split(".")[1]
    return first if (ROOT / "conductor" / first).is_dir() else f"{first}.py"


def engine_violations(path: Path, text: str | None = None) -> list[str]:
    """Return the rules that the imports of a file in conductor/ break, one sentence each."""
    here = path.relative_to(ROOT)
    part = here.parts[1]
    found = []
    for name, line in imported(path, text):
        if name.split(".")[0] != "conductor":
            continue
        other = engine_part(name)
        if not (ROOT / "conductor" / other).exists():
            found.append(f"{here}:{line} imports {name} from the package: import the module that defines it")
        elif other != part and other not in ENGINE[part]:
            found.append(f"{here}:{line} imports {name}; {part} may import {sorted(ENGINE[part]) or 'nothing'}")
    return found


def test_every_part_of_the_engine_is_in_its_table() -> None:
    parts = {path.relative_to(ROOT).parts[1] for path in sources("conductor")}
    assert parts == set(ENGINE) | ENGINE_TOP


@pytest.mark.parametrize("part", ENGINE)
def test_the_engine_keeps_to_its_table(part: str) -> None:
    files = [path for path in sources("conductor") if path.relative_to(ROOT).parts[1] == part]
    assert [sentence for path in files for sentence in engine_violations(path)] == []
    used = {engine_part(name) for path in files for name, _ in imported(path) if name.startswith("conductor.")}
    assert ENGINE[part] <= used, f"{part} does not use {ENGINE[part] - used}"


def test_the_engine_has_no_cycle() -> None:
    below = dict(ENGINE)
    while leaves := {part for part, others in below.items() if not others & set(below)}:
        below = {part: others for part, others in below.items() if part not in leaves}
    assert below == {}
    for one in ("outward", "inward", "reports"):
        assert not ENGINE[one] & {"outward", "inward", "reports"}


@pytest.mark.parametrize(
    "part,line",
    [
        ("outward", "from conductor.inward.inbox import INBOX_KIND_POLL"),
        ("inward", "from conductor.outward import delivery"),
        ("reports", "from conductor.outward.routing import RELAY_BATCH"),
        ("reports", "def late():\n    from conductor.tasks.runner import OPEN_TASK_STATES"),
        ("links", "from conductor.unsubscriptions import Unsubscriptions"),
        ("tasks", "from conductor import Conductor"),
    ],
)
def test_a_wrong_import_in_the_engine_is_found(part: str, line: str) -> None:
    assert len(engine_violations(ROOT / "conductor" / part / "new.py", line)) == 1


@pytest.mark.parametrize("place", USE_THE_PACKAGE)
def test_the_engine_is_used_through_its_package(place: str) -> None:
    public = {f"conductor.{name}" for name in conductor.__all__}
    deep = {
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(place)
        for name, line in imported(path)
        if name.startswith("conductor.") and name not in public
    }
    assert deep == set()


def test_models_import_only_each_other_downwards() -> None:
    """Inside `models`: base <- tables <- capture, and no module of it imports `users`."""
    tables = ("base", "bulk", "record_ids", "catalogues", "ledger", "users", "postgresql", "session", "capture_sources")
    order = {name: number for number, name in enumerate(tables)}
    order |= {"postgresql_triggers": 20, "sqlite_triggers": 20, "capture_checks": 21, "schema": 30, "capture": 30}
    for path in sources("models"):
        names = {name.split(".")[1] for name, _ in imported(path) if name.startswith("models.")}
        assert "users" not in names
        if path.stem in order:
            assert all(order[name] < order[path.stem] for name in names), f"{path.name} imports {names}"


#: The modules and folders of `subscribers/`; each may import itself and those in the rows above its own.
SUBSCRIBERS_ROWS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("records", "calls"),
    ("mapping", "http", "options"),
    ("rules", "system"),
    ("base",),
    ("registry",),
    ("rest", "files", "stripe", "salesforce", "unknown_settings"),
    ("config_file",),
)


def test_subscribers_import_each_other_downwards() -> None:
    rows = {name: number for number, names in enumerate(SUBSCRIBERS_ROWS) for name in names}
    folder = ROOT / "subscribers"
    modules = {path.relative_to(folder).with_suffix("").parts[0]: path for path in sources("subscribers")}
    assert set(modules) - {"__init__"} == set(rows), "a new module gets its place in SUBSCRIBERS_ROWS"
    broken_rows = []
    for path in sources("subscribers"):
        own = path.relative_to(folder).with_suffix("").parts[0]
        used = {name.split(".")[1] for name, _ in imported(path) if name.startswith("subscribers.")} - {own}
        if own != "__init__":
            broken_rows += [f"{own} imports {name}" for name in used if rows.get(name, 99) >= rows[own]]
    assert broken_rows == []


def test_no_private_name_is_imported() -> None:
    """A name that another module needs has no leading underscore: it is part of the module's public interface."""
    private = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for place in ("subscribers", "models", "workers", "cli", "simulators", "messaging", "broker.py", "settings.py")
        for path in sources(place)
        for name, line in imported(path)
        if name.split(".")[0] in {Path(other).stem for other in MAY_IMPORT}
        and any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    ]
    assert private == []


def test_the_table_of_layers_is_the_one_that_is_checked() -> None:
    for name, _, imports in table("checked: layers", "docs/explanation/architecture.md"):
        allowed = {module.partition(".")[0] for module in MAY_IMPORT[name.strip("`/")]}
        assert set(re.findall(r"`(\w+)`", imports)) == allowed, name


def test_test_files_import_no_test_file() -> None:
    """Helpers that several test files need are in tests/support/."""
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources("tests")
        for name, line in imported(path)
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split(".")[1:-1])
    ]
    assert found == [], "move what they share to tests/support/"


@pytest.mark.parametrize(
    "place,line",
    [
        ("subscribers", "import broker"),
        ("subscribers", "from flask import g"),
        ("subscribers", "from models.ledger import Link"),
        ("subscribers", "from models import ledger"),
        ("conductor", "from workers.publisher import Senders"),
        ("conductor", "def late():\n    import pika"),
        ("conductor", "from models import users"),
        ("conductor", "from models.users import User"),
        ("workers", "if True:\n    from panel.app import create_app"),
        ("workers", "__import__('panel')"),
        ("models", "from subscribers.base import Subscriber"),
        ("messaging", "from conductor import Conductor"),
        ("broker.py", "from conductor import Conductor"),
        ("panel", "from workers.worker import Fleet"),
        ("simulators", "from settings import ROOT"),
        ("simulators", "__import__(f'models.{name}')"),
        ("conductor", "import importlib\nimportlib.import_module('pan' + 'el')"),
        ("conductor", "from tests.support.fakes import TestHub"),
    ],
)
def test_a_wrong_import_is_found(place: str, line: str) -> None:
    file = ROOT / place if place.endswith(".py") else ROOT / place / "new.py"
    assert len(broken(file, place, line)) == 1


@pytest.mark.parametrize(
    "module,absent",
    [
        ("models.capture", "subscribers conductor dramatiq flask pika"),
        ("subscribers", "conductor broker dramatiq flask pika"),
        ("conductor", "broker workers dramatiq flask pika"),
        ("workers.worker", "panel cli flask flask_security"),
        # Each of these would cost a relay or a worker megabytes of memory that it never uses.
        ("cli", "panel flask werkzeug alembic simple_salesforce jwt stripe phonenumbers nameparser iso4217"),
    ],
)
def test_a_layer_loads_nothing_above_it(module: str, absent: str) -> None:
    """Find what the table cannot show: a package that imports another one indirectly."""
    code = f"import sys, {module}; print(*[n for n in {absent.split()} if n in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout.split() == []
