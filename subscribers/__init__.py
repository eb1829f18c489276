"""The external systems: a class for each catalogue in each system.

A subscriber maps records, calls its system, and reports failures by the classes in `errors`. The
conductor decides when to call it, and what an outcome means. This layer imports `models.catalogues`,
`settings` and `i18n`, and knows no broker, Flask or ledger.

| file or folder     | what it holds                                                  |
|--------------------|----------------------------------------------------------------|
| `records`          | `External`, `Item`, `Page`, `Event`: records in transit        |
| `errors`           | failures, named by what to do next                             |
| `mapping`          | `field_to_data`, applied in both directions                    |
| `rules`            | declared limits of what a system accepts                       |
| `calls`            | calls that report failures as values                           |
| `system`           | `System`, `Options`: a connected system and its settings       |
| `base`             | `Subscriber`: the class that an author derives from            |
| `registry`         | `register`, `connect`: the table of subscribers                |
| `http`             | the HTTP client that systems with a REST API share             |
| `options`, `rest`  | any REST system, by configuration                              |
| `config_file`      | REST and file systems declared in a TOML file                  |
| `unknown_settings` | unknown names in `.env`                                        |
| the other folders  | one system each                                                |

A new system is one file and one import in this file: importing the module registers its
subscribers.
"""

from subscribers.base import Subscriber
from subscribers.errors import Gone, Reject, Retry, Skip, SystemDown
from subscribers.mapping import Field, link_to, rows
from subscribers.records import Event, External, Item, Page
from subscribers.registry import connect, register
from subscribers.system import Options, System

# isort: split
import subscribers.salesforce
import subscribers.stripe  # noqa: F401

__all__ = [
    "Event",
    "External",
    "Field",
    "Gone",
    "Item",
    "Options",
    "Page",
    "Reject",
    "Retry",
    "Skip",
    "Subscriber",
    "System",
    "SystemDown",
    "connect",
    "link_to",
    "register",
    "rows",
]
