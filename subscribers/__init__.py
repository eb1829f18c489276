"""The external systems: one class for each catalogue in each system.

The law of this layer: it imports `models` and `settings` and nothing above them. It knows no
broker, no Flask and no ledger: a subscriber maps, calls and reports by the classes in `errors`;
when it is called, and what follows from the outcome, others decide.

| file         | what it holds                                                    |
|--------------|------------------------------------------------------------------|
| `base`       | `Subscriber`, `System`, `register`: what an author writes against |
| `mapping`    | `field_to_data`, both ways; `paths`: where a value stands there; `transforms`: its named conversions |
| `rules`      | what a system takes, declared                                    |
| `errors`     | failures, named by what to do next                               |
| `http`       | the HTTP client the REST-like systems share; `rates`: the calls that are left |
| the others   | one file a system                                                |

A new system is one file and one line here: importing its module registers its subscribers.
"""

import subscribers.salesforce
import subscribers.stripe  # noqa: F401
