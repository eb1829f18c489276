"""The chaos run: the real fleet under load while everything around it fails, then a comparison record by record.

    make chaos                  three minutes
    SECONDS=60 SEED=7 make chaos

| file     | what it holds                                                        |
|----------|----------------------------------------------------------------------|
| `fleet`  | the processes, and a PostgreSQL and a RabbitMQ of their own           |
| `proxy`  | the network between hub and systems, to be cut, slowed and reset      |
| `load`   | people and programs that edit on all sides, and the event log of it     |
| `faults` | what goes wrong and when, decided by the seed                         |
| `watch`  | how long recovering takes, and when all is quiet                      |
| `checker`  | what every side holds at the end, against what it must hold           |
"""
