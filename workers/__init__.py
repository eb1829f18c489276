"""The processes of the hub, which call the conductor.

| file          | what it holds                                                    |
|---------------|------------------------------------------------------------------|
| `runtime`     | the parts of a process, its logging, signals and heartbeat       |
| `publisher`   | `DramatiqPublisher`: puts notifications into queues              |
| `actors`      | the Dramatiq actors, and the queues they consume                 |
| `relay`       | publishes captured changes, sweeps                               |
| `scheduler`   | the tick of each minute, and the steps of tasks                  |
| `worker`      | `WorkerPool`: the consumers of one process                       |
| `queue_stats` | the state of the queues, for the panel and metrics               |
"""
