"""The external systems: one class for each catalogue in each system.

This layer imports `models.catalogues` and `settings` and nothing above them. It knows no broker, no
Flask and no ledger: a subscriber maps, calls, and reports failures by the classes in `errors`. The
conductor decides when it is called and what follows from the outcome.

| file or folder     | what it holds                                                  |
|--------------------|----------------------------------------------------------------|
| `records`          | `External`, `Item`, `Page`, `Event`: records on their way      |
| `errors`           | failures, named by what to do next                             |
| `mapping`          | `field_to_data`, both ways                                     |
| `rules`            | what a system accepts, declared                                |
| `calls`            | calls that report failures as values                           |
| `system`           | `System`, `Options`: a connected system and its settings       |
| `base`             | `Subscriber`: what an author writes against                    |
| `registry`         | `register`, `connect`: which subscribers there are             |
| `http`             | the HTTP client the REST-like systems share                    |
| `options`, `rest`  | any REST system by settings                                    |
| `config_file`      | REST and file systems declared in a file                       |
| the other folders  | one folder a system                                            |

A new system is one file and one line at the end of this file: importing its module registers its
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
