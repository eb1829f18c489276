"""The chaos run: the real fleet under load while everything around it fails, then a comparison of every record.

    make chaos                  three minutes
    SECONDS=60 SEED=7 make chaos
    FAULTS=failover make chaos  PostgreSQL has a standby, which takes over

| file        | what it holds                                                         |
|-------------|-----------------------------------------------------------------------|
| `fleet`     | the processes, with their own PostgreSQL and RabbitMQ                 |
| `proxy`     | the network between hub and systems, to be cut, slowed and reset      |
| `load`      | users and programs that edit on all sides, and log each edit          |
| `faults`    | what goes wrong and when, determined by the seed                      |
| `recovery`  | how long recovery takes, and when everything is idle                  |
| `event_log` | which values each field may have after all edits                      |
| `checker`   | what every side holds at the end, compared with what it must hold     |
| `history`   | the lines of the logs that explain a violation                        |
"""
